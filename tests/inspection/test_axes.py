"""Text and axes that all displays share."""

import sys

import pytest
from matplotlib import pyplot

from sklearn_ape.inspection._plotting import axes_for, plain


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
