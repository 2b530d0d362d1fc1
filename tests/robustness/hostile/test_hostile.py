"""Hostile images and texts give correct results or clear errors in bounded time and memory."""

import os
import signal
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from sklearn_ape.datasets import load_pairs
from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.encoders import images as _images
from sklearn_ape.encoders.image_encoder import _pad_to_square
from sklearn_ape.encoders.images import digest_image, read_image
from sklearn_ape.encoders.items import ItemError
from sklearn_ape.prompts import prompts_of, resolve_flat_names
from tests.robustness.hostile.cases import as_bytes, base_image
from tests.robustness.hostile.corpus import batch_outcomes, corpus, outcomes
from tests.robustness.hostile.fuzz import FUZZERS


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return the outcomes of all cases, which are read in a child process."""
    return outcomes(str(tmp_path_factory.mktemp("hostile")))


@pytest.mark.exhaustive
def test_every_case_has_an_outcome(done):
    """There are many valid and many invalid images among the cases."""
    assert len(done) > 600
    assert len({outcome.name for outcome in done}) == len(done)
    kinds = Counter(outcome.kind for outcome in done)
    assert kinds["right"] > 200
    assert kinds["error"] > 200


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["crash", "hang", "greedy", "unclear", "wrong"])
def test_no_case_fails(done, kind):
    """Reading never ends in a crash, a hang, too much memory, wrong pixels or an unclear error."""
    assert [outcome for outcome in done if outcome.kind == kind] == []


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
def test_batch_gives_features_of_valid_images_and_errors_of_others(tmp_path, monkeypatch):
    """`errors_` names the invalid rows, which are NaN; other rows are those of the image alone."""
    monkeypatch.chdir(tmp_path)
    cases = [case for case in corpus(str(tmp_path)) if not case.large]
    done = batch_outcomes(cases)
    assert [outcome for outcome in done if outcome.kind not in ("right", "error")] == []
    kinds = Counter(outcome.kind for outcome in done)
    assert kinds["right"] > 200
    assert kinds["error"] > 200


class TestFiles:
    """Paths of special and very large files."""

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe with a name")
    def test_reading_a_pipe_raises_without_waiting(self, tmp_path):
        """Displays read images without computing a digest first, and would wait for a writer."""
        os.mkfifo(tmp_path / "pipe.png")

        def raise_timeout(*_):
            raise TimeoutError

        before = signal.signal(signal.SIGALRM, raise_timeout)
        signal.alarm(10)
        try:
            with pytest.raises(ItemError, match="is a pipe"):
                read_image(tmp_path / "pipe.png")
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    def test_large_file_is_checked_before_it_is_read(self, tmp_path):
        """A sparse file of one terabyte needs no disk space, but would fill the memory."""
        path = tmp_path / "sparse.png"
        path.write_bytes(b"")
        os.truncate(path, 2**40)
        with pytest.raises(ItemError, match="not an image"):
            digest_image(path)

    def test_digest_of_large_file_is_that_of_its_bytes(self, tmp_path, monkeypatch):
        """Large files are read in blocks, and existing cache entries must remain valid."""
        data = as_bytes(base_image(600, 500), "BMP")
        path = tmp_path / "a.bmp"
        path.write_bytes(data)
        monkeypatch.setattr(_images, "_LARGE_FILE", 100)
        assert digest_image(path) == digest_image(data)

    def test_postscript_is_not_run(self, tmp_path, monkeypatch):
        """Pillow would run the PostScript program of an EPS file in Ghostscript."""
        from PIL import EpsImagePlugin

        monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: 1 / 0)
        data = as_bytes(base_image(), "EPS")
        with pytest.raises(ItemError, match="PostScript"):
            read_image(data)


class TestPixels:
    """Images that are easily rejected, misread or padded to too much memory."""

    @pytest.mark.parametrize("damage", [b"junk", b"II*\0\xff\xff\xff"])
    @pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
    def test_damaged_exif_is_ignored(self, form, damage):
        """Pillow raises an error for damaged Exif data in PNG and WebP, but not in JPEG."""
        image = base_image()
        data = as_bytes(image, form, exif=b"Exif\0\0" + damage)
        assert read_image(data).size == image.size

    def test_transparent_grey_of_16_bit_png_is_white(self):
        """The result is the same as for a PNG of 8 bits."""
        values = np.array([[0, 1000, 65535]], np.uint16)
        data = as_bytes(Image.fromarray(values), "PNG", transparency=1000)
        assert np.asarray(read_image(data))[0, :, 0].tolist() == [0, 255, 255]

    def test_image_without_pixels_raises(self):
        """Resizing would divide by zero in the middle of a batch."""
        with pytest.raises(ItemError, match="0 x 0 pixels"):
            read_image(Image.new("RGB", (0, 0)))

    def test_memory_error_is_reported_with_size(self, monkeypatch):
        """A lack of memory is not reported as a damaged image."""

        def fails(image, tags):
            raise MemoryError

        monkeypatch.setattr(_images, "_to_rgb", fails)
        with pytest.raises(ItemError, match=r"does not fit into memory .40 x 30 pixels"):
            read_image(as_bytes(base_image(), "PNG"))

    def test_long_image_is_reduced_before_padding(self):
        """A square around an image of 20,000 x 300 pixels has 400 million pixels."""
        image = Image.new("RGB", (20_000, 300), "black")
        square = _pad_to_square(image)
        assert square.width == square.height <= 8192
        dark = np.flatnonzero(np.asarray(square)[:, 5, 0] < 128)
        assert len(dark) / square.height == pytest.approx(300 / 20_000, rel=0.05)

    def test_ordinary_image_is_padded_without_reduction(self):
        """Images with sides of up to 8,192 pixels are not reduced."""
        assert _pad_to_square(Image.new("RGB", (8000, 100))).size == (8000, 8000)


class TestNames:
    """Names of classes."""

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (["a", "a\0"], "ends in a NUL"),
            ({"a": "x", "b\0": "y"}, "ends in a NUL"),
            ([b"cat", b"dog"], "of type bytes. Decode it"),
            ([("a", "b"), ("c", "d")], "of type tuple"),
            ([["a"], ["b"]], "of type list"),
            ({"a": {"k": 1}, "b": "c"}, "is a hierarchy"),
            ({"a": [1], "b": "c"}, "must be texts"),
        ],
    )
    def test_labels_that_numpy_would_change_raise(self, labels, message):
        """NumPy drops a trailing NUL, and makes a two-dimensional array of tuples."""
        with pytest.raises(ValueError, match=message):
            resolve_flat_names(labels)

    def test_name_with_placeholder_is_not_inserted_into_itself(self):
        """The prompt of a class named "a {}" is not "a a {}"."""
        assert prompts_of("a {}", ["a {}"], ["{}", "see {}"]) == ["a {}", "see a {}"]


class TestTexts:
    """Captions and tables of captions."""

    @pytest.mark.parametrize("text", ["\0", "\u200b", "\ufeff", "\u202e", " \x1b\n"])
    def test_invisible_text_is_reported_as_empty(self, text):
        """All invisible texts would have the feature of the empty text."""
        encoder = TransformersTextEncoder(cache=None, on_error="nan")
        with pytest.warns(UserWarning, match="is an empty text"):
            encoder.transform([text, "a cat", f"a{text}cat"])
        assert list(encoder.errors_) == [0]

    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("deep.jsonl", b'{"image": ' + b"[" * 100_000),
            ("damaged.parquet", b"PAR1" + bytes(100) + b"PAR1"),
        ],
    )
    def test_damaged_table_raises_with_its_path(self, tmp_path, name, data):
        """json raises a RecursionError and pyarrow an OSError, which are converted."""
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}' cannot be read as"):
            load_pairs(tmp_path / name)


_EXAMPLES = {
    "image bytes": 200,
    "captions": 12,
    "labels and templates": 12,
    "tables": 120,
    "folders": 60,
    "saved models, configs": 150,
    "saved models, bytes": 150,
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("input_name", FUZZERS)
def test_fuzzed_input_gives_correct_result_or_error(input_name):
    """Both results and errors occur among the examples."""
    counts = FUZZERS[input_name](_EXAMPLES[input_name])
    assert counts["right"] > 0
    assert counts["error"] > 0
