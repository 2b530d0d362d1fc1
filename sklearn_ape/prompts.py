"""Prompt templates, and validation of labels and of their names."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, MappingView, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets

from .utils.sklearn_compat import as_label_column
from .utils.validation import (
    check_not_missing,
    check_sequence,
    find_repeated,
    format_list,
    is_missing,
    to_builtin,
    to_list,
)

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
"""Named sets of templates. CLIP's authors found the seven templates of "clip" to be sufficient."""


def resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Return the templates for the value of a ``templates`` parameter.

    Parameters
    ----------
    templates : str or sequence of str
        A key of `TEMPLATES`, one template, or several templates [1]_. Each template has one
        ``{}``, which is replaced by the name of a class.

    Returns
    -------
    templates : tuple of str
        At least one template.

    Raises
    ------
    ValueError
        If the key is unknown, or a template does not have exactly one placeholder.

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
    if templates is None:
        raise ValueError("templates is None. Pass 'none' to embed the names of the classes alone.")
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return TEMPLATES[templates]
        if "{" not in templates:
            raise ValueError(
                f"templates={templates!r} is not a set of templates. The sets are "
                f"{', '.join(TEMPLATES)}. To use your own template, mark the place of the "
                "name with {}, as in 'a photo of a {}'."
            )
        templates = (templates,)
    else:
        check_sequence(templates, "templates", "template")
    resolved = tuple(to_list(templates))
    if not resolved:
        raise ValueError("templates is empty. Pass at least one template, such as '{}'.")
    for template in resolved:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ValueError(
                f"templates has {template!r}, which does not have exactly one placeholder {{}} "
                "for the class name. Write a template such as 'a photo of a {}'."
            )
    return resolved


def fill(templates: str | Sequence[str], name: str) -> list[str]:
    """Return each template with the name in the place of ``{}``.

    Parameters
    ----------
    templates : str or sequence of str
        The name of a set of templates, one template, or several templates; see
        `resolve_templates`.
    name : str
        Name of a class, or a synonym of it.

    Returns
    -------
    prompts : list of str
        One prompt per template.

    Examples
    --------
    >>> from sklearn_ape.prompts import fill
    >>> fill(["{}", "a photo of a {}."], "cat")
    ['cat', 'a photo of a cat.']
    """
    if isinstance(templates, str):
        templates = resolve_templates(templates)
    # str.format would fail for names that contain braces.
    return [template.replace("{}", name) for template in templates]


def prompts_of(label: object, names: Sequence[str], templates: str | Sequence[str]) -> list[str]:
    """Return the distinct prompts of a class.

    Parameters
    ----------
    label : object
        Label of the class. A name that contains ``{}`` is a template of this class alone: the
        label is put into it, and `templates` are not used.
    names : sequence of str
        Names of the class.
    templates : str or sequence of str
        The name of a set of templates, one template, or several templates; see
        `resolve_templates`.

    Returns
    -------
    prompts : list of str
        The prompts of all names, without duplicates, in the order of the names.

    Examples
    --------
    >>> from sklearn_ape.prompts import prompts_of
    >>> prompts_of("cat", ["cat", "kitten", "a {} of mine"], ["{}", "a {}"])
    ['cat', 'a cat', 'kitten', 'a kitten', 'a cat of mine']
    """
    check_sequence(names, "names", "text")
    prompts: list[str] = []
    for name in names:
        is_template = "{}" in name and name != str(label)  # a label cannot be its own template
        prompts += fill([name], str(label)) if is_template else fill(templates, name)
    return list(dict.fromkeys(prompts))


# Deeper nesting of labels is more likely an error than a hierarchy.
_MAX_DEPTH = 20

_CAPTIONS_HINT = "Pass captions as captions=..., in addition to the labels in y."
_SEVERAL_HINT = (
    "For several labels per image, use MultiLabelZeroShotClassifier. For one-hot rows, pass "
    f"numpy.argmax(y, axis=1) as y. {_CAPTIONS_HINT}"
)


def to_class_array(labels: Iterable[Any]) -> np.ndarray:
    """Return an array whose elements are equal to the labels."""
    values = list(labels)
    array = np.array(values)
    # NumPy rounds integers above 2**53 if there are floats or large integers of both signs.
    return array if array.tolist() == values else np.array(values, dtype=object)


def validate_y(y: Any) -> list[Any]:
    """Return y as a list of labels of built-in types; raise ValueError if it is not valid."""
    if y is None:
        raise ValueError(
            "The classifier requires y to be passed, but the target y is None. Pass the label of "
            "every image as y."
        )
    check_sequence(y, "y", "class", "classes")
    if hasattr(y, "__len__") and not hasattr(y, "dtype"):  # NumPy may convert NaN to text
        check_not_missing(y, "y")
    array = _to_label_column(y)
    values = array.tolist()
    if not values:
        raise ValueError("y is empty. Pass the label of at least one image.")
    if array.dtype.kind not in "biufcU":
        check_not_missing(values, "y")
        values = [to_builtin(value) for value in values]
        for value in values:
            _check_type(value, "y")
    return values


def _to_label_column(y: Any) -> np.ndarray:
    """Return y as an array of one dimension, without NaN, fractions, dates and durations."""
    try:
        array = as_label_column(y)
    except ValueError as error:
        # NumPy cannot make an array of rows of different lengths, and describes them at length.
        reason = "its rows have different lengths." if "inhomogeneous" in str(error) else error
        raise ValueError(f"y must hold one label per image: {reason} {_SEVERAL_HINT}") from None
    if array.dtype.kind in "fc":
        check_not_missing(array.tolist(), "y")
        assert_all_finite(array, input_name="y")
        check_classification_targets(array)
    if array.dtype.kind in "mM":
        raise ValueError(
            f"y must hold texts or numbers, not values of type {array.dtype.name}. Convert them "
            "to texts, for example with y.astype(str)."
        )
    return array


def resolve_flat_names(labels: Any, parameter: str = "labels") -> dict[Any, list[str]]:
    """Return the names to embed for each class of ``labels`` that are not a hierarchy.

    ValueError lists labels that are missing, repeat or have an empty name. An error about an empty
    label names the `parameter` from which the labels are.
    """
    classes = _list_classes(labels)
    if is_hierarchy(labels):
        raise ValueError(
            "labels is a hierarchy, which ZeroShotClassifier and FewShotClassifier take. Pass a "
            "list of all labels, groups included."
        )
    values = labels.values() if isinstance(labels, Mapping) else [None] * len(classes)
    names = {
        label: [str(label)] if value is None else [to_builtin(name) for name in _as_list(value)]
        for label, value in zip(classes, values, strict=True)
    }
    for label, texts in names.items():
        if texts == [label] and not label.strip():
            raise ValueError(
                f"{parameter} has the empty label {label!r}. Leave it out, or give it a name by a "
                "mapping, labels={label: name}."
            )
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            hint = ""
            if isinstance(label, str) and texts and isinstance(texts[0], int):
                hint = f" If the classes are numbers, pass {{{texts[0]}: {label!r}, ...}}."
            raise ValueError(
                f"labels has the names {reprlib.repr(texts)} for class {label!r}, which must be "
                f"texts that are not empty. Pass a text or a list of texts for each class.{hint}"
            )
    if len({isinstance(label, str) for label in names}) > 1:
        raise ValueError(
            "labels mixes texts and numbers, so the classes cannot be sorted. Use texts alone or "
            "numbers alone."
        )
    return names


def _list_classes(labels: Any) -> list[Any]:
    """Return the classes of a ``labels`` parameter; raise ValueError if they are not valid."""
    _check_collection(labels)
    classes = [to_builtin(label) for label in to_list(labels)]
    if not classes:
        raise ValueError("labels is empty. Pass at least one class.")
    for label in classes:
        if is_missing(label):
            raise ValueError(f"labels holds {label!r}, which is a missing value. Leave it out.")
        _check_type(label, "labels")
    repeated = sorted(map(str, find_repeated(classes)))
    if repeated:
        raise ValueError(
            f"labels repeat: {format_list(repeated)}. Pass each class once. To give a class "
            "several names, pass a mapping {label: [names]}."
        )
    return classes


def _check_collection(labels: Any) -> None:
    """Raise ValueError unless a ``labels`` parameter is a sequence or a mapping."""
    is_single = isinstance(labels, str | bytes | bytearray | memoryview)
    is_single |= getattr(labels, "ndim", 1) == 0
    if is_single or not isinstance(labels, Iterable):
        raise ValueError(
            f"labels must be a sequence of names or a mapping, not {labels!r}. Pass a list, such "
            "as ['cat', 'dog']."
        )
    if isinstance(labels, Iterator | MappingView | MappingProxyType):
        kind = "dict" if isinstance(labels, Mapping) else "list"
        raise ValueError(
            f"labels is a {type(labels).__name__}, which cannot be copied or read twice. Pass a "
            f"{kind}: {kind}(labels)."
        )
    if hasattr(labels, "columns"):
        raise ValueError(
            "labels is a table. Pass the column with the names, such as table['name'], or a "
            "mapping {label: name}."
        )


def resolve_class_names(labels: Any) -> dict[Any, list[str]]:
    """Return the names of the classes of a ``labels`` parameter, which may be a hierarchy."""
    return resolve_flat_names(flatten_labels(labels)[0] if is_hierarchy(labels) else labels)


def is_hierarchy(labels: Any) -> bool:
    """Return whether a ``labels`` parameter has classes within classes."""
    return isinstance(labels, Mapping) and any(
        isinstance(value, Mapping) for value in labels.values()
    )


def flatten_labels(labels: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[Any, tuple[Any, ...]]]:
    """Return the classes at the leaves of a hierarchy, and the path of every node.

    The values of the mapping are names, as in `resolve_flat_names`, or mappings of the same kind.
    A path leads from the coarsest node to the node itself. ValueError is raised if a node is
    empty, has the label of another node, or contains itself.
    """
    names: dict[Any, Any] = {}
    paths: dict[Any, tuple[Any, ...]] = {}
    for path, value in _iter_nodes(labels, ()):
        label = path[-1]
        if label in paths:
            first, second = (_format_path(parents) for parents in (paths[label], path))
            raise ValueError(
                f"labels has {label!r} twice: {first} and {second}. Give each node of the "
                "hierarchy a label of its own, such as 'crane (bird)', with the names to embed: "
                "{'crane (bird)': ['crane']}."
            )
        paths[label] = path
        if not isinstance(value, Mapping):
            names[label] = value
        elif not value:
            raise ValueError(
                f"labels has the empty group {label!r}. Add classes to it, or pass None instead "
                "of {} if it is a class."
            )
    resolve_flat_names(list(paths))  # the labels of inner nodes are checked as well
    return names, paths


def _iter_nodes(
    labels: Mapping[Any, Any], parents: tuple[Any, ...]
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if len(parents) > _MAX_DEPTH:
        raise ValueError(
            f"labels is nested more than {_MAX_DEPTH} levels deep, at {_format_path(parents[:4])} "
            "> ...: a group may contain itself. Pass a hierarchy without cycles."
        )
    for label, value in labels.items():
        path = (*parents, to_builtin(label))
        yield path, value
        if isinstance(value, Mapping):
            yield from _iter_nodes(value, path)


def _format_path(path: Sequence[Any]) -> str:
    return " > ".join(map(str, path))


def check_classes(classes: Any, names: Mapping[Any, list[str]] | None) -> None:
    """Raise ValueError if `classes` are not valid or not in `names`; None stands for any."""
    if classes is None:
        return
    if is_hierarchy(classes):
        raise ValueError(
            "classes is a hierarchy. Pass it as labels of the classifier, or pass a list of its "
            "innermost classes."
        )
    try:
        labels = resolve_flat_names(classes)
    except ValueError as error:
        raise ValueError(f"classes must be as labels may be, but {error}") from None
    unknown = [label for label in labels if names is not None and label not in names]
    if unknown:
        raise ValueError(
            "classes holds values that are neither in labels nor in the classes of the first "
            f"call: {format_list(unknown)}. Call fit with labels that include them."
        )


def check_in_labels(
    y: list[Any],
    names: Mapping[Any, list[str]],
    others: Sequence[Any] = (),
    *,
    in_fit: bool = True,
) -> None:
    """Raise ValueError for values of y that are neither labels nor among the others.

    `in_fit` says whether they may be captions, which `fit` takes in addition.
    """
    unknown = {value: None for value in y if value not in names and value not in others}
    if not unknown:
        return
    first = next(iter(unknown))
    hint = describe_similar_label(first, names, "y")
    if isinstance(first, str):
        label = next((label for label, texts in names.items() if first in texts), None)
        if not hint and label is not None:
            hint = f"{first!r} is a name of the class {label!r}. Pass classes, not names, as y."
            if isinstance(label, str):
                hint += f" If labels is inverted, pass {{{first!r}: {label!r}, ...}}."
        captions_hint = f" {_CAPTIONS_HINT}" if in_fit else ""
        hint = hint or f"Add them to labels, or correct y.{captions_hint}"
    else:
        given = _number(texts[0] for texts in names.values())
        numbered = _number(texts[0] for _, texts in sorted(names.items()))
        if not hint and numbered != given:
            mapping = format_list(given, str)
            hint = f"If the numbers are positions in labels, pass labels={{{mapping}}}."
        encoding_hint = (
            "VotingClassifier, StackingClassifier, BaggingClassifier, CalibratedClassifierCV and "
            "cross_val_predict(method='predict_proba') replace labels by their numbers in sorted "
            "order before they call fit. Number the labels yourself, "
            f"labels={{{format_list(numbered, str)}}}, and pass these numbers as y."
        )
        hint = f"{hint} {encoding_hint}".lstrip()
    examples = format_list(unknown, lambda value: f"{value!r} (row {y.index(value)})")
    raise ValueError(f"y has values that are not in labels: {examples}. {hint}")


def check_not_groups(y: list[Any], labels: Any) -> None:
    """Raise ValueError for values of y that are groups of a ``labels`` hierarchy, not classes."""
    if not is_hierarchy(labels):
        return
    names, paths = flatten_labels(labels)
    groups = [value for value in dict.fromkeys(y) if value in paths and value not in names]
    if groups:
        examples = format_list(groups, lambda value: f"{value!r} (row {y.index(value)})")
        raise ValueError(
            f"y has groups of labels, which are not classes: {examples}. Pass the innermost class "
            "of each image, or leave these rows out."
        )


def describe_similar_label(value: Any, labels: Iterable[Any], parameter: str) -> str:
    """Return a hint if a value of a parameter is almost equal to a label, else an empty text."""
    similar = [label for label in labels if _simplify(label) == _simplify(value)]
    if not similar:
        return ""
    return (
        f"{value!r} differs from the label {similar[0]!r} only in its type, in case, in spaces or "
        f"in the form of its Unicode characters (unicodedata.normalize). Correct {parameter}."
    )


def _simplify(label: Any) -> str:
    """Return a text without differences that are hard to see."""
    return " ".join(unicodedata.normalize("NFKC", str(label)).casefold().split())


def _number(names: Iterable[str]) -> list[str]:
    return [f"{number}: {name!r}" for number, name in enumerate(names)]


def may_be_encoded(y: list[Any], names: Mapping[Any, list[str]]) -> bool:
    """Return whether y may hold the numbers that a meta-estimator substituted for labels.

    scikit-learn's meta-estimators replace the labels 0, 2 and 4 by 0, 1 and 2, which are labels
    as well if `names` has the labels 0 to 4. If y holds every label, nothing was replaced.
    """
    distinct = set(y)
    is_numbered = distinct == set(range(len(distinct))) and set(map(type, distinct)) <= {int}
    return 0 < len(distinct) < len(names) and is_numbered


def _check_type(label: Any, parameter: str) -> None:
    """Raise ValueError for labels that NumPy would change or that a file cannot store."""
    if not isinstance(label, str | bool | int | float):
        hint = " Convert it to text, for example with str()."
        if isinstance(label, bytes | bytearray):
            hint = " Decode it."
        elif isinstance(label, Enum):
            hint = " Pass its name or its value."
        elif isinstance(label, Iterable):
            hint = " For several labels per image, use MultiLabelZeroShotClassifier."
        raise ValueError(
            f"{parameter} must be texts or numbers, not {reprlib.repr(label)} of type "
            f"{type(label).__name__}.{hint}"
        )
    if isinstance(label, str) and label.endswith("\0"):
        raise ValueError(
            f"{parameter} holds {reprlib.repr(label)}, which ends in a NUL character that NumPy "
            "drops. Remove this character."
        )


def _as_list(value: Any) -> list[Any]:
    is_single = isinstance(value, str | Mapping | Iterator) or not isinstance(value, Iterable)
    return [value] if is_single else to_list(value)
