"""Axes, inputs and thumbnails of displays."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_ape import CCAAligner
from sklearn_ape.inspection._plotting import (
    aligner_and_input,
    axes_for,
    check_names,
    checked_pairs,
    draw_thumbnail,
    plain,
    thumbnail,
)


class TestPlain:
    # A glyph that no font has is a box, of which matplotlib tells.
    @pytest.mark.filterwarnings("ignore:Glyph", "ignore:No artists")
    @pytest.mark.parametrize(
        "text",
        [
            "$5 and $6",
            r"\frac{1}{2} $\bad$ ^ _",
            "_hidden",
            "two\nlines\ttab",
            "nul \x00 surrogate \ud800",
            "خط 汉字 ½",
            "",
            7,
        ],
    )
    def test_any_text_is_drawn(self, text, ax):
        """Captions are other people's: none of them stops the figure."""
        ax.set_title(plain(text, 60))
        ax.plot([0, 1], label=plain(text))
        ax.legend()
        ax.figure.canvas.draw()

    def test_dollars_and_underscores_are_shown_as_they_are(self, ax):
        from matplotlib.cbook import is_math_text

        title = ax.set_title(plain("$a_b$ costs $5"))
        assert not is_math_text(title.get_text())
        ax.plot([0, 1], label=plain("_a"))
        assert [text.get_text() for text in ax.legend().get_texts()] == [" _a"]

    def test_long_text_is_cut_and_said_to_be(self):
        assert plain("a very long caption", 10) == "a very…"
        assert plain("one two three four five", 9, 2) == "one two\nthree…"
        assert len(plain("x" * 100, 10)) <= 10


class TestAxes:
    def test_one_axes_is_asked_for(self):
        with pytest.raises(TypeError, match=r"pass one, such as axes\[0\]"):
            axes_for(pyplot.subplots(1, 2)[1], 3, 3)

    def test_a_figure_is_never_larger_than_can_be_drawn(self):
        assert max(axes_for(None, 5000, 10).figure.get_size_inches()) <= 40

    def test_without_matplotlib_the_remedy_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r'pip install "sklearn-ape\[plots\]"'):
            axes_for(None, 3, 3)


@pytest.fixture
def pipeline(concepts):
    return make_pipeline(StandardScaler(), CCAAligner()).fit(concepts.image, concepts.text)


def test_steps_before_the_aligner_are_taken(pipeline, concepts):
    X = pipeline[0].transform(concepts.image)
    for holder in (pipeline, FrozenEstimator(pipeline)):
        aligner, given = aligner_and_input(holder, concepts.image)
        assert aligner is pipeline[-1]
        np.testing.assert_array_equal(given, X)


def test_the_best_of_a_search(concepts):
    search = GridSearchCV(CCAAligner(), {"ridge": [0.1, 1.0]}, cv=2)
    search.fit(concepts.image, concepts.text)
    aligner, given = aligner_and_input(search, concepts.image)
    assert aligner is search.best_estimator_
    assert given is concepts.image


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0.5, 1.0]], r"integers of shape \(n_pairs, 2\), not float64"),
        ([[0, 1, 2]], r"not int64 of shape \(1, 3\)"),
        ([[0, 0], [1, 7]], r"Pair 1 is of rows \[1, 7\]"),
        (None, "3 images and 2 texts"),
    ],
)
def test_pairs_that_do_not_fit(pairs, message):
    with pytest.raises(ValueError, match=message):
        checked_pairs(pairs, 3, 2)


def test_no_pairs_are_none():
    assert checked_pairs([], 3, 2).shape == (0, 2)


def test_names_that_do_not_fit():
    with pytest.raises(ValueError, match="captions is a single text, not a sequence"):
        check_names("cat", 3, "captions", "text")
    with pytest.raises(ValueError, match="There are 2 captions for 3 texts"):
        check_names(["a", "b"], 3, "captions", "text")


class TestThumbnail:
    def test_every_form_of_one_image_gives_one_thumbnail(self, captioned_images):
        path = captioned_images.images[0]
        image = Image.open(path)
        forms = [
            path,
            Path(path),
            Path(path).read_bytes(),
            image,
            np.asarray(image.convert("RGB")),
        ]
        for form in forms:
            np.testing.assert_array_equal(thumbnail(form), thumbnail(path))

    @pytest.mark.parametrize("bad", [None, "nowhere.png", b"", b"text", 7, np.zeros((3, 4, 5))])
    def test_what_cannot_be_read_is_grey(self, bad):
        assert (thumbnail(bad, 8) == 200).all()

    def test_transparency_is_white_and_the_whole_image_is_seen(self):
        buffer = io.BytesIO()
        wide = Image.new("RGBA", (64, 16), (0, 0, 0, 0))
        wide.paste((255, 0, 0, 255), (0, 0, 8, 16))
        wide.save(buffer, "PNG")
        small = thumbnail(buffer.getvalue(), 32)
        assert small.shape == (32, 32, 3)
        assert small[16, 1].tolist() == [255, 0, 0]
        assert small[16, 30].tolist() == small[0, 0].tolist() == [255, 255, 255]

    def test_an_image_stands_upright_whichever_way_the_axis_points(self, ax):
        top_red = np.zeros((10, 10, 3), np.uint8)
        top_red[:5] = [255, 0, 0]
        for inverted in (False, True):
            ax.set(xlim=(-1, 1), ylim=(1, -1) if inverted else (-1, 1))
            draw_thumbnail(ax, top_red, (0, 0), 1.0)
            figure = ax.figure
            figure.canvas.draw()
            seen = np.asarray(figure.canvas.buffer_rgba())
            x, y = ax.transAxes.transform((0.5, 0.65))
            assert seen[seen.shape[0] - int(y), int(x), :3].tolist() == [255, 0, 0]
