"""Forks processes that have computed, and computes in the child; `test_forks.py` says how."""

import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback

import numpy as np
import torch

PATIENCE_S = 60
TEXTS = ["a cat", "two dogs that run along the beach", "rain", "a red apple", "the sea at night"]


def in_child(compute, leave=os._exit):
    """Call in a forked child; fail if it does not end in time, or ends badly."""
    child = os.fork()
    if child == 0:
        try:
            compute()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        leave(0)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0, f"the child ended with status {status}"
            return
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


def encoder(cache=None, engine="torch"):
    from sklearn_ape.encoders import TransformersTextEncoder

    return TransformersTextEncoder(cache=cache, engine=engine, batch_size=2)


def assert_close(features, expected):
    """Sums of torch are rounded by the number of its threads, which is 1 in a child."""
    np.testing.assert_allclose(features, expected, atol=1e-6)


def encode(engine):
    """The parent has encoded; the child encodes, with all engines of its own."""
    expected = encoder(engine=engine).transform(TEXTS)

    def compute():
        assert_close(encoder(engine=engine).transform(TEXTS), expected)

    in_child(compute)
    in_child(lambda: None, sys.exit if engine != "onnx" else os._exit)
    in_child(lambda: in_child(compute))
    assert_close(encoder(engine=engine).transform(TEXTS), expected)


class SlowCache:
    """Blocks its encoder, which holds its lock, until the process ends."""

    def __init__(self):
        self.is_reached = threading.Event()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    def get_many(self, keys):
        self.is_reached.set()
        time.sleep(10 * PATIENCE_S)

    def put_many(self, features):
        pass


def locked():
    """Another thread holds the locks of encoders, weights, tokenizer and trainings."""
    from sklearn_ape import APEAligner
    from sklearn_ape.encoders.text_encoder import TOKENIZING
    from sklearn_ape.utils.concurrency import _locks

    expected = encoder().transform(TEXTS)
    rng = np.random.default_rng(0)
    pairs = rng.standard_normal((60, 8)), rng.standard_normal((60, 6))

    def fit():
        return APEAligner(init=None, width=8, max_epochs=2, random_state=0).fit(*pairs)

    fingerprint = fit().fingerprint_
    cache = SlowCache()
    threading.Thread(target=encoder(cache).transform, args=(TEXTS,), daemon=True).start()
    cache.is_reached.wait()
    is_held = threading.Event()

    def hold():
        for lock in [lock for lock in _locks if lock is not encoder_lock]:
            lock.__enter__()
        is_held.set()
        time.sleep(10 * PATIENCE_S)

    from sklearn_ape.encoders._encoding import _locks as encoder_locks

    (encoder_lock,) = encoder_locks.values()
    threading.Thread(target=hold, daemon=True).start()
    is_held.wait()
    assert TOKENIZING in _locks

    def compute():
        assert_close(encoder().transform(TEXTS), expected)
        assert_close(encoder("memory").transform(TEXTS), expected)
        assert fit().fingerprint_ == fingerprint

    in_child(compute)
    os._exit(0)  # without waiting for the threads


def busy(engine):
    """Another thread encodes: tokenizers and engines are in use at the time of the fork."""
    expected = encoder(engine=engine).transform(TEXTS)

    def encode_on():
        number = 0
        while True:
            encoder(engine=engine).transform([f"{text} {number}" for text in TEXTS])
            number += 1

    threading.Thread(target=encode_on, daemon=True).start()
    for _ in range(10):
        in_child(lambda: assert_close(encoder(engine=engine).transform(TEXTS), expected))
    os._exit(0)


def trained():
    """The parent has trained; the child trains, and embeds."""
    from sklearn_ape import APEAligner

    rng = np.random.default_rng(0)
    pairs = rng.standard_normal((3000, 64)), rng.standard_normal((3000, 48))

    def fit():
        return APEAligner(init="kernel", width=256, max_epochs=2, random_state=0).fit(*pairs)

    parent = fit()
    expected = parent.transform_text(pairs[1])

    def compute():
        np.testing.assert_allclose(parent.transform_text(pairs[1]), expected, atol=1e-6)
        fit()
        assert torch.get_num_threads() == 1

    in_child(compute)
    assert torch.get_num_threads() == 2


def pool():
    """multiprocessing's own children encode, with a cache on disk that the parent has used."""
    with tempfile.TemporaryDirectory() as folder:
        on_disk = encoder(folder)
        expected = on_disk.transform(TEXTS)
        with multiprocessing.get_context("fork").Pool(2) as workers:
            parts = workers.map_async(on_disk.transform, [TEXTS, [*TEXTS, "new"]])
            first, second = parts.get(PATIENCE_S)
        np.testing.assert_array_equal(first, expected)
        np.testing.assert_array_equal(second[:-1], expected)
        assert np.isfinite(second).all()


if __name__ == "__main__":
    torch.set_num_threads(2)
    what, *arguments = sys.argv[1:]
    {"encode": encode, "locked": locked, "trained": trained, "busy": busy, "pool": pool}[what](
        *arguments
    )
    print("done")
    sys.stdout.flush()
