"""Conversion of parameter values to strict JSON and tensors, and back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar, NoReturn

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

MOST_BYTES = 2**26


DEEPEST = 40


def dumped(value: Any) -> str:
    """Return JSON for people to read.

    Raises
    ------
    ValueError
        When it is too long to be read back.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > MOST_BYTES:
        raise ValueError(
            f"The model's config.json would be longer than {MOST_BYTES >> 20} MiB: it holds too "
            "many labels or texts."
        )
    return text


def loaded(text: str | bytes, what: str) -> dict[str, Any]:
    """Return the object that JSON describes.

    Parameters
    ----------
    text : str or bytes
        JSON in UTF-8.
    what : str
        What errors call it.

    Raises
    ------
    ValueError
        When it is no object, holds numbers that are not finite or a key twice, is too long or
        too deep.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{what} is longer than {MOST_BYTES >> 20} MiB: it is no model's.")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_once,
            parse_constant=_not_finite,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError(f"{what} is nested too deep.") from None
    except ValueError as error:  # JSON's own and Unicode's are kinds of it
        raise ValueError(f"{what} is no valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object, not a {type(value).__name__}.")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice.")
    return found


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON.")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is too large a number.")
    return number


# By name, so that this floor knows none of them, and what a file asks for is looked up here alone.
CLASSES = {
    **dict.fromkeys(
        (
            "APEAligner",
            "ASIFAligner",
            "CCAAligner",
            "CLIPAligner",
            "KernelAligner",
            "LiTAligner",
        ),
        "sklearn_ape.aligners",
    ),
    **dict.fromkeys(
        (
            "HeadPairs",
            "OpenCLIPImageEncoder",
            "OpenCLIPTextEncoder",
            "TimmImageEncoder",
            "TransformersImageEncoder",
            "TransformersTextEncoder",
        ),
        "sklearn_ape.encoders",
    ),
    "CrossModalRetriever": "sklearn_ape.retrieval",
    "MultiLabelZeroShotClassifier": "sklearn_ape.zero_shot._multilabel",
    "ZeroShotClassifier": "sklearn_ape.zero_shot",
}


def class_named(name: object) -> type:
    """Return a class that files may name.

    Raises
    ------
    ValueError
        When they may not.
    """
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(
            f"The model names the class {str(name)[:80]!r}, which is none of "
            f"{', '.join(sorted(CLASSES))}. It may come from a newer version: "
            "pip install --upgrade sklearn-ape."
        )
    found = getattr(import_module(CLASSES[name]), name)
    assert isinstance(found, type)
    return found


def is_recordable(value: object) -> bool:
    """Say whether an object is of one of the classes, and not of a subclass of one's own."""
    name = type(value).__name__
    return name in CLASSES and class_named(name) is type(value)


_NUMBER = re.compile(r"[<|][biuf][1248]")


_STRING = re.compile(r"<U(\d{1,7})")


_MOST_STRING_BYTES = 2**27


_REMEDIES = {
    "image_encoder": "Save without it: set_params(image_encoder=None) where X is features, or put "
    "it before the aligner in a Pipeline and save model[-1]",
    "text_encoder": "Save without it: set_params(text_encoder=None) and pass features of texts",
    "standardize": "Set standardize to True or False before saving, and the collection again "
    "after loading",
    "labels": "Give labels as texts or numbers, in a list or a dict",
    "aligner": "Give an aligner of sklearn_ape, a Pipeline of an encoder and an aligner, or "
    "FrozenEstimator around either; of a search save best_estimator_",
    "steps": "Steps of a Pipeline may be encoders and aligners of sklearn_ape; save the aligner, "
    "model[-1], and build the Pipeline again after loading",
}


_REMEDY = "Expected None, bool, numbers, str, lists, tuples, dicts, numpy arrays, or encoders and "
_REMEDY += "aligners of sklearn_ape"


class Recorder:
    """Turns values into JSON; numeric arrays are put aside under the name of their place.

    Attributes
    ----------
    tensors : dict of str to ndarray
        By name.
    left_out : list of str
        Places of parameters that have no form as JSON and no use after a fit.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self.left_out: list[str] = []

    def object(self, value: Any, where: str) -> dict[str, Any]:
        """Record an estimator, or what it is made of.

        Raises
        ------
        TypeError
            When a value has no form; the message names the parameter and the remedy.
        """
        record = value._to_record()
        params: dict[str, Any] = {}
        for name, param in record.params.items():
            place = f"{where}.{name}"
            if name in value._left_out:
                if param is not None:
                    self.left_out.append(place)
            elif isinstance(param, np.random.RandomState | np.random.Generator):
                self.left_out.append(place)
                params[name] = None
            else:
                params[name] = self.value(param, place)
        state = None if record.state is None else self._items(record.state, where)
        return {"$class": type(value).__name__, "params": params, "state": state}

    def value(self, value: Any, where: str, depth: int = 0) -> Any:
        """Record any value."""
        if depth > DEEPEST // 2:
            raise TypeError(f"{where} is nested too deep to be saved.")
        if value is None or type(value) in (bool, int):
            return value
        if type(value) is str:
            return _checked_text(value, where)
        if type(value) is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, np.generic):
            return self._scalar(value, where)
        if isinstance(value, np.ndarray):
            return self._array(value, where, depth)
        if type(value) in (list, tuple):
            items = [self.value(v, f"{where}.{i}", depth + 1) for i, v in enumerate(value)]
            return items if type(value) is list else {"$tuple": items}
        if type(value) is dict:
            return self._dict(value, where, depth)
        if type(value) is Pipeline:
            steps = [[name, self.value(step, f"{where}.steps")] for name, step in value.steps]
            return {"$pipeline": steps}
        if type(value) is FrozenEstimator:
            return {"$frozen": self.value(value.estimator, f"{where}.estimator")}
        if is_recordable(value):
            return self.object(value, where)
        return self._refuse(value, where)

    def _items(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        return {name: self.value(value, f"{where}.{name}", 1) for name, value in values.items()}

    def _dict(self, value: dict[Any, Any], where: str, depth: int) -> dict[str, Any]:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {
                _checked_text(key, where): self.value(item, f"{where}.{key}", depth + 1)
                for key, item in value.items()
            }
        pairs = [
            [self.value(key, where, depth + 1), self.value(item, f"{where}.{i}", depth + 1)]
            for i, (key, item) in enumerate(value.items())
        ]
        return {"$map": pairs}

    def _scalar(self, value: np.generic, where: str) -> Any:
        if not (_NUMBER.fullmatch(value.dtype.str) or value.dtype.kind == "U"):
            return self._refuse(value, where)
        return {"$numpy": [value.dtype.str, self.value(value.item(), where)]}

    def _array(self, value: np.ndarray, where: str, depth: int) -> Any:
        if value.dtype.kind == "T":  # numpy's StringDType, of any length
            value = value.astype(object)
        if value.dtype.kind in "UO":
            items = [
                self.value(item, f"{where}.{i}", depth + 1) for i, item in enumerate(value.flat)
            ]
            if value.dtype.kind == "U":
                items = [str(item) for item in value.flat]
            kind = "object" if value.dtype.kind == "O" else value.dtype.newbyteorder("<").str
            return {"$array": [kind, list(value.shape), items]}
        value = np.ascontiguousarray(value).reshape(value.shape)
        value = value.astype(value.dtype.newbyteorder("="), copy=False)
        if not _NUMBER.fullmatch(value.dtype.str):
            return self._refuse(value, where)
        self.tensors[where] = value
        return {"$tensor": where}

    def _refuse(self, value: Any, where: str) -> Any:
        inner_first = reversed(where.split("."))
        remedy = next((_REMEDIES[name] for name in inner_first if name in _REMEDIES), None)
        raise TypeError(
            f"{where} cannot be saved: it is a {type(value).__module__}."
            f"{type(value).__qualname__}, which has no safe form in a file. {remedy or _REMEDY}."
        )


class Rebuilder:
    """Turns JSON and tensors back into what they were.

    Parameters
    ----------
    tensors : dict of str to ndarray
        Each is given out once.
    settings : mapping of str to object
        Parameters of the machine, for the estimators that have them.
    """

    def __init__(self, tensors: dict[str, np.ndarray], settings: Mapping[str, Any]) -> None:
        self.tensors = dict(tensors)
        self.settings = settings

    def object(self, value: Any) -> Any:
        """Return the estimator that was recorded.

        Raises
        ------
        ValueError
            When it is none of those that may be.
        """
        if not isinstance(value, dict) or value.keys() != {"$class", "params", "state"}:
            raise ValueError("The model must be an object of '$class', 'params' and 'state'.")
        found: Any = class_named(value["$class"])
        if not isinstance(value["params"], dict):
            raise ValueError(f"params of {found.__name__} must be an object.")
        params = {name: self.value(param) for name, param in value["params"].items()}
        state = None if value["state"] is None else self.value(value["state"])
        return found._from_record(params, state, self.settings)

    def value(self, value: Any) -> Any:
        """Return any value."""
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if not isinstance(value, dict):
            return value
        tags = [key for key in value if key.startswith("$")]
        if not tags:
            return {key: self.value(item) for key, item in value.items()}
        if "$class" in value:
            return self.object(value)
        if len(value) != 1 or tags[0] not in self._TAGS:
            raise ValueError(f"The model holds a value of the unknown kind {tags[0][:80]!r}.")
        return self._TAGS[tags[0]](self, value[tags[0]])

    def close(self) -> None:
        """Refuse tensors that nothing stands for."""
        if self.tensors:
            raise ValueError(
                f"model.safetensors holds {min(self.tensors)[:80]!r}, which config.json does not "
                "name."
            )

    def _tensor(self, name: Any) -> np.ndarray:
        if not isinstance(name, str) or name not in self.tensors:
            raise ValueError(
                f"config.json names the tensor {str(name)[:80]!r}, which model.safetensors lacks "
                "(or which was named before)."
            )
        return self.tensors.pop(name)

    def _float(self, text: Any) -> float:
        if text not in ("nan", "inf", "-inf"):
            raise ValueError(f"$float must be nan, inf or -inf, not {str(text)[:20]!r}.")
        return float(text)

    def _tuple(self, items: Any) -> tuple[Any, ...]:
        return tuple(self.value(_list(items, "$tuple")))

    def _map(self, pairs: Any) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for pair in _list(pairs, "$map"):
            key, item = self.value(_list(pair, "$map", 2))
            try:
                found[key] = item
            except TypeError:
                raise ValueError("$map holds a key that can be none.") from None
        if len(found) != len(pairs):
            raise ValueError("$map holds a key twice.")
        return found

    def _numpy(self, given: Any) -> np.generic:
        kind, item = _list(given, "$numpy", 2)
        return _dtype(kind, 1).type(self.value(item))

    def _array(self, given: Any) -> np.ndarray:
        kind, shape, items = _list(given, "$array", 3)
        items = self.value(_list(items, "$array"))
        size = math.prod(_size(n) for n in _list(shape, "$array"))
        if len(shape) > 8 or size != len(items):
            raise ValueError(f"$array of shape {str(shape)[:40]} holds {len(items)} items.")
        if kind == "object":
            found = np.empty(len(items), dtype=object)
            for number, item in enumerate(items):  # one by one: an item may be a list
                found[number] = item
        else:
            if not all(isinstance(item, str) for item in items):
                raise ValueError("$array must hold texts.")
            found = np.array(items, dtype=_dtype(kind, len(items)))
        return found.reshape(shape)

    def _pipeline(self, steps: Any) -> Pipeline:
        found = []
        for step in _list(steps, "$pipeline"):
            name, item = _list(step, "$pipeline", 2)
            item = self.value(item)
            nothing = item is None or (isinstance(item, str) and item == "passthrough")
            if not isinstance(name, str) or not (nothing or _fits(item)):
                raise ValueError("A step of $pipeline must be a name and an estimator.")
            found.append((name, item))
        if not found:
            raise ValueError("$pipeline has no steps.")
        pipeline = Pipeline(found)
        pipeline._validate_names([name for name, _ in found])
        return pipeline

    def _frozen(self, estimator: Any) -> FrozenEstimator:
        found = self.value(estimator)
        if not _fits(found):
            raise ValueError("$frozen must hold an estimator.")
        return FrozenEstimator(found)

    _TAGS: ClassVar = {
        "$array": _array,
        "$float": _float,
        "$frozen": _frozen,
        "$map": _map,
        "$numpy": _numpy,
        "$pipeline": _pipeline,
        "$tensor": _tensor,
        "$tuple": _tuple,
    }


def _fits(value: Any) -> bool:
    return isinstance(value, Pipeline | FrozenEstimator) or is_recordable(value)


def _checked_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TypeError(f"{where} is no valid Unicode ({error.reason}).") from None
    return text


def _list(value: Any, what: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise ValueError(f"{what} must be a list{'' if length is None else f' of {length}'}.")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**32:
        raise ValueError("A shape must be of small integers.")
    return value


def _dtype(kind: Any, n_items: int) -> np.dtype:
    if isinstance(kind, str):
        string = _STRING.fullmatch(kind)
        if _NUMBER.fullmatch(kind) or (
            string and 4 * int(string[1]) * n_items <= _MOST_STRING_BYTES
        ):
            return np.dtype(kind)
    raise ValueError(f"The model holds numbers or texts of the unknown type {str(kind)[:40]!r}.")
