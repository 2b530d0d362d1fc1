"""Group: four processes read and write one cache for as long as a benchmark says."""

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


def _truth(number):
    rng = np.random.default_rng(number)
    return rng.normal(size=int(rng.integers(1, 1500))).astype(np.float32)


def _key(number):
    return number.to_bytes(32, "little")


def _check(found, dtype):
    for key, feature in found.items():
        truth = _truth(int.from_bytes(key, "little")).astype(dtype).astype(np.float32)
        expect(np.array_equal(feature, truth), f"a wrong feature of {dtype}")


def _round(folder, rng, put):
    """Open the cache, read and write some, and close it; what was put in must be there."""
    dtype = ("float32", "float16")[rng.integers(2)]
    with DiskFeatureCache(folder, dtype) as cache:
        for _ in range(int(rng.integers(1, 30))):
            numbers = rng.integers(_N_KEYS, size=int(rng.integers(1, 40))).tolist()
            found = cache.get_many(map(_key, numbers))
            _check(found, dtype)
            known = {number for number in numbers if _key(number) in found}
            expect(known >= put[dtype] & set(numbers), "put in, and gone", "lost")
            if rng.random() < 0.6:
                cache.put_many({_key(number): _truth(number) for number in numbers})
                put[dtype].update(numbers)
    put["float16"] |= put["float32"]  # which a float16 cache reads, too


def _works(folder, seed, until, answers):
    rng = np.random.default_rng(seed)
    put = {"float32": set(), "float16": set()}
    n_rounds = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as of a lock held too long, or of damage
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


def outcomes(folder, amount, world):
    cache_folder = folder / "cache"
    seconds = min(_MOST_SECONDS, _SECONDS * amount)
    context = multiprocessing.get_context("fork")
    until = time.monotonic() + seconds
    started = []
    for seed in range(_PROCESSES):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_works, args=(cache_folder, seed, until, there))
        process.start()
        there.close()
        started.append((process, here))
    put = {"float32": set(), "float16": set()}
    for number, (process, here) in enumerate(started):
        name = f"process {number} of {_PROCESSES}, {seconds:.0f} s"
        # A lock is waited for at most a minute; beyond that, it is one that never opens.
        if not here.poll(max(0.0, until - time.monotonic()) + 90):
            yield Outcome(name, "hang", "no answer")
            process.kill()
        else:
            try:
                kind, told, its = here.recv()
            except EOFError:
                kind, told, its = "crash", "no answer", None
            if kind == "right":
                yield Outcome(name, "right", f"{told} rounds", count=told)
                for dtype, numbers in its.items():
                    put[dtype] |= numbers
            else:
                yield Outcome(name, kind, told)
        process.join()
    yield _at_the_end(cache_folder, put)


def _at_the_end(folder, put):
    name = "the file that four processes wrote"
    try:
        for dtype, numbers in put.items():
            with DiskFeatureCache(folder, dtype) as cache:
                found = cache.get_many(map(_key, sorted(numbers)))
            _check(found, dtype)
            expect(len(found) == len(numbers), f"{len(numbers) - len(found)} of {dtype}", "lost")
        connection = sqlite3.connect(folder / "features.sqlite")
        ((told,),) = connection.execute("PRAGMA integrity_check")
        connection.close()
        expect(told == "ok", told)
        expect(not list(folder.glob("*.damaged*")), "moved aside")
    except CaseError as error:
        return Outcome(name, error.kind, str(error))
    return Outcome(name, "right")
