"""Prompt templates, named and one's own."""

import pytest

from sklearn_ape.prompts import TEMPLATES, fill, resolve_templates


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_named_set_has_one_place_a_template(name):
    assert all(template.count("{}") == 1 for template in resolve_templates(name))


def test_a_name_with_braces_stays_as_it_is():
    assert fill(["a photo of {}"], "a {set}") == ["a photo of a {set}"]


def test_unknown_set_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"called 'simpel'.*Did you mean 'simple'"):
        resolve_templates("simpel")


@pytest.mark.parametrize("bad", [["a photo"], "a {} of {}", "a {name}", [None]])
def test_a_template_needs_exactly_one_place(bad):
    with pytest.raises(ValueError, match="exactly one place"):
        resolve_templates(bad)


def test_no_templates_at_all():
    with pytest.raises(ValueError, match="templates is empty"):
        resolve_templates([])
