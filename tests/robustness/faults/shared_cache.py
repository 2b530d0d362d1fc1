"""Group of faults: four processes read and write one cache at the same time."""

import multiprocessing
import os
import sqlite3
import time
import warnings

import numpy as np

from sklearn_ape.features import DiskFeatureCache
from tests.robustness.child_processes import CaseError, Outcome, expect

_PROCESSES = 4
_SECONDS, _MOST_SECONDS = 2, 60
_N_KEYS = 3000


def _feature(number):
    rng = np.random.default_rng(number)
    return rng.normal(size=int(rng.integers(1, 1500))).astype(np.float32)


def _key(number):
    return number.to_bytes(32, "little")


def _check(features, dtype):
    for key, feature in features.items():
        expected = _feature(int.from_bytes(key, "little")).astype(dtype).astype(np.float32)
        expect(np.array_equal(feature, expected), f"a wrong feature of {dtype}")


def _round(folder, rng, put):
    """Open the cache, read and write entries, close it, and check that no entry is missing."""
    dtype = ("float32", "float16")[rng.integers(2)]
    with DiskFeatureCache(folder, dtype) as cache:
        for _ in range(int(rng.integers(1, 30))):
            numbers = rng.integers(_N_KEYS, size=int(rng.integers(1, 40))).tolist()
            features = cache.get_many(map(_key, numbers))
            _check(features, dtype)
            cached = {number for number in numbers if _key(number) in features}
            expect(cached >= put[dtype] & set(numbers), "entries are missing", "lost")
            if rng.random() < 0.6:
                cache.put_many({_key(number): _feature(number) for number in numbers})
                put[dtype].update(numbers)
    put["float16"] |= put["float32"]  # a float16 cache also reads float32 entries


def _run_process(folder, seed, until, answers):
    rng = np.random.default_rng(seed)
    put = {"float32": set(), "float16": set()}
    n_rounds = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as warnings about locks or damage
            while time.monotonic() < until:
                _round(folder, rng, put)
                n_rounds += 1
        answers.send(("right", n_rounds, put))
    except CaseError as error:
        answers.send((error.kind, str(error), None))
    except BaseException as error:
        answers.send(("crash", f"{type(error).__name__}: {error}", None))
    finally:
        answers.close()
        os._exit(0)


def outcomes(folder, amount, inputs):
    cache_folder = folder / "cache"
    seconds = min(_MOST_SECONDS, _SECONDS * amount)
    context = multiprocessing.get_context("fork")
    until = time.monotonic() + seconds
    started = []
    for seed in range(_PROCESSES):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_run_process, args=(cache_folder, seed, until, there))
        process.start()
        there.close()
        started.append((process, here))
    put = {"float32": set(), "float16": set()}
    for number, (process, here) in enumerate(started):
        name = f"process {number} of {_PROCESSES}, {seconds:.0f} s"
        # Processes wait at most a minute for a lock; after that, they hang.
        if not here.poll(max(0.0, until - time.monotonic()) + 90):
            yield Outcome(name, "hang", "no answer")
            process.kill()
        else:
            try:
                kind, message, written = here.recv()
            except EOFError:
                kind, message, written = "crash", "no answer", None
            if kind == "right":
                yield Outcome(name, "right", f"{message} rounds", count=message)
                for dtype, numbers in written.items():
                    put[dtype] |= numbers
            else:
                yield Outcome(name, kind, message)
        process.join()
    yield _check_file(cache_folder, put)


def _check_file(folder, put):
    name = "the file that four processes wrote"
    try:
        for dtype, numbers in put.items():
            with DiskFeatureCache(folder, dtype) as cache:
                features = cache.get_many(map(_key, sorted(numbers)))
            _check(features, dtype)
            expect(
                len(features) == len(numbers), f"{len(numbers) - len(features)} of {dtype}", "lost"
            )
        connection = sqlite3.connect(folder / "features.sqlite")
        ((result,),) = connection.execute("PRAGMA integrity_check")
        connection.close()
        expect(result == "ok", result)
        expect(not list(folder.glob("*.damaged*")), "renamed as damaged")
    except CaseError as error:
        return Outcome(name, error.kind, str(error))
    return Outcome(name, "right")
