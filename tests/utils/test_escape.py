"""Escaping of text for terminals, Markdown and spreadsheets."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sklearn_ape.utils.messages import (
    escape_controls,
    escape_formula,
    escape_formula_path,
    escape_markdown,
    unescape_formula,
)

# Any character, including surrogates.
TEXTS = st.text(st.characters(), max_size=20)
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
MARKDOWN = st.lists(
    st.sampled_from(
        [*r"\`*_[]()<>|~$&:!#-+.@ ", "a", "3", "http://x.org", "![", "](", "www.x.org", "<b>"]
    ),
    max_size=12,
).map("".join)


class TestControls:
    @given(TEXTS)
    def test_no_control_reordering_or_undecodable_character_remains(self, text):
        for character in escape_controls(text):
            category = unicodedata.category(character)
            assert category not in ("Cc", "Cs", "Zl", "Zp")
            assert category != "Cf" or character in "\u200c\u200d"

    @pytest.mark.parametrize(
        "text", ["naïve 日本 5\u00a0°C.jpg", "👨\u200d👩\u200d👧", "می\u200cخواهم", "C:\\photos"]
    )
    def test_printable_text_in_any_script_is_unchanged(self, text):
        assert escape_controls(text) == text

    def test_escapes_are_those_of_python_literals(self):
        assert escape_controls("\x1b[31m\n\u202e\x9b\u2028") == r"\x1b[31m\n\u202e\x9b\u2028"
        assert escape_controls("caf\udce9\ud800") == r"caf\xe9\ud800"
        assert escape_controls("a\n\x07b", keep="\n") == "a\n\\x07b"


class TestMarkdown:
    @given(MARKDOWN)
    @example("![x](http://evil/x.png)")
    @example("[click](javascript:alert(1))")
    @example("<img src=x onerror=alert(1)>")
    @example("&lt;b&gt; \\<b> a_b_ __c__ | d `e` ~~f~~")
    def test_escaped_text_renders_as_itself_in_sentences_and_cells(self, text):
        parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
        shown = escape_markdown(text)
        for page in (f"Label {shown} here.", f"| a | b |\n|---|---|\n| x{shown}x | y |"):
            tokens = parser.parse(page)
            inline = [token for token in tokens if token.type == "inline"]
            kinds = {child.type for token in inline for child in token.children}
            assert kinds <= {"text", "text_special"}
            rendered = ["".join(child.content for child in token.children) for token in inline]
            assert any(text in one for one in rendered)
            assert len(inline) == (1 if page.startswith("Label") else 4)

    @pytest.mark.parametrize("text", ["http://x.org", "www.x.org", "x.org", "a@x.org", "ftp://x"])
    def test_addresses_are_not_converted_to_links(self, text):
        assert text not in escape_markdown(text)

    def test_model_names_are_readable(self):
        assert escape_markdown("efficientnet_lite0, all-MiniLM-L6-v2") == (
            "efficientnet_lite0, all-MiniLM-L6-v2"
        )


class TestFormulas:
    @given(
        TEXTS | st.tuples(st.text("'", max_size=2), st.sampled_from(FORMULAS), TEXTS).map("".join)
    )
    def test_escaped_formulas_are_not_evaluated_and_can_be_restored(self, text):
        cell = escape_formula(text)
        assert unescape_formula(cell) == text
        assert not cell.startswith(FORMULAS) or float(cell) is not None

    @pytest.mark.parametrize("text", ["-5", "+1.5", "-1e-05", "a cat", "", "'tis", "5=5"])
    def test_numbers_and_plain_text_are_unchanged(self, text):
        assert escape_formula(text) == unescape_formula(text) == text

    @pytest.mark.parametrize("first", FORMULAS)
    def test_escaped_paths_open_the_same_file(self, first, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        name = f"{first}x.jpg"
        (tmp_path / name).write_text("content")
        cell = escape_formula_path(name)
        assert not cell.startswith(FORMULAS)
        with open(cell) as file:
            assert file.read() == "content"
        assert escape_formula_path(str(tmp_path / name)) == str(tmp_path / name)
