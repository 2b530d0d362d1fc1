"""Aligners on memory maps: results equal those in memory, and memory is bounded."""

import subprocess
import sys

import numpy as np
import pytest

from sklearn_ape import APEAligner, ASIFAligner, CCAAligner, KernelAligner, LiTAligner
from sklearn_ape.aligners import kernel
from sklearn_ape.encoders import HeadPairs
from sklearn_ape.features import matrix
from sklearn_ape.features.matrix import StoredRows

SMALL = {"width": 64, "max_epochs": 6, "random_state": 0, "batch_size": 64}
ALIGNERS = {
    "plain": APEAligner(init=None, **SMALL),
    "plain, few components": APEAligner(init=None, n_components=8, **SMALL),
    "linear start": APEAligner(init="linear", side="both", early_stopping=False, **SMALL),
    "kernel start": APEAligner(init="kernel", early_stopping=False, **SMALL),
    "blend": APEAligner(early_stopping=False, **SMALL),
    "kernel": KernelAligner(),
    "kernel of merged captions": KernelAligner(),
    "Nystroem": KernelAligner(max_anchors=40),
    "cca": CCAAligner(),
    "asif": ASIFAligner(),
}


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """Return a function that writes an array and maps it; maps of any size are streamed."""
    monkeypatch.setattr(matrix, "_MIN_STORED_BYTES", 0)
    monkeypatch.setattr(matrix, "_BLOCK_SIZE", 64)

    def save(array):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"
        np.save(path, array)
        return np.load(path, mmap_mode="r")

    return save


class TestResults:
    @pytest.mark.sampled(5)
    @pytest.mark.parametrize("name", ALIGNERS)
    def test_results_equal_those_in_memory(self, concepts, mapped, monkeypatch, name):
        image, text = concepts.image.copy(), concepts.text.copy()
        image[10:20], text[30:40] = image[:10], text[20:30]  # equal rows
        maps = mapped(image), mapped(text)
        aligner = ALIGNERS[name]
        limit = 150 if name == "kernel of merged captions" else 1000
        monkeypatch.setattr(kernel, "count_fitting_anchors", lambda device: limit)
        stored = aligner.fit(*maps)
        actual = (
            stored.transform(maps[0]),
            stored.transform_text(maps[1]),
            stored.similarity(*maps),
            stored.similarity(*maps, standardize=True),
            stored.score(*maps),
        )
        monkeypatch.undo()
        monkeypatch.setattr(kernel, "count_fitting_anchors", lambda device: limit)
        in_memory = aligner.fit(image, text)
        expected = (
            in_memory.transform(image),
            in_memory.transform_text(text),
            in_memory.similarity(image, text),
            in_memory.similarity(image, text, standardize=True),
            in_memory.score(image, text),
        )
        for stored_result, result in zip(actual, expected, strict=True):
            np.testing.assert_allclose(stored_result, result, atol=2e-3)
        if name == "plain":
            assert stored.fingerprint_ == in_memory.fingerprint_

    @pytest.mark.exhaustive
    def test_half_precision_is_accepted(self, concepts, mapped, monkeypatch):
        image, text = concepts.image.astype(np.float16), concepts.text.astype(np.float16)
        stored = APEAligner(init=None, **SMALL).fit(mapped(image), text)
        monkeypatch.undo()
        in_memory = APEAligner(init=None, **SMALL).fit(image, text)
        assert stored.fingerprint_ == in_memory.fingerprint_

    def test_one_side_in_memory_gives_equal_results(self, concepts, mapped):
        both = CCAAligner().fit(mapped(concepts.image), mapped(concepts.text))
        for sides in (
            (mapped(concepts.image), concepts.text.tolist()),
            (concepts.image, mapped(concepts.text)),
        ):
            one = CCAAligner().fit(*sides)
            np.testing.assert_allclose(one.correlations_, both.correlations_, rtol=1e-6)

    def test_head_pairs_are_appended_to_stored_features(self, concepts, mapped, monkeypatch):
        rng = np.random.default_rng(1)
        weights = rng.standard_normal((5, 32))
        texts = np.concatenate([concepts.text[:1], rng.standard_normal((4, 16))])
        aligner = KernelAligner(head_pairs=HeadPairs(weights, texts.astype(np.float32), None))
        stored = aligner.fit(mapped(concepts.image), mapped(concepts.text))
        embeddings = stored.transform(concepts.image[:9])
        monkeypatch.undo()
        expected = aligner.fit(concepts.image, concepts.text).transform(concepts.image[:9])
        np.testing.assert_allclose(embeddings, expected, atol=1e-4)

    @pytest.mark.exhaustive
    def test_lit_accepts_stored_images(self, features, captioned_images, mapped):
        lit = LiTAligner(
            text_encoder="all-MiniLM-L6-v2",
            unlocked_layers=0,
            max_epochs=1,
            early_stopping=False,
            random_state=0,
        )
        lit.fit(mapped(features.image[:20]), captioned_images.captions[:20])
        assert lit.transform(mapped(features.image[:3])).shape == (3, 1280)


class TestInvalidRows:
    def test_row_with_nan_or_infinity_raises(self, concepts, mapped):
        image = concepts.image.copy()
        image[[270, 290], 3] = np.inf, -np.inf
        with pytest.raises(ValueError, match=r"Input X contains infinity .*first in row 270"):
            CCAAligner().fit(mapped(image), concepts.text)
        image[270] = 0
        image[280, 1] = np.nan
        with pytest.raises(ValueError, match=r"contains infinity .*first in row 290"):
            CCAAligner().fit(mapped(image), concepts.text)
        image[290] = 0
        with pytest.raises(ValueError, match=r"Input X contains NaN in 1 row .row 280."):
            CCAAligner().fit(mapped(image), concepts.text)

    def test_rows_that_failed_to_encode_are_left_out_and_nan(self, concepts, mapped):
        image = concepts.image.copy()
        image[[7, 200]] = np.nan
        with pytest.warns(UserWarning, match=r"left out \(2 of .*: 7, 200\."):
            aligner = CCAAligner().fit(mapped(image), mapped(concepts.text))
        embeddings = aligner.transform(mapped(image))
        assert np.flatnonzero(np.isnan(embeddings).any(axis=1)).tolist() == [7, 200]
        similarity = aligner.similarity(mapped(image), concepts.text[:4])
        assert np.flatnonzero(np.isnan(similarity).any(axis=1)).tolist() == [7, 200]

    def test_inconsistent_shapes_raise(self, concepts, mapped):
        aligner = CCAAligner().fit(mapped(concepts.image), mapped(concepts.text))
        with pytest.raises(ValueError, match="5 features, but CCAAligner is expecting 32"):
            aligner.transform(mapped(concepts.image[:, :5]))
        with pytest.raises(ValueError, match="5 features, but CCAAligner was fitted with 16"):
            aligner.transform_text(mapped(concepts.text[:, :5]))
        with pytest.raises(ValueError, match="300 images and 299 rows of captions"):
            CCAAligner().fit(mapped(concepts.image), mapped(concepts.text[:-1]))


def test_split_of_pairs_reads_no_features(concepts, mapped):
    """A validation split that copied the training features would fill the memory."""
    from sklearn_ape.aligners.pairs import EncodedPairs, make_distinct_pairs
    from sklearn_ape.training.data import subset

    sides = (StoredRows(mapped(side)) for side in (concepts.image, concepts.text))
    image, text = sides
    rows = np.arange(300)
    data = make_distinct_pairs(EncodedPairs(image, text, rows, rows))
    assert data.image is image
    part = subset(data, np.arange(1, 300, 2))
    assert isinstance(part.image, StoredRows)
    np.testing.assert_array_equal(part.image[:], concepts.image[1::2])


MEMORY = """
import sys, threading, time
import numpy as np
from sklearn_ape import APEAligner

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

image = np.load(sys.argv[1], mmap_mode="r")
text = np.random.default_rng(1).standard_normal((len(image), 8), dtype=np.float32)
shape = {"init": None, "side": "both", "width": 8, "n_components": 8, "max_epochs": 1,
         "random_state": 0, "refit": False}
APEAligner(**shape).fit(image[:2000].astype(np.float32), text[:2000])  # what imports take
before, most, ended = resident(), 0, False
def watch():
    global most
    while not ended:
        most = max(most, resident())
        time.sleep(0.01)
watcher = threading.Thread(target=watch)
watcher.start()
aligner = APEAligner(**shape).fit(image, text)
embeddings = aligner.transform(image)
ended = True
watcher.join()
print(most - before)
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_map(tmp_path):
    """A map of 307 MB (614 MB as float32): copies and mapped pages would exceed the limit."""
    path = tmp_path / "image.npy"
    image = np.lib.format.open_memmap(path, "w+", np.float16, (60_000, 2560))
    block = np.random.default_rng(0).standard_normal((5000, 2560)).astype(np.float16)
    for number in range(12):
        image[5000 * number : 5000 * (number + 1)] = block
        image[5000 * number : 5000 * (number + 1), 0] = number  # no two rows are equal
    del image
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 400, f"{done.stdout} MiB"
