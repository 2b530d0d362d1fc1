"""Computations in forked children of processes that have computed, for test_concurrency.py."""

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress

import numpy as np

with suppress(ImportError):
    import faiss  # noqa: F401  # after torch, it would use the OpenMP library of torch
import torch

PATIENCE_S = 60
TEXTS = ["a cat", "two dogs that run along the beach", "rain", "a red apple", "the sea at night"]


def run_in_fork(compute, exit_process=os._exit):
    """Call a function in a forked child, and fail if it raises or does not end in time."""
    child = os.fork()
    if child == 0:
        try:
            compute()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        exit_process(0)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0, f"the child ended with status {status}"
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGABRT)  # its traceback shows where it waits
    time.sleep(1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


def encoder(cache=None, engine="torch"):
    from sklearn_ape.encoders import TransformersTextEncoder

    return TransformersTextEncoder(cache=cache, engine=engine, batch_size=2)


def assert_close(features, expected):
    """Compare up to rounding, which depends on the number of threads (1 in a child)."""
    np.testing.assert_allclose(features, expected, atol=1e-6)


def encode(engine):
    """Encode in a child, with every engine, after the parent has encoded."""
    expected = encoder(engine=engine).transform(TEXTS)

    def compute():
        assert_close(encoder(engine=engine).transform(TEXTS), expected)

    run_in_fork(compute)
    run_in_fork(lambda: None, sys.exit if engine != "onnx" else os._exit)
    run_in_fork(lambda: run_in_fork(compute))
    assert_close(encoder(engine=engine).transform(TEXTS), expected)


class SlowCache:
    """Cache that blocks its encoder, which holds its lock, until the process ends."""

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


def encode_while_locked():
    """Encode and train in a child while another thread of the parent holds all locks.

    This must be the last case of a process, since it ends it.
    """
    from sklearn_ape import APEAligner
    from sklearn_ape.encoders.text_encoder import _tokenizer_lock
    from sklearn_ape.utils.concurrency import _all_locks

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
        for lock in [lock for lock in _all_locks if lock is not encoder_lock]:
            lock.__enter__()
        is_held.set()
        time.sleep(10 * PATIENCE_S)

    from sklearn_ape.encoders._encoding import _locks_by_weights as encoder_locks

    (encoder_lock,) = encoder_locks.values()
    threading.Thread(target=hold, daemon=True).start()
    is_held.wait()
    assert _tokenizer_lock in _all_locks

    def compute():
        assert_close(encoder().transform(TEXTS), expected)
        assert_close(encoder("memory").transform(TEXTS), expected)
        assert fit().fingerprint_ == fingerprint

    run_in_fork(compute)
    os._exit(0)  # does not wait for the threads


def encode_while_encoding(engine):
    """Encode in a child that is forked while another thread uses tokenizers and engines.

    This must be the last case of a process, since it ends it.
    """
    expected = encoder(engine=engine).transform(TEXTS)

    def encode_repeatedly():
        number = 0
        while True:
            encoder(engine=engine).transform([f"{text} {number}" for text in TEXTS])
            number += 1

    threading.Thread(target=encode_repeatedly, daemon=True).start()
    for _ in range(10):
        run_in_fork(lambda: assert_close(encoder(engine=engine).transform(TEXTS), expected))
    os._exit(0)


def train_in_fork():
    """Train and embed in a child after the parent has trained."""
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

    run_in_fork(compute)
    assert torch.get_num_threads() == 2


def classify_in_fork():
    """Classify features of a file, and a collection, in a child after the parent has done so."""
    from sklearn.feature_extraction.text import HashingVectorizer

    from sklearn_ape import CCAAligner, ZeroShotClassifier
    from sklearn_ape.features import matrix

    matrix._MIN_STORED_BYTES = 0  # so that a small file is not copied to memory
    rng = np.random.default_rng(0)
    labels = np.array(TEXTS)[rng.integers(len(TEXTS), size=3000)]
    centers = {text: rng.standard_normal(64) for text in TEXTS}
    features = np.array([centers[text] for text in labels]) + rng.standard_normal((3000, 64))
    aligner = CCAAligner(text_encoder=HashingVectorizer(n_features=32)).fit(features, labels)
    classifier = ZeroShotClassifier(TEXTS, aligner=aligner)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/features.npy", features.astype(np.float16))
        stored = np.load(f"{folder}/features.npy", mmap_mode="r")
        expected = classifier.predict_proba(stored)
        run_in_fork(lambda: assert_close(classifier.predict_proba(stored), expected))
    together = classifier.predict_proba_together(features)
    run_in_fork(lambda: assert_close(classifier.predict_proba_together(features), together))


def use_faiss_in_fork():
    """Search and classify a collection with faiss in a child after the parent has done so."""
    from sklearn_ape.retrieval._index import make_index
    from sklearn_ape.zero_shot import _transduction

    _transduction._MAX_EXACT = 0
    embeddings = np.random.default_rng(0).standard_normal((3000, 64), dtype=np.float32)
    index = make_index("faiss", embeddings)
    expected = index.search(embeddings, embeddings, 5)
    _transduction._make_graph(embeddings, 0)

    def search():
        np.testing.assert_array_equal(index.search(embeddings, embeddings, 5), expected)

    run_in_fork(search)
    run_in_fork(lambda: _transduction._make_graph(embeddings, 0))


def encode_in_pool():
    """Encode in a forked pool with a disk cache that the parent has used."""
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
    faulthandler.enable()
    torch.set_num_threads(2)
    engine, *cases = sys.argv[1:]
    for case in cases:
        {
            "encode": lambda: encode(engine),
            "pool": encode_in_pool,
            "train": train_in_fork,
            "classify": classify_in_fork,
            "search": use_faiss_in_fork,
            "encode_while_encoding": lambda: encode_while_encoding(engine),
            "encode_while_locked": encode_while_locked,
        }[case]()
