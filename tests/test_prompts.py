"""Prompt templates."""

import pytest

from sklearn_ape.prompts import TEMPLATES, fill, resolve_flat_names, resolve_templates


@pytest.mark.parametrize("name", TEMPLATES)
def test_named_templates_have_one_placeholder(name):
    assert all(template.count("{}") == 1 for template in resolve_templates(name))


def test_name_with_braces_is_unchanged():
    assert fill(["a photo of {}"], "a {set}") == ["a photo of a {set}"]


def test_unknown_set_raises():
    with pytest.raises(ValueError, match=r"'simpel' is not a set.*The sets are none, simple"):
        resolve_templates("simpel")


@pytest.mark.parametrize("templates", [["a photo"], "a {} of {}", "a {name}", [None]])
def test_template_without_exactly_one_placeholder_raises(templates):
    with pytest.raises(ValueError, match="exactly one placeholder"):
        resolve_templates(templates)


def test_pyarrow_columns_hold_templates_and_names():
    """Scalars of pyarrow are not texts."""
    pa = pytest.importorskip("pyarrow")
    assert resolve_templates(pa.array(["{}", "a {}"])) == ("{}", "a {}")
    assert resolve_flat_names({0: pa.array(["cat", "kitten"])}) == {0: ["cat", "kitten"]}


def test_none_as_templates_names_the_set_without_templates():
    with pytest.raises(ValueError, match=r"templates is None\. Pass 'none' to embed"):
        resolve_templates(None)


def test_empty_templates_raise():
    with pytest.raises(ValueError, match="templates is empty"):
        resolve_templates([])
