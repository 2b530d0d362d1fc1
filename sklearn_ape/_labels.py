"""Names of classes: what a ``labels`` parameter says, and the prompts that it stands for."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from ._first_few import first_few
from .prompts import prompts_of


def _plain(value: Any) -> Any:
    """Return a numpy scalar as the Python object it stands for."""
    return value.item() if isinstance(value, np.generic) else value


def _is_missing(value: Any) -> bool:
    """Say whether a value is None, NaN, or pandas's NA (which is not equal to itself either)."""
    return value is None or type(value).__name__ == "NAType" or value != value


def checked_y(y: Any) -> list[Any]:
    """Return y as a list of plain objects, refusing what can be no labels."""
    if y is None:
        raise ValueError(
            "ZeroShotClassifier requires y to be passed, but the target y is None: pass labels "
            "or captions (or a fitted aligner in FrozenEstimator, with labels)."
        )
    if hasattr(y, "__len__") and not hasattr(y, "dtype"):
        missing = [row for row, value in enumerate(y) if _is_missing(value)]
        if missing:
            raise ValueError(
                f"y has {len(missing)} missing labels, the first in row {missing[0]}: leave these "
                "rows out."
            )
    labels = column_or_1d(np.asarray(y), warn=True)
    if labels.dtype.kind in "fc":
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
    return labels.tolist()


def names_of(labels: Any) -> dict[Any, list[str]]:
    """Return the names to embed for every class.

    Raises
    ------
    ValueError
        When labels are missing, repeat or hold an empty name; the message names them.
    """
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise ValueError(f"labels must be a sequence of names or a mapping, not {labels!r}.")
    if isinstance(labels, Mapping):
        labels = {label: str(label) if value is None else value for label, value in labels.items()}
        names = {_plain(label): _as_list(value) for label, value in labels.items()}
    else:
        listed = [_plain(label) for label in labels]
        for label in listed:
            _check_kind(label)
        counts = Counter(listed)
        repeated = sorted(str(label) for label, count in counts.items() if count > 1)
        if repeated:
            raise ValueError(
                f"labels repeat: {first_few(repeated)}. Give every class once; several names of "
                "one class go into a mapping {label: [names]}."
            )
        names = {label: [str(label)] for label in listed}
    if not names:
        raise ValueError("labels is empty: give at least one class.")
    for label, texts in names.items():
        if _is_missing(label):
            raise ValueError(f"{label!r} is no label (a missing value?).")
        _check_kind(label)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(
                f"The names of class {label!r} must be texts, not {reprlib.repr(texts)}."
            )
    if len({isinstance(label, str) for label in names}) > 1:
        raise ValueError("labels mixes text and numbers: the classes cannot be sorted.")
    return names


def _check_kind(label: Any) -> None:
    """Refuse what an array of classes would turn into something else."""
    if isinstance(label, bytes | bytearray | tuple | list | set | Mapping | np.ndarray):
        hint = " Decode it." if isinstance(label, bytes | bytearray) else ""
        raise ValueError(
            f"labels must be texts or numbers, not {reprlib.repr(label)} of type "
            f"{type(label).__name__}.{hint}"
        )
    if isinstance(label, str) and label.endswith("\0"):
        raise ValueError(
            f"The label {reprlib.repr(label)} ends in a NUL character, which numpy drops: leave "
            "it out."
        )


def _as_list(value: Any) -> list[Any]:
    is_one = isinstance(value, str | Mapping) or not isinstance(value, Iterable)
    return [value] if is_one else list(value)


def captions_of(y: list[Any], names: Mapping[Any, list[str]], templates: tuple[str, ...]) -> Any:
    """Put labels through the templates and leave captions as they are.

    Raises
    ------
    ValueError
        When a value is neither; the message names the row.
    """
    prompts: dict[Any, list[str]] = {}
    captions: list[Any] = []
    for row, value in enumerate(y):
        if value not in names:
            if not isinstance(value, str):
                raise ValueError(
                    f"y holds {value!r} (row {row}), which is neither one of the labels nor a "
                    "caption. For numbered classes pass labels={0: 'cat', ...}; scikit-learn "
                    "numbers them itself in cross_val_predict(method='predict_proba') and "
                    "CalibratedClassifierCV(ensemble=False): wrap a fitted aligner in "
                    "FrozenEstimator there."
                )
            captions.append(value)
            continue
        if value not in prompts:
            prompts[value] = prompts_of(value, names[value], templates)
        captions.append(prompts[value])
    return captions
