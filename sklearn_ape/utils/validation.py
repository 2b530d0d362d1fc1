"""Checks and conversions of parameters, JSON texts, sequences, features and labels."""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Sized
from functools import wraps
from itertools import islice
from numbers import Integral, Real
from os import PathLike
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import _num_samples

P = ParamSpec("P")
T = TypeVar("T")

FLOATS = [np.float64, np.float32, np.float16]
"""Types for `check_array`, which converts an array of any other type to the first of them."""

_MAX_LISTED = 5


def format_list(
    values: Iterable[Any], show: Callable[[Any], str] = repr, limit: int = _MAX_LISTED
) -> str:
    """Return the first values separated by commas, followed by ", ..." if there are more."""
    texts = [show(value) for value in islice(values, limit + 1)]
    return ", ".join(texts[:limit]) + (", ..." if len(texts) > limit else "")


def describe_rows(rows: Sequence[int] | np.ndarray, noun: str = "row") -> str:
    """Return the number of rows, or of another noun, and the first row numbers.

    >>> describe_rows([3]), describe_rows([0, 2], "missing value")
    ('1 row (row 3)', '2 missing values (rows 0, 2)')
    """
    plural = "" if len(rows) == 1 else "s"
    return f"{len(rows)} {noun}{plural} (row{plural} {format_list(rows, str)})"


def find_repeated(values: Iterable[T]) -> list[T]:
    """Return the values that occur more than once, in the order of their first occurrence."""
    return [value for value, count in Counter(values).items() if count > 1]


def check_choice(value: Any, name: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless a parameter is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")


def check_boolean(value: Any, name: str) -> None:
    """Raise ValueError unless a parameter is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, not {value!r}.")


def check_integer(
    value: Any, name: str, low: int, optional: bool = False, auto: bool = False
) -> None:
    """Raise ValueError unless a parameter is an integer of at least `low`.

    None is also valid if `optional`, and "auto" if `auto`.
    """
    if (optional and value is None) or (auto and isinstance(value, str) and value == "auto"):
        return
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < low:
        others = ", ".join(["None"] * optional + ["'auto'"] * auto)
        prefix = f"{others} or " if others else ""
        raise ValueError(f"{name} must be {prefix}an integer >= {low}, not {value!r}.")


def check_count(value: Any, name: str, high: int, noun: str) -> None:
    """Raise ValueError unless a parameter is an integer from 1 to `high`, the number of `noun`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) <= high:
        raise ValueError(
            f"{name} must be an integer from 1 to the number of {noun}, {high}, not {value!r}."
        )


def check_number(
    value: Any,
    name: str,
    low: float,
    high: float = math.inf,
    closed: Literal["left", "both", "neither"] = "left",
    optional: bool = False,
) -> None:
    """Raise ValueError unless a parameter is a number in an interval, or None if optional."""
    if value is None and optional:
        return
    is_valid = isinstance(value, Real) and not isinstance(value, bool)
    if is_valid:
        above = float(value) > low if closed == "neither" else float(value) >= low
        below = float(value) <= high if closed == "both" else float(value) < high
        is_valid = above and below
    if not is_valid:
        prefix = "None or " if optional else ""
        left, right = "(" if closed == "neither" else "[", "]" if closed == "both" else ")"
        raise ValueError(
            f"{name} must be {prefix}a number in {left}{low:g}, {high:g}{right}, not {value!r}."
        )


def check_verbose(value: Any) -> None:
    """Raise ValueError unless ``verbose`` is None, a bool or an integer of at least 0."""
    if not isinstance(value, bool | np.bool_):
        check_integer(value, "verbose", 0, optional=True)


def resolve_random_state(random_state: Any) -> np.random.RandomState:
    """Return the generator of a ``random_state`` parameter; an error names the parameter."""
    try:
        return check_random_state(random_state)
    except ValueError:
        raise ValueError(
            "random_state must be None, an integer from 0 to 2**32 - 1 or an instance of "
            f"numpy.random.RandomState, not {random_state!r}."
        ) from None


class _RepeatedKeyError(ValueError):
    """A key of a JSON object occurs more than once, so a value would be lost."""


def parse_json(text: str | bytes, what: str, remedy: str = "", **options: Any) -> Any:
    """Return the value of a JSON text; raise ValueError if it is not valid or repeats a key.

    `what` is the name of the text for error messages, and the options are those of `json.loads`.
    """
    try:
        if isinstance(text, bytes):  # `json.loads` would accept lone surrogates
            text = text.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_reject_repeated_keys, **options)
    except RecursionError:
        problem = "is nested too deeply."
    except _RepeatedKeyError as error:
        problem = f"{error} Keep one value of each key."
    except ValueError as error:  # includes the errors of JSON and of Unicode
        problem = f"is not valid JSON: {error}."
    raise ValueError(f"{what} {problem} {remedy}".rstrip())


def _reject_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = find_repeated(key for key, _ in pairs)
        raise _RepeatedKeyError(f"has the key {format_list(repeated)} more than once.")
    return values


def check_sequence(values: Any, name: str, kind: str, kinds: str | None = None) -> None:
    """Raise ValueError for a single item, and for containers without length or order.

    Python iterates over the characters of a str and over the keys of a dict, so without this
    check both would be accepted. `kind` is the noun for one item, such as "image" or "text".
    """
    kinds = kinds or f"{kind}s"
    is_image = hasattr(values, "getexif")
    if is_image or isinstance(values, str | bytes | bytearray | memoryview | PathLike):
        noun, advice = _describe_single_item(values, name, "image" if is_image else kind)
        raise ValueError(f"{name} is a {noun}, not a sequence of {kinds}. Pass {advice}.")
    if getattr(values, "ndim", 1) == 0:
        raise ValueError(
            f"{name} must be a sequence of {kinds}, not an array without dimensions. "
            f"Pass a list: [{name}.item()]."
        )
    values = getattr(values, "iterable", values)  # a progress bar of tqdm may be of a generator
    is_sized = hasattr(values, "__len__") or hasattr(values, "__array__")
    has_no_order = isinstance(values, Mapping | set | frozenset | type)
    # SciPy's dok_array is both a dict and an array.
    if (has_no_order and not hasattr(values, "ndim")) or not is_sized:
        items = f"{name}.values()" if isinstance(values, Mapping) else name
        advice = f"a list: list({items})" if hasattr(values, "__iter__") else f"a list: [{name}]"
        if isinstance(values, Mapping):  # perhaps the result of a loader, or a batch
            fields = [key for key in (kinds.split()[0], kind) if key in values]
            advice = f"one of its fields: {name}[{fields[0]!r}]" if fields else advice
        raise ValueError(
            f"{name} must be a sequence of {kinds}, such as a list, an array or a column, not "
            f"{type(values).__name__}. Pass {advice}."
        )


def _describe_single_item(value: Any, name: str, kind: str) -> tuple[str, str]:
    """Return what was passed in place of a sequence, and what to pass."""
    if kind == "image" and isinstance(value, str | PathLike) and os.path.isdir(value):
        load = f"sklearn_ape.datasets.load_image_folder({name}, captions=None)"
        return "folder", f"the list of its images: {load}.images"
    if kind == "image" and isinstance(value, str) and "*" in value and not os.path.exists(value):
        return "pattern", f"a list of files: sorted(glob.glob({name}))"
    item = reprlib.repr(str(value)) if isinstance(value, str) and kind != "image" else name
    return f"single {kind}", f"a list: [{item}]"


def is_dataset(values: Any) -> bool:
    """Return whether values can only be indexed, as a torch dataset.

    Iterating over a dataset, which NumPy would do, ends only if the dataset raises IndexError.
    """
    other_methods = ("__iter__", "__array__", "ndim")
    is_indexed = isinstance(values, Sized) and hasattr(values, "__getitem__")
    return is_indexed and not any(hasattr(values, name) for name in other_methods)


def to_list(values: Iterable[Any]) -> list[Any]:
    """Return the values of any collection, or the keys of a mapping, as a list."""
    if isinstance(values, Sized) and not hasattr(values, "__iter__"):
        # Iterating over a dataset of torch ends only if the dataset raises IndexError.
        dataset: Any = values
        return [dataset[row] for row in range(len(dataset))]
    # Iterating over an array of texts or a pyarrow column yields scalars of NumPy or pyarrow.
    if isinstance(values, np.ndarray) and values.dtype.kind == "U" and values.ndim == 1:
        return values.tolist()
    return list(values.to_pylist() if hasattr(values, "to_pylist") else values)


def get_first(values: Any) -> Any:
    """Return the first item of a sequence or column that is not missing; None if all are."""
    first = values.iloc[0] if hasattr(values, "iloc") else values[0]
    first = first.as_py() if hasattr(first, "as_py") else first
    if not is_missing(first):
        return first
    return next((item for item in to_list(values) if not is_missing(item)), None)


def is_row(item: Any) -> bool:
    """Return whether an item is a list or an array with one dimension."""
    return isinstance(item, list | tuple) or len(getattr(item, "shape", ())) == 1


def is_image(item: Any) -> bool:
    """Return whether an item is an image, the path or the content of one, or a dict of these."""
    if isinstance(item, str | PathLike | bytes | Mapping):
        return True
    return hasattr(item, "getexif") or getattr(item, "ndim", 0) >= 2


def is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN, NaT, the NA of pandas or masked."""
    if value is None or value is np.ma.masked or type(value).__name__ == "NAType":
        return True
    if hasattr(value, "getexif"):  # an image would be decoded to be compared with itself
        return False
    try:
        differs_from_itself = value != value
    except ArithmeticError:  # the signaling NaN of decimal
        return True
    return isinstance(differs_from_itself, bool | np.bool_) and bool(differs_from_itself)


def to_builtin(value: Any) -> Any:
    """Convert NumPy scalars and members of enums to a built-in str, bool, int or float."""
    if isinstance(value, np.datetime64 | np.timedelta64):  # their item() may return an int
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and type(value) is not str:
        return str.__str__(value)
    if isinstance(value, int) and type(value) not in (int, bool):
        return int(value)
    return value


def check_not_masked(values: Any, name: str) -> None:
    """Raise ValueError with the rows of masked values, whose mask `np.asarray` would ignore."""
    if np.ma.is_masked(values):
        masked = np.ma.getmaskarray(values).reshape(len(values), -1)
        rows = np.flatnonzero(masked.any(axis=1))
        raise ValueError(
            f"{name} has masked values in {describe_rows(rows)}. Fill them in, or remove such "
            "rows."
        )


def as_numeric(features: Any, name: str) -> Any:
    """Return features; raise ValueError for masked values, dates, durations and loaders.

    NumPy would convert most of these to unintended numbers. A masked array without masked values,
    tensors of torch, and a column whose cells are arrays or lists are returned as plain arrays.
    """
    if is_dataset(features):
        features = to_list(features)
    if isinstance(features, list | tuple) and features:
        if isinstance(features[0], tuple) and any(map(is_row, features[0])):
            raise ValueError(
                f"{name} holds tuples with a row of features each. Pass the rows without other "
                f"values, such as labels: [{name}[i][0] for i in range(len({name}))]."
            )
        if hasattr(features[0], "detach"):
            return [as_numeric(row, name) for row in features]
    if hasattr(features, "detach"):
        features = features.detach().cpu()
        # NumPy has no bfloat16.
        return (features.float() if "bfloat16" in str(features.dtype) else features).numpy()
    # Other code explains why some sparse matrices, which lack __getitem__, cannot be used.
    is_array = any(hasattr(features, key) for key in ("__getitem__", "__array__", "ndim"))
    if isinstance(features, Sized) and not is_array:
        raise ValueError(
            f"{name} is a {type(features).__name__}, whose rows cannot be indexed. Pass an array "
            "of shape (n_samples, n_features)."
        )
    features = _stack_cells(features, name)
    check_not_masked(features, name)
    if isinstance(features, np.ma.MaskedArray):
        return np.asarray(features.data)
    dtype = getattr(features, "dtype", None)
    if getattr(dtype, "kind", "") in ("m", "M"):
        raise ValueError(f"{name} must hold numbers, not dates or durations ({dtype}).")
    return features


def _stack_cells(features: Any, name: str) -> Any:
    """Return a column of arrays or lists as a matrix, and anything else as it is."""
    if not (hasattr(features, "to_pylist") or len(getattr(features, "shape", ())) == 1):
        return features
    if not len(features) or not is_row(get_first(features)):
        return features
    cells = features.to_pylist() if hasattr(features, "to_pylist") else features
    rows = [np.asarray(as_numeric(cell, name)) for cell in cells]
    if len({row.shape for row in rows}) > 1:
        lengths = format_list(sorted({row.size for row in rows}), str)
        raise ValueError(
            f"{name} is a column of arrays of different lengths ({lengths}) or with empty cells. "
            "Pass one array per sample, all of the same length."
        )
    return np.stack(rows)


def as_floats(features: Any, name: str, **options: Any) -> np.ndarray:
    """Return an array of one of the types `FLOATS`, which may contain NaN and infinity."""
    return check_array(
        as_numeric(features, name),
        dtype=FLOATS,
        ensure_all_finite=False,
        input_name=name,
        **options,
    )


def as_column(values: Any, name: str) -> np.ndarray:
    """Return values as a one-dimensional array; they may be a matrix with one column.

    `sklearn.utils.column_or_1d` does the same, but its message names every parameter y.
    """
    array = check_array(
        values,
        dtype=None,
        ensure_2d=False,
        allow_nd=True,
        ensure_all_finite=False,
        ensure_min_samples=0,
        input_name=name,
    )
    if not array.ndim or array.shape[1:] not in ((), (1,)):
        raise ValueError(f"{name} must have one dimension, not the shape {array.shape}.")
    return array.reshape(-1)


def ignores_underflow(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that underflow is not an error, whatever the caller's `np.errstate`.

    Small probabilities, and products of small numbers, are correctly rounded to zero. The
    caller's settings for overflow, division by zero and invalid operations stay in force.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with np.errstate(under="ignore"):
            return function(*args, **kwargs)

    return wrapped


def as_label_array(y: Any) -> np.ndarray:
    """Return y as an array whose elements are equal to the labels; masked labels become None.

    In a list, NumPy would convert numbers to texts if there are also texts, cut off NUL at the end
    of texts, and convert a member of an Enum of texts to its name, cut off to the longest value.
    """
    # As an array, a dictionary column of pyarrow would have another label in place of null.
    if hasattr(y, "itercolumns"):  # a table of pyarrow
        return np.column_stack([as_label_array(column) for column in y.itercolumns()])
    if np.ma.is_masked(y):
        y = y.tolist()
    elif not hasattr(y, "__array__") or hasattr(y, "num_chunks"):
        y = to_list(y)
    if isinstance(y, list):
        y = [str.__str__(label) if isinstance(label, str) else label for label in y]
        is_text = [isinstance(label, str) for label in y]
        if len(set(is_text)) > 1 or (any(is_text) and any(label.endswith("\0") for label in y)):
            return np.fromiter(y, dtype=object, count=len(y))
    return np.asarray(y)


def as_labels(y: Any, name: str = "y") -> np.ndarray:
    """Return class labels as a one-dimensional array without converting them."""
    check_sequence(y, name, "class", "classes")
    try:
        labels: Any = as_column(as_label_array(y), name)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(f"{name} must hold one label per image, not lists of labels.") from None
    if labels.dtype.kind == "O":  # NA of pandas is neither equal to a label nor different from it
        is_na = [type(label).__name__ == "NAType" for label in labels]
        labels = np.where(is_na, None, labels)
    return labels


def check_not_missing(values: Iterable[Any], name: str) -> None:
    """Raise ValueError with the rows of missing labels."""
    missing = [row for row, value in enumerate(values) if is_missing(value)]
    if missing:
        raise ValueError(
            f"{name} has {describe_rows(missing, 'missing value')}. Remove such rows."
        )


def list_distinct_labels(y: np.ndarray, name: str) -> np.ndarray:
    """Return sorted distinct labels; raise ValueError if labels are missing or of mixed types."""
    check_not_missing(y.tolist(), name)
    try:
        return np.unique(y)
    except TypeError:
        raise ValueError(
            f"{name} mixes types that cannot be sorted, such as texts and numbers. Use one type."
        ) from None


def number_groups(groups: Any, n_rows: int) -> np.ndarray:
    """Return the group of each row as a number from 0, in order of appearance."""
    values = groups.tolist() if isinstance(groups, np.ndarray) else groups
    check_sequence(values, "groups", "group")
    columns = getattr(values, "column_names", getattr(values, "columns", None))
    if columns is not None:  # iterating would yield the columns
        listed = format_list(columns)
        raise ValueError(f"groups is a table with the columns {listed}. Pass one of them.")
    if (n := len(values)) != n_rows:
        raise ValueError(f"groups has {n} entries for {n_rows} rows. Pass one per row.")
    values = to_list(values)
    for row, value in enumerate(values):
        try:
            hash(value)  # a tuple may hold a list
        except TypeError:
            raise ValueError(
                f"groups must have one dimension, and row {row} is {reprlib.repr(value)}. Pass "
                "one text or number per row."
            ) from None
        if is_missing(value):
            raise ValueError(f"groups has a missing value in row {row}. Give every row a group.")
    return number_distinct(values)


def number_distinct(values: Iterable[Hashable]) -> np.ndarray:
    """Return the number of each distinct value, from 0 in order of appearance."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.intp)


def check_same_length(**values: Any) -> None:
    """Raise ValueError, with the names, unless all arguments that are not None have one length.

    `X` must also be a sequence of images or features.
    """
    if values.get("X") is not None:
        check_sequence(values["X"], "X", "image", "images or features")
    lengths = {name: _num_samples(value) for name, value in values.items() if value is not None}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{length} in {name}" for name, length in lengths.items())
        raise ValueError(
            f"{' and '.join(lengths)} have inconsistent numbers of samples: {listed}. Pass one "
            "entry of each per image."
        )
