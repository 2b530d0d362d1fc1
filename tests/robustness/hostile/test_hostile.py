"""Hostile images and texts: the right result or one clear error, in bounded time and memory."""

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
from sklearn_ape.encoders.images import image_digest, read_image
from sklearn_ape.encoders.items import ItemError
from sklearn_ape.prompts import prompts_of, resolve_names
from tests.robustness.hostile.cases import as_bytes, base_image
from tests.robustness.hostile.corpus import batch_outcomes, corpus, outcomes
from tests.robustness.hostile.fuzz import FUZZERS


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What became of every case, each read in a child process."""
    return outcomes(str(tmp_path_factory.mktemp("hostile")))


def test_every_case_is_tried(done):
    """Nothing is lost on the way, and good images are among the cases as well as bad ones."""
    assert len(done) > 600
    assert len({outcome.name for outcome in done}) == len(done)
    kinds = Counter(outcome.kind for outcome in done)
    assert kinds["right"] > 200
    assert kinds["error"] > 200


@pytest.mark.parametrize("kind", ["crash", "hang", "greedy", "unclear", "wrong"])
def test_nothing_else_happens(done, kind):
    """No exception but ours, no dead process, no wrong pixels, no endless wait, no full memory."""
    assert [outcome for outcome in done if outcome.kind == kind] == []


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
def test_good_ones_are_as_if_alone_and_errors_name_the_bad_ones(tmp_path, monkeypatch):
    """`errors_` names exactly the bad rows, which are NaN; the others are those of the image."""
    monkeypatch.chdir(tmp_path)
    cases = [case for case in corpus(str(tmp_path)) if not case.large]
    done = batch_outcomes(cases)
    assert [outcome for outcome in done if outcome.kind not in ("right", "error")] == []
    kinds = Counter(outcome.kind for outcome in done)
    assert kinds["right"] > 200
    assert kinds["error"] > 200


class TestFiles:
    """Paths that lead to no ordinary file."""

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe with a name")
    def test_reading_a_pipe_does_not_wait_for_a_writer(self, tmp_path):
        """Figures read images without an encoder's digest before: for ever, from a pipe."""
        os.mkfifo(tmp_path / "pipe.png")

        def waited_for_ever(*_):
            raise TimeoutError

        before = signal.signal(signal.SIGALRM, waited_for_ever)
        signal.alarm(10)
        try:
            with pytest.raises(ItemError, match="is a pipe"):
                read_image(tmp_path / "pipe.png")
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    def test_a_large_file_is_looked_at_before_it_is_read(self, tmp_path):
        """A terabyte of zeros takes no room on a disk, and once took all memory."""
        path = tmp_path / "sparse.png"
        path.write_bytes(b"")
        os.truncate(path, 2**40)
        with pytest.raises(ItemError, match="not an image"):
            image_digest(path)

    def test_digest_of_a_large_file_is_that_of_its_bytes(self, tmp_path, monkeypatch):
        """Files are read in pieces: caches filled before hold."""
        data = as_bytes(base_image(300, 200), "BMP")
        path = tmp_path / "a.bmp"
        path.write_bytes(data)
        monkeypatch.setattr(_images, "_LARGE_FILE", 100)
        monkeypatch.setattr(_images, "_READ_AT_ONCE", 1000)
        assert image_digest(path) == image_digest(data)

    def test_postscript_is_not_run(self, tmp_path, monkeypatch):
        """Pillow hands EPS to Ghostscript, and that is to run a stranger's program."""
        from PIL import EpsImagePlugin

        monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: 1 / 0)
        data = as_bytes(base_image(), "EPS")
        with pytest.raises(ItemError, match="PostScript"):
            read_image(data)


class TestPixels:
    """Images that were refused, misread or took too much memory."""

    @pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
    def test_damaged_exif_does_not_cost_the_image(self, form):
        """A JPEG went through, a PNG and a WebP were called damaged."""
        image = base_image()
        data = as_bytes(image, form, exif=b"Exif\0\0junk")
        assert read_image(data).size == image.size

    def test_a_clear_grey_of_a_16_bit_png_is_white(self):
        """As it is in one of 8 bits."""
        values = np.array([[0, 1000, 65535]], np.uint16)
        data = as_bytes(Image.fromarray(values), "PNG", transparency=1000)
        assert np.asarray(read_image(data))[0, :, 0].tolist() == [0, 255, 255]

    def test_image_without_pixels(self):
        """It was a division by zero in the middle of a batch."""
        with pytest.raises(ItemError, match="0 x 0 pixels"):
            read_image(Image.new("RGB", (0, 0)))

    def test_memory_is_named_where_it_is_short(self, monkeypatch):
        """It was called damage."""

        def fails(image):
            raise MemoryError

        monkeypatch.setattr(_images, "_to_rgb", fails)
        with pytest.raises(ItemError, match=r"does not fit into memory .40 x 30 pixels"):
            read_image(as_bytes(base_image(), "PNG"))

    def test_a_long_image_is_not_padded_to_gigabytes(self):
        """A square around 20,000 x 300 pixels has 400 million of them."""
        image = Image.new("RGB", (20_000, 300), "black")
        square = _pad_to_square(image)
        assert square.width == square.height <= 8192
        dark = np.flatnonzero(np.asarray(square)[:, 5, 0] < 128)
        assert len(dark) / square.height == pytest.approx(300 / 20_000, rel=0.05)

    def test_ordinary_images_are_padded_as_ever(self):
        """Up to thousands of pixels nothing is reduced."""
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
            ({"a": {"k": 1}, "b": "c"}, "must be texts"),
        ],
    )
    def test_labels_that_an_array_would_change(self, labels, message):
        """Of "a" and "a" with a NUL, numpy made two classes of one name; of tuples, a table."""
        with pytest.raises(ValueError, match=message):
            resolve_names(labels)

    def test_a_label_is_not_put_into_itself(self):
        """A class called "a {}" was described as "a a {}"."""
        assert prompts_of("a {}", ["a {}"], ["{}", "see {}"]) == ["a {}", "see a {}"]


class TestTexts:
    """Captions, and tables of them."""

    @pytest.mark.parametrize("text", ["\0", "\u200b", "\ufeff", "\u202e", " \x1b\n"])
    def test_a_text_that_nobody_can_see_is_empty(self, text):
        """All of them had one and the same feature, that of no words."""
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
    def test_damaged_tables_are_named(self, tmp_path, name, data):
        """They ended in a RecursionError of json and an OSError of pyarrow."""
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}' cannot be read as"):
            load_pairs(tmp_path / name)


_EXAMPLES = {
    "image bytes": 200,
    "captions": 12,
    "labels and templates": 12,
    "tables": 120,
    "folders": 60,
    "saved models, what they say": 150,
    "saved models, their bytes": 150,
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("entrance", FUZZERS)
def test_right_or_refused(entrance):
    """What is made up is taken as it is meant or refused in words; both happen."""
    found = FUZZERS[entrance](_EXAMPLES[entrance])
    assert found["right"] > 0
    assert found["error"] > 0
