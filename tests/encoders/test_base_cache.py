"""Cache keys, concurrent encoding and resumed runs of encoders."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone

from sklearn_ape.encoders import (
    EncodingError,
    TimmImageEncoder,
    TransformersTextEncoder,
    _encoding,
)
from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.utils.concurrency import LRUCache
from tests.encoders.conftest import gained
from tests.encoders.tiny_networks import text_folder

TEXTS = ["a cat", "two dogs on a long walk through the woods", "a rocket"]


def test_cache_key_is_content_not_name(encoder, paths, tmp_path):
    """A copied file hits; a changed file of the same name, size and time misses."""
    path = tmp_path / "a.bmp"
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, (10**9, 10**9))
    assert gained(encoder, [path]) == (0, 1)
    assert gained(encoder, [shutil.copy(path, tmp_path / "b.bmp"), path]) == (2, 0)
    Image.fromarray(pixels + 200).save(path)
    os.utime(path, (10**9, 10**9))
    assert gained(encoder, [path]) == (0, 1)


@pytest.mark.parametrize("name", ["", "features"])
def test_cache_in_the_model_folder_raises(tmp_path, name):
    """Each feature would change the digest of the folder, by which features are found."""
    encoder = TransformersTextEncoder(text_folder(tmp_path), cache=tmp_path / name)
    with pytest.raises(ValueError, match=r"is in the folder of model_name=.* Pass another"):
        encoder.transform(["a cat"])
    beside = tmp_path.with_name(f"{tmp_path.name}-features")
    assert gained(encoder.set_params(cache=beside), ["a cat"]) == (0, 1)
    assert gained(encoder, ["a cat"]) == (1, 0)


@pytest.mark.parametrize("name", ["a.npy", "features/a.npy"])
def test_encode_to_the_model_folder_raises(tmp_path, name):
    encoder = TransformersTextEncoder(text_folder(tmp_path), cache=None)
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"^path=.* is in the folder of model_name=.* Pass anot"):
        encoder.encode_to(tmp_path / name, ["a cat"])
    assert sorted(tmp_path.rglob("*")) == files
    beside = tmp_path.with_name(f"{tmp_path.name}-{name.replace('/', '-')}")
    assert encoder.encode_to(beside, ["a cat"]).shape == (1, 16)


@pytest.mark.parametrize("on_error", ["raise", "nan"])
def test_file_changed_during_reading_fails(tmp_path, monkeypatch, on_error):
    """Otherwise the cache would keep the features of the new image under the old digest."""
    encoder = TimmImageEncoder(cache=str(tmp_path / "cache"), on_error=on_error)
    paths = [tmp_path / f"{name}.bmp" for name in "ab"]
    for path in paths:
        Image.new("RGB", (40, 40), "red" if path == paths[0] else "green").save(path)
        os.utime(path, (10**9, 10**9))
    green = Image.open(paths[1]).copy()
    prepare = TimmImageEncoder._prepare_item

    def replaced_before(self, network, item):
        if item == paths[0]:
            Image.new("RGB", (40, 40), "blue").save(item)
            os.utime(item, (10**9, 10**9))
        return prepare(self, network, item)

    with monkeypatch.context() as patch:
        patch.setattr(TimmImageEncoder, "_prepare_item", replaced_before)
        if on_error == "raise":
            with pytest.raises(
                EncodingError, match=r"row 0: .*a\.bmp.* changed while it was read"
            ):
                encoder.transform(paths)
        else:
            with pytest.warns(UserWarning, match="changed while it was read"):
                assert np.isnan(encoder.transform(paths)).all(axis=1).tolist() == [True, False]
    Image.new("RGB", (40, 40), "red").save(paths[0])
    images = [Image.open(paths[0]).copy(), green]
    expected = clone(encoder).set_params(cache=None).transform(images)
    np.testing.assert_allclose(encoder.transform(paths), expected, rtol=1e-5, atol=1e-5)


def test_float16_cache_gives_the_same_features_in_every_call(encoder, paths, tmp_path):
    """Otherwise a fit would differ from a second one, which finds the features in the cache."""
    encoder = clone(encoder).set_params(cache=DiskFeatureCache(tmp_path / "cache", "float16"))
    first = encoder.transform(paths[:2])
    np.testing.assert_array_equal(encoder.transform(paths[:2]), first)
    assert not np.array_equal(clone(encoder).set_params(cache=None).transform(paths[:2]), first)


def test_duplicates_are_encoded_once(encoder, paths, truth):
    X = [paths[0], paths[1], Path(paths[0])] * 2
    assert gained(encoder, X) == (4, 2)
    features = encoder.transform(X)
    np.testing.assert_allclose(features, truth[[0, 1, 0] * 2], atol=1e-5)


def test_cached_new_repeated_and_invalid_items_are_in_their_rows(tmp_path):
    encoder = TransformersTextEncoder(cache=tmp_path, on_error="nan")
    cached = encoder.transform(TEXTS[:1])
    X = ["", TEXTS[1], TEXTS[0], "", TEXTS[1], TEXTS[0], TEXTS[2]]
    with pytest.warns(UserWarning, match="empty text"):
        features = encoder.transform(X)
    assert np.isnan(features[[0, 3]]).all()
    np.testing.assert_array_equal(features[[2, 5]], cached[[0, 0]])
    expected = TransformersTextEncoder(cache=None).transform(TEXTS)
    np.testing.assert_allclose(features[[1, 4, 6]], expected[[1, 1, 2]], atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [{"pooling": "mean"}, {"crop": "pad"}, {"output": "logits"}, {"dtype": "bfloat16"}],
)
def test_image_parameters_change_cache_key(encoder, paths, other):
    encoder.transform(paths[:1])
    assert gained(clone(encoder).set_params(**other), paths[:1]) == (0, 1)


@pytest.mark.parametrize("other", [{"normalize": False}, {"max_length": 4}, {"pooling": "cls"}])
def test_text_parameters_change_cache_key(tmp_path, other):
    encoder = TransformersTextEncoder(cache=tmp_path)
    encoder.transform(TEXTS)
    assert gained(clone(encoder).set_params(**other), TEXTS) == (0, 3)


def test_numpy_parameters_keep_cache_key(tmp_path):
    """Grids of numbers, such as `np.arange`, set parameters to NumPy scalars."""
    encoder = TransformersTextEncoder(max_length=8, normalize=True, cache=tmp_path)
    encoder.transform(TEXTS)
    params = {"max_length": np.int64(8), "normalize": np.True_}
    assert gained(clone(encoder).set_params(**params), TEXTS) == (3, 0)


@pytest.mark.parametrize(
    "other",
    [{"batch_size": 1}, {"n_jobs": 2}, {"device": "cpu"}, {"verbose": 1}, {"on_error": "nan"}],
)
def test_runtime_parameters_keep_cache_key(encoder, paths, other):
    encoder.transform(paths[:1])
    assert gained(clone(encoder).set_params(**other), paths[:1]) == (1, 0)


@pytest.mark.exhaustive
def test_killed_run_resumes(tmp_path, paths, truth):
    """Batches that were written before SIGKILL are not computed again."""
    if not hasattr(signal, "SIGKILL"):
        pytest.skip("no SIGKILL here")
    code = (
        "import os, signal, sys\n"
        "from sklearn_ape.encoders import TimmImageEncoder\n"
        "from sklearn_ape.features import DiskFeatureCache, _disk_cache\n"
        "_disk_cache._MAX_PAUSE_S = 0  # every batch is written at once\n"
        "put_many, n = DiskFeatureCache.put_many, 0\n"
        "def put_and_kill(*args):\n"
        "    global n\n"
        "    put_many(*args)\n"
        "    n += 1\n"
        "    if n == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "DiskFeatureCache.put_many = put_and_kill\n"
        "encoder = TimmImageEncoder(cache=sys.argv[1], batch_size=2, engine='torch')\n"
        "encoder.transform(sys.argv[2:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path, *paths])
    assert done.returncode == -signal.SIGKILL
    encoder = TimmImageEncoder(cache=tmp_path, batch_size=2)
    before = encoder.cache_info()
    np.testing.assert_allclose(encoder.transform(paths), truth, atol=1e-5)
    after = encoder.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (6, 6)


@pytest.mark.exhaustive
def test_damaged_cache_gives_the_right_features(encoder, paths, truth):
    encoder.transform(paths)
    file = encoder.cache / "features.sqlite"
    sound = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(3):
        damaged = np.frombuffer(sound, dtype=np.uint8).copy()
        damaged[rng.integers(len(damaged), size=len(damaged) // 4000)] ^= 0xFF
        file.write_bytes(damaged.tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_allclose(encoder.transform(paths), truth, atol=1e-5)


def test_threads_encode_each_image_once(encoder, paths, truth):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(clone(encoder).transform(paths)))
        for _ in range(3)
    ]
    before = encoder.cache_info()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert encoder.cache_info().misses - before.misses == len(paths)
    for features in results:
        np.testing.assert_allclose(features, truth, atol=1e-5)


@pytest.mark.exhaustive
def test_threads_share_a_tokenizer():
    """Encoders with different parameters can use one tokenizer in threads."""
    lengths = [3, 8, None]
    texts = [f"the text number {i} " * (1 + i % 5) for i in range(24)]
    features = {}
    encoders = [
        TransformersTextEncoder(max_length=length, cache=None, batch_size=4) for length in lengths
    ]
    expected = [encoder.transform(texts) for encoder in encoders]

    def encode(i):
        features[i] = encoders[i].transform(texts)

    threads = [threading.Thread(target=encode, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(3):
        np.testing.assert_allclose(features[i], expected[i], atol=1e-5)


def test_on_error_raise_keeps_finished_batches(encoder, paths, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(paths[3]).read_bytes()[:200])
    with pytest.raises(EncodingError, match=r"row 5: .*damaged or cut short"):
        encoder.set_params(batch_size=2).transform([*paths[:5], cut])
    assert gained(encoder, paths[:5]) == (5, 0)


def test_counts_and_locks_are_bounded(monkeypatch):
    monkeypatch.setattr(_encoding, "_cache_counts", LRUCache(max_entries=3))
    for length in range(4, 10):
        encoder = TransformersTextEncoder(max_length=length, cache=None)
        encoder.transform(["a cat"])
    assert len(_encoding._cache_counts) == 3
    assert encoder.cache_info() == (0, 1)
    assert TransformersTextEncoder(max_length=4).cache_info() == (0, 0)
    gc.collect()
    assert not _encoding._locks_by_weights
