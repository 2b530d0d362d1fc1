"""Prompt templates: sentences that a class name is put into."""

from __future__ import annotations

import difflib
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MappingView, Sequence
from datetime import date, timedelta
from enum import Enum
from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from .utils.validation import check_sequence, format_list, is_missing

__all__ = ["TEMPLATES", "fill", "prompts_of", "resolve_templates"]

_CAPTIONS_HINT = "Pass captions as captions=..., in addition to the labels in y."


def plain_label(value: Any) -> Any:
    """Return a label as a built-in str, bool, int or float, where it is one of these.

    Parameters
    ----------
    value : object
        Also a numpy scalar, or a member of a `enum.StrEnum` or `enum.IntEnum`.
    """
    if isinstance(value, np.datetime64 | np.timedelta64):  # item() may make an int of it
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and type(value) is not str:
        return str.__str__(value)
    if isinstance(value, int) and type(value) not in (int, bool):
        return int(value)
    return value


def list_of_labels(labels: Iterable[Any]) -> list[Any]:
    """Return the labels of any collection, or the keys of a mapping, as a list."""
    to_python = getattr(labels, "to_pylist", None)  # a column of pyarrow holds its own scalars
    return list(labels if to_python is None else to_python())


def class_array(labels: Iterable[Any]) -> np.ndarray:
    """Return labels as an array whose elements are equal to them."""
    listed = list(labels)
    array = np.array(listed)
    # Where there are floats, or integers of both signs, numpy rounds integers beyond 2**53.
    return array if array.tolist() == listed else np.array(listed, dtype=object)


def validate_y(y: Any) -> list[Any]:
    """Return y as a list of plain labels.

    Raises
    ------
    ValueError
        When y is None, not one-dimensional, or holds missing values or values that cannot be
        labels; the message names the row.
    """
    if y is None:
        raise ValueError(
            "ZeroShotClassifier requires y to be passed, but the target y is None. Pass the "
            "label of every image as y. It is optional only with labels and a fitted aligner."
        )
    if hasattr(y, "__len__") and not hasattr(y, "dtype"):  # numpy may turn NaN into text
        _refuse_missing(y)
    try:
        array = column_or_1d(np.asarray(y), warn=True)
    except ValueError as error:
        raise ValueError(f"y must hold one label per image: {error} {_CAPTIONS_HINT}") from None
    if array.dtype.kind in "fc":
        assert_all_finite(array, input_name="y")
        check_classification_targets(array)
    if array.dtype.kind in "mM":
        raise ValueError(
            f"y must hold texts or numbers, not values of type {array.dtype.name}. Convert them "
            "to text, for example with y.astype(str)."
        )
    values = array.tolist()
    if array.dtype.kind not in "biufcU":
        _refuse_missing(values)
        values = [plain_label(value) for value in values]
        for value in values:
            _check_kind(value, "y")
    return values


def names_of(labels: Any) -> dict[Any, list[str]]:
    """Return the names to embed for every class.

    Raises
    ------
    ValueError
        When labels are missing, repeat or hold an empty name; the message names them.
    """
    if isinstance(labels, str | bytes | bytearray | memoryview) or not isinstance(
        labels, Iterable
    ):
        raise ValueError(f"labels must be a sequence of names or a mapping, not {labels!r}.")
    if isinstance(labels, Iterator | MappingView):
        raise ValueError(
            f"labels is a {type(labels).__name__}, which cannot be copied or read twice. Pass a "
            "list: list(labels)."
        )
    listed = [plain_label(label) for label in list_of_labels(labels)]
    if not listed:
        raise ValueError("labels is empty: give at least one class.")
    for label in listed:
        if is_missing(label):
            raise ValueError(f"{label!r} is no label (a missing value?).")
        _check_kind(label, "labels")
    repeated = sorted(str(label) for label, count in Counter(listed).items() if count > 1)
    if repeated:
        raise ValueError(
            f"labels repeat: {format_list(repeated)}. Give every class once; several names of "
            "one class go into a mapping {label: [names]}."
        )
    given = labels.values() if isinstance(labels, Mapping) else [None] * len(listed)
    names = {
        label: [str(label)] if value is None else [plain_label(one) for one in _as_list(value)]
        for label, value in zip(listed, given, strict=True)
    }
    for label, texts in names.items():
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(
                f"The names of class {label!r} must be texts, not {reprlib.repr(texts)}."
            )
    if len({isinstance(label, str) for label in names}) > 1:
        raise ValueError("labels mixes text and numbers: the classes cannot be sorted.")
    return names


def check_in_labels(y: list[Any], names: Mapping[Any, list[str]]) -> None:
    """Refuse values of y that are not labels.

    Raises
    ------
    ValueError
        The message names the first such values, each with its row, and what to do.
    """
    absent = {value: None for value in y if value not in names}
    if not absent:
        return
    shown = format_list(absent, lambda value: f"{value!r} (row {y.index(value)})")
    raise ValueError(
        f"y has values that are not in labels: {shown}. "
        + (_unknown_text() if isinstance(next(iter(absent)), str) else _unknown_number(names))
    )


def _unknown_text() -> str:
    return f"Add them to labels, or correct y. {_CAPTIONS_HINT}"


def _unknown_number(names: Mapping[Any, list[str]]) -> str:
    shown = [f"{number}: {texts[0]!r}" for number, (_, texts) in enumerate(sorted(names.items()))]
    return (
        "VotingClassifier, StackingClassifier, BaggingClassifier, CalibratedClassifierCV and "
        "cross_val_predict(method='predict_proba') replace labels by their numbers in sorted "
        "order before they call fit. Number the labels yourself, "
        f"labels={{{format_list(shown, str)}}}, and pass these numbers as y."
    )


def may_be_renumbered(y: list[Any], names: Mapping[Any, list[str]]) -> bool:
    """Say whether y may hold the numbers that a meta-estimator gave to other labels.

    scikit-learn's meta-estimators replace the labels 0, 2 and 4 by 0, 1 and 2, which are labels
    as well if `names` has the labels 0 to 4. If y holds every label, its numbers are the labels.
    """
    distinct = set(y)
    return (
        len(distinct) < len(names)
        and all(type(value) is int for value in distinct)
        and distinct == set(range(len(distinct)))
    )


def captions_of(
    y: list[Any], names: Mapping[Any, list[str]], templates: tuple[str, ...]
) -> list[list[str]]:
    """Put the labels of y through the templates."""
    prompts = {value: prompts_of(value, names[value], templates) for value in dict.fromkeys(y)}
    return [prompts[value] for value in y]


def _refuse_missing(y: Iterable[Any]) -> None:
    missing = [row for row, value in enumerate(y) if is_missing(value)]
    if missing:
        raise ValueError(
            f"y has {len(missing)} missing labels, the first in row {missing[0]}: leave these "
            "rows out."
        )


def _check_kind(label: Any, where: str) -> None:
    """Refuse labels that an array of classes would change, or that a file cannot hold."""
    if not isinstance(label, str | bool | int | float):
        raise ValueError(
            f"{where} must be texts or numbers, not {reprlib.repr(label)} of type "
            f"{type(label).__name__}.{_hint(label)}"
        )
    if isinstance(label, str) and label.endswith("\0"):
        raise ValueError(
            f"The label {reprlib.repr(label)} ends in a NUL character, which numpy drops: leave "
            "it out."
        )


def _hint(label: Any) -> str:
    if isinstance(label, bytes | bytearray):
        return " Decode it."
    if isinstance(label, Enum):
        return " Pass its name or its value."
    if isinstance(label, date | timedelta | np.datetime64 | np.timedelta64):
        return " Convert it to text, for example with str()."
    return ""


def _as_list(value: Any) -> list[Any]:
    is_one = isinstance(value, str | Mapping) or not isinstance(value, Iterable)
    return [value] if is_one else list(value)


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
