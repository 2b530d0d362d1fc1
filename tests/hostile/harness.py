"""Reads every case in a child process, which may crash, hang or fill the memory."""

import faulthandler
import multiprocessing
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from hostile.case import plain
from hostile.damage import cut_files, flipped_files
from hostile.odd import greedy_files, sound_files
from hostile.places import objects, places

from sklearn_ape.encoders.images import check_image, image_digest, read_image
from sklearn_ape.encoders.items import ItemError, describe_item

SECONDS = 20.0
# What an image may take, beyond what is there before: so much, and so much a pixel.
BYTES = 2**26
BYTES_A_PIXEL = 16
_START_SECONDS = 240.0


@dataclass(frozen=True)
class Outcome:
    """What came of a case: right, error, wrong, unclear, greedy, crash or hang."""

    name: str
    kind: str
    message: str = ""
    mebibytes: float = 0.0
    seconds: float = 0.0


def corpus(folder, more=0):
    """Return all cases, the same ones each time; `more` adds to cuts and flips."""
    os.makedirs(folder, exist_ok=True)
    return [
        *sound_files(),
        *greedy_files(),
        *places(folder),
        *objects(),
        *cut_files(4 + more),
        *flipped_files(8 + more),
    ]


def entrance(item):
    """Take an item through all that an encoder does before its network sees the pixels."""
    image_digest(item)
    check_image(item)
    return np.asarray(read_image(item))


def judged(case):
    """Say what became of a case, and in which words."""
    try:
        pixels = entrance(case.item)
    except ItemError as error:
        message = describe_item(case.item, error)
        if case.expect == "right":
            return "wrong", f"refused: {message}"
        return ("error" if _is_clear(case.item, message) else "unclear"), message
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"
    if case.expect == "error":
        return "wrong", "taken for an image"
    try:
        truth = plain(case.item) if case.truth is None else case.truth
    except Exception as error:
        return "wrong", f"an image, where Pillow fails: {error}"
    return _compared(pixels, truth, case.tolerance)


def _compared(pixels, truth, tolerance):
    if pixels.shape != truth.shape or pixels.dtype != np.uint8:
        return "wrong", f"shape {pixels.shape}, not {truth.shape}"
    if tolerance > 20:  # of a lossy file: alike as a whole
        apart = float(np.abs(pixels.astype(int) - truth).mean())
        return (
            ("right", "") if apart < tolerance / 5 else ("wrong", f"{apart:.0f} apart on average")
        )
    for start in range(0, len(pixels), 512):  # as integers, a large one would fill the memory
        rows = slice(start, start + 512)
        apart = np.abs(pixels[rows].astype(np.int16) - truth[rows])
        if apart.max(initial=0) > tolerance:
            return "wrong", f"pixels are {apart.max()} apart"
    return "right", ""


def _is_clear(item, message):
    """Say whether a message is one line that names the item and ends in a reason."""
    named = True
    if isinstance(item, str | os.PathLike):
        named = repr(str(item)[:200]) in message
    return named and "\n" not in message and not message.endswith("().") and len(message) < 2000


def _peak():
    """Return the most memory since it was last asked for; 0 where the system does not say."""
    try:
        with open("/proc/self/status") as file:
            kilobytes = re.search(r"VmHWM:\s+(\d+)", file.read())[1]
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return 1024 * int(kilobytes)
    except (OSError, TypeError):
        return 0


def _child(connection, folder, start, more):
    faulthandler.enable()
    cases = corpus(folder, more)
    os.chdir(folder)
    connection.send([case.name for case in cases])
    for case in cases[start:]:
        connection.send("start")
        _peak()
        before = _peak()
        began = time.perf_counter()
        with suppress(Exception):  # judged below; here its memory is measured without the truth's
            entrance(case.item)
        seconds = time.perf_counter() - began
        taken = _peak() - before
        kind, message = judged(case)
        if taken > BYTES + BYTES_A_PIXEL * case.large:
            kind, message = "greedy", f"took {taken / 2**20:.0f} MiB"
        connection.send(Outcome(case.name, kind, message, taken / 2**20, seconds))
    connection.send("end")


def outcomes(folder, more=0):
    """Return what became of each case; a child that dies or hangs is replaced by another."""
    context = multiprocessing.get_context("spawn")
    done = []
    n_children = 0
    while True:
        here, there = context.Pipe()
        place = os.path.join(folder, f"child {n_children}")
        n_children += 1
        child = context.Process(target=_child, args=(there, place, len(done), more), daemon=True)
        child.start()
        there.close()
        names, finished = [], False
        try:
            while not finished:
                if not here.poll(SECONDS if names else _START_SECONDS):
                    if not names:
                        raise RuntimeError("The corpus was not made in time.")
                    done.append(Outcome(names[len(done)], "hang", f"{SECONDS:.0f} s"))
                    break
                message = here.recv()
                if isinstance(message, list):
                    names = message
                elif isinstance(message, Outcome):
                    done.append(message)
                finished = message == "end"
        except EOFError:
            child.join()
            if not names:
                raise RuntimeError("The corpus cannot be made: see above.") from None
            done.append(Outcome(names[len(done)], "crash", f"exit code {child.exitcode}"))
        finally:
            child.kill()
            child.join()
            here.close()
        if finished or len(done) == len(names):
            return done
