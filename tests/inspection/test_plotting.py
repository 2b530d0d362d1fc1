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

from sklearn_ape import CCAAligner, ZeroShotClassifier
from sklearn_ape.inspection import (
    EmbeddingMapDisplay,
    RecallCurveDisplay,
    SimilarityMatrixDisplay,
    TrainingHistoryDisplay,
)
from sklearn_ape.inspection._plotting import (
    check_pairs,
    draw_thumbnail,
    format_text,
    get_aligner_and_input,
    get_axes,
    make_thumbnail,
)


def test_classifier_in_place_of_an_aligner_raises():
    """The message said nothing about a classifier that was not fitted."""
    classifier = ZeroShotClassifier(["cat", "dog"])
    with pytest.raises(TypeError, match=r"^estimator must be .*Classifier\. Pass its aligner\.$"):
        get_aligner_and_input(classifier, [])
    search = GridSearchCV(classifier, {"templates": ["none"]})
    with pytest.raises(TypeError, match=r"Pass the ZeroShotClassifier's aligner\.$"):
        TrainingHistoryDisplay.from_estimator(search)


class TestFormatText:
    # Matplotlib warns about characters without a glyph.
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
    def test_any_text_can_be_drawn(self, text, ax):
        """Captions are user data, and none of them may prevent a figure."""
        ax.set_title(format_text(text, 60))
        ax.plot([0, 1], label=format_text(text))
        ax.legend()
        ax.figure.canvas.draw()

    def test_dollars_and_underscores_are_literal(self, ax):
        from matplotlib.cbook import is_math_text

        title = ax.set_title(format_text("$a_b$ costs $5"))
        assert not is_math_text(title.get_text())
        ax.plot([0, 1], label=format_text("_a"))
        assert [text.get_text() for text in ax.legend().get_texts()] == [" _a"]

    def test_long_text_ends_in_ellipsis(self):
        assert format_text("a very long caption", 10) == "a very…"
        assert format_text("one two three four five", 9, 2) == "one two\nthree…"
        # Also texts without spaces: names of files, and captions in Chinese.
        assert format_text("x" * 100, 10) == "x" * 9 + "…"
        assert format_text("x" * 100, 4, 2) == "xxxx\nxxx…"


class TestAxes:
    def test_several_axes_raise(self):
        with pytest.raises(TypeError, match=r"pass one of them, such as axes\[0\]"):
            get_axes(pyplot.subplots(1, 2)[1], 3, 3)

    def test_figure_size_is_limited(self):
        assert max(get_axes(None, 5000, 10).figure.get_size_inches()) <= 40

    def test_missing_matplotlib_raises_with_install_command(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r'pip install "sklearn-ape\[plots\]"'):
            get_axes(None, 3, 3)

    @pytest.mark.parametrize(
        "display",
        [
            EmbeddingMapDisplay(np.eye(2), np.eye(2), axis_names=("1", "2")),
            RecallCurveDisplay(np.array([1]), {"image_to_text": np.array([1.0])}),
            SimilarityMatrixDisplay(np.eye(2)),
            TrainingHistoryDisplay([{"epoch": 1, "train_loss": 1.0}]),
        ],
        ids=lambda display: type(display).__name__,
    )
    def test_displays_check_for_matplotlib_before_importing_it(self, display, monkeypatch):
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=r'pip install "sklearn-ape\[plots\]"'):
            display.plot()


@pytest.fixture
def pipeline(concepts):
    return make_pipeline(StandardScaler(), CCAAligner()).fit(concepts.image, concepts.text)


def test_steps_before_the_aligner_are_applied(pipeline, concepts):
    X = pipeline[0].transform(concepts.image)
    for holder in (pipeline, FrozenEstimator(pipeline)):
        aligner, features = get_aligner_and_input(holder, concepts.image)
        assert aligner is pipeline[-1]
        np.testing.assert_array_equal(features, X)


def test_best_estimator_of_search_is_used(concepts):
    search = GridSearchCV(CCAAligner(), {"ridge": [0.1, 1.0]}, cv=2)
    search.fit(concepts.image, concepts.text)
    aligner, features = get_aligner_and_input(search, concepts.image)
    assert aligner is search.best_estimator_
    assert features is concepts.image


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0.5, 1.0]], r"pair 0 is \[0.5, 1.0\]. Pass row numbers of images and texts"),
        ([[0, 1, 2]], r"shape \(n_pairs, 2\), not \(1, 3\)"),
        ([[0, 0], [1, 7]], "pairs has the rows 1 and 7 in pair 1, but there are 3 images and 2"),
        (np.eye(3, 2, dtype=bool), "np.argwhere.* for a matrix of images by texts"),
        (None, "3 images and 2 texts"),
    ],
)
def test_invalid_pairs_raise(pairs, message):
    with pytest.raises(ValueError, match=message):
        check_pairs(pairs, 3, 2)


def test_empty_pairs_are_allowed():
    assert check_pairs([], 3, 2).shape == (0, 2)


class TestThumbnail:
    def test_forms_of_one_image_give_equal_thumbnails(self, captioned_images):
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
            np.testing.assert_array_equal(make_thumbnail(form), make_thumbnail(path))

    @pytest.mark.parametrize("item", [None, "nowhere.png", b"", b"text", 7, np.zeros((3, 4, 5))])
    def test_unreadable_image_is_grey(self, item):
        assert (make_thumbnail(item, 8) == 200).all()

    def test_transparent_image_is_padded_with_white(self):
        buffer = io.BytesIO()
        wide = Image.new("RGBA", (64, 16), (0, 0, 0, 0))
        wide.paste((255, 0, 0, 255), (0, 0, 8, 16))
        wide.save(buffer, "PNG")
        small = make_thumbnail(buffer.getvalue(), 32)
        assert small.shape == (32, 32, 3)
        assert small[16, 1].tolist() == [255, 0, 0]
        assert small[16, 30].tolist() == small[0, 0].tolist() == [255, 255, 255]

    def test_thumbnail_is_upright_on_inverted_axis(self, ax):
        top_red = np.zeros((10, 10, 3), np.uint8)
        top_red[:5] = [255, 0, 0]
        for inverted in (False, True):
            ax.set(xlim=(-1, 1), ylim=(1, -1) if inverted else (-1, 1))
            draw_thumbnail(ax, top_red, (0, 0), 1.0)
            figure = ax.figure
            figure.canvas.draw()
            pixels = np.asarray(figure.canvas.buffer_rgba())
            x, y = ax.transAxes.transform((0.5, 0.65))
            assert pixels[pixels.shape[0] - int(y), int(x), :3].tolist() == [255, 0, 0]
