"""The corpus of hostile images, read one by one in a child process or in one batch."""

import faulthandler
import os
import re
import time
import warnings
from contextlib import suppress

import numpy as np

from sklearn_ape.encoders import TimmImageEncoder
from sklearn_ape.encoders.images import check_image, image_digest, read_image
from sklearn_ape.encoders.items import ItemError, describe_item
from tests.robustness.child_processes import Outcome, judge_one_by_one
from tests.robustness.hostile.cases import plain
from tests.robustness.hostile.damaged_files import cut_files, flipped_files
from tests.robustness.hostile.hostile_paths import objects, places
from tests.robustness.hostile.unusual_images import greedy_files, sound_files

SECONDS = 20.0
# What an image may take, beyond what is there before: so much, and so much a pixel.
BYTES = 2**26
BYTES_A_PIXEL = 16
_NARROWEST = 100  # what an encoder takes; reading alone takes any
_TOLERANCE = 2e-3  # of features of other batches


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


def _judge_all(connection, n_children, n_done, folder, more):
    faulthandler.enable()
    place = os.path.join(folder, f"child {n_children}")
    cases = corpus(place, more)
    os.chdir(place)
    connection.send([case.name for case in cases])
    for case in cases[n_done:]:
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
        connection.send(
            Outcome(case.name, kind, message, mebibytes=taken / 2**20, seconds=seconds)
        )
    connection.send("end")


def outcomes(folder, more=0):
    """Return the outcome of each case, read one by one in a child process."""
    return judge_one_by_one(_judge_all, (folder, more), SECONDS)


def batch_outcomes(cases, every=40):
    """Return what became of each row; one of so many good ones is encoded alone as well."""
    good = {}
    for row, case in enumerate(cases):
        try:
            pixels = entrance(case.item)
        except ItemError:
            continue
        if max(pixels.shape[:2]) <= _NARROWEST * min(pixels.shape[:2]):
            good[row] = pixels
    encoder = TimmImageEncoder("efficientnet_lite0", cache=None, on_error="nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        features = encoder.transform([case.item for case in cases])
    errors = dict(encoder.errors_)
    clean = dict(zip(good, encoder.transform(list(good.values())), strict=True))
    for row in list(good)[::every]:
        alone = encoder.transform([cases[row].item])[0]
        if not np.allclose(alone, clean[row], atol=_TOLERANCE):
            clean[row] = np.full_like(alone, np.inf)  # equal to no feature
    done = []
    for row, case in enumerate(cases):
        if row not in good:
            named = row in errors and np.isnan(features[row]).all()
            kind, message = ("error" if named else "wrong"), errors.get(row, "not named")
        elif row in errors or np.isnan(features[row]).any():
            kind, message = "lost", errors.get(row, "not a number")
        else:
            same = np.allclose(features[row], clean[row], atol=_TOLERANCE)
            kind, message = ("right", "") if same else ("wrong", "features of another image")
        done.append(Outcome(case.name, kind, message))
    return done
