"""Prompt templates: sentences that a class name is put into."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ._sequences import check_sequence

__all__ = ["TEMPLATES", "fill", "prompts_of", "resolve_templates"]

TEMPLATES: dict[str, tuple[str, ...]] = {
    "none": ("{}",),
    "simple": ("{}", "a photo of a {}", "a picture of {}", "an illustration of a {}"),
    "photo": ("a photo of a {}.",),
    "clip": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "drawing": ("{}", "a drawing of a {}", "an icon of a {}", "clip art of a {}", "a cartoon {}"),
}
"""Named sets of templates. "clip" is the set of seven that CLIP's authors found to be enough."""


def resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Return the templates that a ``templates`` parameter names.

    Parameters
    ----------
    templates : str or sequence of str
        A key of `TEMPLATES`, one template, or several; a template has one ``{}`` where the
        name goes.

    Returns
    -------
    templates : tuple of str
        At least one.

    Raises
    ------
    ValueError
        When the name is unknown, or a template has not exactly one place for the name.

    References
    ----------
    .. [1] A. Radford et al., "Learning Transferable Visual Models From Natural Language
       Supervision", ICML 2021, section 3.1.4.

    Examples
    --------
    >>> from sklearn_ape.prompts import resolve_templates
    >>> resolve_templates("photo")
    ('a photo of a {}.',)
    >>> resolve_templates("a sketch of a {}")
    ('a sketch of a {}',)
    """
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return TEMPLATES[templates]
        if "{" not in templates:
            close = difflib.get_close_matches(templates, TEMPLATES, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"There is no set of templates called {templates!r}: the sets are "
                f"{', '.join(TEMPLATES)}.{hint} A template of your own has a place for the name, "
                "as in 'a photo of a {}'."
            )
        templates = (templates,)
    else:
        check_sequence(templates, "templates", "template")
    resolved = tuple(templates)
    if not resolved:
        raise ValueError("templates is empty: give at least one, such as '{}'.")
    for template in resolved:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(
                f"The template {template!r} needs exactly one place for the class name, written "
                "{}, as in 'a photo of a {}'."
            )
    return resolved


def fill(templates: str | Sequence[str], name: str) -> list[str]:
    """Put a name into every template.

    Parameters
    ----------
    templates : str or sequence of str
        What `resolve_templates` takes or returns.
    name : str
        The class name or a synonym.

    Returns
    -------
    prompts : list of str
        One a template.

    Examples
    --------
    >>> from sklearn_ape.prompts import fill
    >>> fill(["{}", "a photo of a {}."], "cat")
    ['cat', 'a photo of a cat.']
    """
    if isinstance(templates, str):
        templates = resolve_templates(templates)
    # Not str.format: a name may hold braces of its own.
    return [template.replace("{}", name) for template in templates]


def prompts_of(label: object, names: Sequence[str], templates: str | Sequence[str]) -> list[str]:
    """Return the distinct sentences that stand for a class.

    Parameters
    ----------
    label : object
        The class; its text goes into names that have a place of their own, ``{}``.
    names : sequence of str
        The names of the class.
    templates : str or sequence of str
        What `resolve_templates` takes or returns.

    Returns
    -------
    prompts : list of str
        In order.

    Examples
    --------
    >>> from sklearn_ape.prompts import prompts_of
    >>> prompts_of("cat", ["cat", "kitten", "a {} of mine"], ["{}", "a {}"])
    ['cat', 'a cat', 'kitten', 'a kitten', 'a cat of mine']
    """
    check_sequence(names, "names", "text")
    prompts: list[str] = []
    for name in names:
        has_place = "{}" in name and name != str(label)  # a label is not put into itself
        prompts += fill([name], str(label)) if has_place else fill(templates, name)
    return list(dict.fromkeys(prompts))
