"""Corpus of hostile images, read one by one in a child process or in one batch."""

import faulthandler
import os
import re
import time
import warnings
from contextlib import suppress

import numpy as np

from sklearn_ape.encoders import TimmImageEncoder
from sklearn_ape.encoders.images import check_image, digest_image, read_image
from sklearn_ape.encoders.items import ItemError, describe_item
from tests.robustness.child_processes import Outcome, judge_one_by_one
from tests.robustness.hostile.cases import decode_with_pillow
from tests.robustness.hostile.damaged_files import cut_files, flipped_files
from tests.robustness.hostile.hostile_paths import make_objects, make_paths
from tests.robustness.hostile.unusual_images import greedy_files, unusual_files

SECONDS = 20.0
# Limits of additional memory per image: a constant, and bytes per pixel.
BYTES = 2**26
BYTES_PER_PIXEL = 16
_NARROWEST = 100  # largest aspect ratio of encoders; reading has no limit
_TOLERANCE = 2e-3  # features depend on the batch by rounding


def corpus(folder, more=0):
    """Return all cases, which are reproducible; `more` is the number of extra cuts and flips."""
    os.makedirs(folder, exist_ok=True)
    return [
        *unusual_files(),
        *greedy_files(),
        *make_paths(folder),
        *make_objects(),
        *cut_files(4 + more),
        *flipped_files(8 + more),
    ]


def load_image(item):
    """Load an item as an encoder does before the forward pass of its network."""
    digest_image(item)
    check_image(item)
    return np.asarray(read_image(item))


def judge(case):
    """Return the kind of the outcome of a case, and its message."""
    try:
        pixels = load_image(case.item)
    except ItemError as error:
        message = describe_item(case.item, error)
        if case.expect == "right":
            return "wrong", f"error: {message}"
        return ("error" if _is_clear(case.item, message) else "unclear"), message
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"
    if case.expect == "error":
        return "wrong", "accepted as an image"
    try:
        expected = decode_with_pillow(case.item) if case.pixels is None else case.pixels
    except Exception as error:
        return "wrong", f"accepted, but Pillow fails: {error}"
    return _compare(pixels, expected, case.tolerance)


def _compare(pixels, expected, tolerance):
    if pixels.shape != expected.shape or pixels.dtype != np.uint8:
        return "wrong", f"shape {pixels.shape}, not {expected.shape}"
    if tolerance > 20:  # lossy files are compared on average
        difference = float(np.abs(pixels.astype(int) - expected).mean())
        return (
            ("right", "")
            if difference < tolerance / 5
            else ("wrong", f"mean difference {difference:.0f}")
        )
    for start in range(0, len(pixels), 512):  # blocks of rows, which limit the memory
        rows = slice(start, start + 512)
        difference = np.abs(pixels[rows].astype(np.int16) - expected[rows])
        if difference.max(initial=0) > tolerance:
            return "wrong", f"pixels differ by {difference.max()}"
    return "right", ""


def _is_clear(item, message):
    """Return whether a message is one line that names the item and a reason."""
    is_named = True
    if isinstance(item, str | os.PathLike):
        is_named = repr(str(item)[:200]) in message
    return is_named and "\n" not in message and not message.endswith("().") and len(message) < 2000


def _reset_peak_memory():
    """Return the peak memory since the last call, or 0 if the system does not report it."""
    try:
        with open("/proc/self/status") as file:
            kilobytes = re.search(r"VmHWM:\s+(\d+)", file.read())[1]
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return 1024 * int(kilobytes)
    except (OSError, TypeError):
        return 0


def _send_outcomes(connection, n_children, n_done, folder, more):
    faulthandler.enable()
    place = os.path.join(folder, f"child {n_children}")
    cases = corpus(place, more)
    os.chdir(place)
    connection.send([case.name for case in cases])
    for case in cases[n_done:]:
        connection.send("start")
        _reset_peak_memory()
        before = _reset_peak_memory()
        start = time.perf_counter()
        with suppress(Exception):  # measures memory and time; the outcome is judged below
            load_image(case.item)
        seconds = time.perf_counter() - start
        n_bytes = _reset_peak_memory() - before
        kind, message = judge(case)
        if n_bytes > BYTES + BYTES_PER_PIXEL * case.large:
            kind, message = "greedy", f"used {n_bytes / 2**20:.0f} MiB"
        connection.send(
            Outcome(case.name, kind, message, mebibytes=n_bytes / 2**20, seconds=seconds)
        )
    connection.send("end")


def outcomes(folder, more=0):
    """Return the outcome of each case, read one by one in a child process."""
    return judge_one_by_one(_send_outcomes, (folder, more), SECONDS)


def batch_outcomes(cases, every=40):
    """Return the outcome of each row of one batch.

    Every `every`-th valid row is also encoded alone.
    """
    good = {}
    for row, case in enumerate(cases):
        try:
            pixels = load_image(case.item)
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
            clean[row] = np.full_like(alone, np.inf)  # differs from every feature
    results = []
    for row, case in enumerate(cases):
        if row not in good:
            is_named = row in errors and np.isnan(features[row]).all()
            kind, message = ("error" if is_named else "wrong"), errors.get(row, "not named")
        elif row in errors or np.isnan(features[row]).any():
            kind, message = "lost", errors.get(row, "not a number")
        else:
            same = np.allclose(features[row], clean[row], atol=_TOLERANCE)
            kind, message = ("right", "") if same else ("wrong", "features of another image")
        results.append(Outcome(case.name, kind, message))
    return results
