"""Conversion of parameter values to plain data and tensors, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

# Values with cycles would be nested infinitely.
_MAX_DEPTH = 20


# Classes that a file may name. They are imported on demand, because they are in higher layers.
CLASSES = {
    "APEAligner": "sklearn_ape.aligners",
    "ASIFAligner": "sklearn_ape.aligners",
    "CCAAligner": "sklearn_ape.aligners",
    "CLIPAligner": "sklearn_ape.aligners",
    "CrossModalRetriever": "sklearn_ape.retrieval",
    "HeadPairs": "sklearn_ape.encoders",
    "KernelAligner": "sklearn_ape.aligners",
    "LiTAligner": "sklearn_ape.aligners",
    "FewShotClassifier": "sklearn_ape.zero_shot",
    "MultiLabelZeroShotClassifier": "sklearn_ape.zero_shot",
    "OpenCLIPImageEncoder": "sklearn_ape.encoders",
    "OpenCLIPTextEncoder": "sklearn_ape.encoders",
    "SentenceTransformerEncoder": "sklearn_ape.encoders",
    "SentenceTransformerImageEncoder": "sklearn_ape.encoders",
    "TimmImageEncoder": "sklearn_ape.encoders",
    "TransformersImageEncoder": "sklearn_ape.encoders",
    "TransformersTextEncoder": "sklearn_ape.encoders",
    "ZeroShotClassifier": "sklearn_ape.zero_shot",
}


def get_class(name: object) -> type:
    """Return the class of a name in a file; raise ValueError unless it is one of `CLASSES`."""
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(
            f"The model names the class {str(name)[:80]!r}, which is not one of "
            f"{', '.join(sorted(CLASSES))}. If it was saved by a newer version: "
            "pip install --upgrade sklearn-ape."
        )
    return getattr(import_module(CLASSES[name]), name)


def iter_records(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the records of estimators at any depth of the record of a model, itself first."""
    if isinstance(value, dict):
        if "$class" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from iter_records(item)


def is_serializable(value: object) -> bool:
    """Return whether the class of an object is one of `CLASSES`; subclasses are not."""
    name = type(value).__name__
    return name in CLASSES and get_class(name) is type(value)


# Types of numbers and of strings of a length.
_DTYPE = re.compile(r"[<|][biuf][1248]|<U(?P<length>\d{1,7})")
# A short file could otherwise name strings that fill the memory.
_MAX_STRING_BYTES = 2**27

_REMEDIES = {
    "image_encoder": "Fit the aligner with image_encoder=None, on features that the encoder "
    "computes, for example as the last step of a Pipeline, and save model[-1]",
    "text_encoder": "Fit the aligner with text_encoder=None, on features of texts that the "
    "encoder computes",
    "standardize": "Set standardize to True or False before saving, and to the collection after "
    "loading",
    "cv": "Set cv to an integer before saving, as only fit uses it",
    "labels": "Pass labels as texts or numbers, in a list or a dict",
    "aligner": "Pass an aligner of sklearn_ape, a Pipeline of an encoder and an aligner, or a "
    "FrozenEstimator of either. From a search, pass best_estimator_",
    "steps": "The steps of a Pipeline must be encoders and aligners of sklearn_ape. Otherwise "
    "save the aligner, model[-1], and build the Pipeline after loading",
}

# Suffix of the names of the scales of a matrix whose rows are stored as 8-bit integers.
_SCALE_SUFFIX = " (scale)"

_REMEDY = (
    "Pass None, bool, numbers, str, lists, tuples, dicts, NumPy arrays, or encoders and aligners "
    "of sklearn_ape"
)


class Serializer:
    """Converts values to JSON, and collects arrays and the paths of parameters that are left out.

    Matrices that were rounded to 8-bit integers times a scale per row, like those of the starter
    model, are stored as such, in a quarter of the space. Values that cannot be saved raise
    TypeError, which names the parameter and a remedy.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self.left_out: list[str] = []

    def encode_estimator(self, value: Any, where: str) -> dict[str, Any]:
        """Convert an estimator or a part of one."""
        recorded_params, state = value._to_record()
        params: dict[str, Any] = {}
        for name, param in recorded_params.items():
            place = f"{where}.{name}"
            if name in value._unsaved_params:
                if param is not None:
                    self.left_out.append(place)
            elif isinstance(param, np.random.RandomState | np.random.Generator):
                self.left_out.append(place)
                params[name] = None
            else:
                params[name] = self.encode(param, place)
        if state is not None:
            state = {key: self.encode(item, f"{where}.{key}", 1) for key, item in state.items()}
        return {"$class": type(value).__name__, "params": params, "state": state}

    def encode(self, value: Any, where: str, depth: int = 0) -> Any:
        """Convert any value."""
        if depth > _MAX_DEPTH:
            raise TypeError(f"{where} is nested too deeply to be saved.")
        if value is None or type(value) in (bool, int):
            return value
        if type(value) is str:
            return _check_text(value, where)
        if type(value) is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, np.generic) and _DTYPE.fullmatch(value.dtype.str):
            return {"$numpy": [value.dtype.str, self.encode(value.item(), where)]}
        if isinstance(value, np.ndarray):
            return self._encode_array(value, where, depth)
        if type(value) in (list, tuple):
            items = [self.encode(v, f"{where}.{i}", depth + 1) for i, v in enumerate(value)]
            return items if type(value) is list else {"$tuple": items}
        if type(value) is dict:
            return self._encode_dict(value, where, depth)
        if type(value) is Pipeline:
            steps = [[name, self.encode(step, f"{where}.steps")] for name, step in value.steps]
            return {"$pipeline": steps}
        if type(value) is FrozenEstimator:
            return {"$frozen": self.encode(value.estimator, f"{where}.estimator")}
        if is_serializable(value):
            return self.encode_estimator(value, where)
        return self._refuse(value, where)

    def _encode_dict(self, value: dict[Any, Any], where: str, depth: int) -> dict[str, Any]:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {
                _check_text(key, where): self.encode(item, f"{where}.{key}", depth + 1)
                for key, item in value.items()
            }
        keys = [self.encode(key, where, depth + 1) for key in value]
        items = [self.encode(v, f"{where}.{i}", depth + 1) for i, v in enumerate(value.values())]
        return {"$map": [[key, item] for key, item in zip(keys, items, strict=True)]}

    def _encode_array(self, value: np.ndarray, where: str, depth: int) -> Any:
        if value.dtype.kind == "T":  # NumPy's StringDType has no fixed length
            value = value.astype(object)
        if value.dtype.kind in "UO":
            elements = value.ravel().tolist()
            items = [self.encode(v, f"{where}.{i}", depth + 1) for i, v in enumerate(elements)]
            kind = "object" if value.dtype.kind == "O" else value.dtype.newbyteorder("<").str
            return {"$array": [kind, list(value.shape), items]}
        value = np.ascontiguousarray(value).reshape(value.shape)
        value = value.astype(value.dtype.newbyteorder("="), copy=False)
        if not _DTYPE.fullmatch(value.dtype.str):
            return self._refuse(value, where)
        if where in self.tensors:
            raise TypeError(
                f"{where} is the path of two arrays. Rename a key that contains a dot."
            )
        self.tensors[where] = value
        scale_name = where + _SCALE_SUFFIX
        if scale_name not in self.tensors and (packed := _pack_rows(value)) is not None:
            self.tensors[where], self.tensors[scale_name] = packed
        return {"$tensor": where}

    def _refuse(self, value: Any, where: str) -> Any:
        innermost_first = reversed(where.split("."))
        remedy = next((_REMEDIES[name] for name in innermost_first if name in _REMEDIES), _REMEDY)
        raise TypeError(
            f"{where} cannot be saved, as {type(value).__module__}.{type(value).__qualname__} "
            f"has no safe file format. {remedy}."
        )


class Deserializer:
    """Converts JSON and arrays by path, of which each can be used once, back to values.

    The settings are runtime parameters, such as the device, for the estimators that have them.
    """

    def __init__(self, tensors: dict[str, np.ndarray], settings: Mapping[str, Any]) -> None:
        self.tensors = dict(tensors)
        self.settings = settings

    def decode_estimator(self, value: Any) -> Any:
        """Return the estimator of a record."""
        if not isinstance(value, dict) or value.keys() != {"$class", "params", "state"}:
            raise ValueError("The model must be an object of '$class', 'params' and 'state'.")
        cls: Any = get_class(value["$class"])
        if not isinstance(value["params"], dict):
            raise ValueError(f"params of {cls.__name__} must be an object.")
        params = {name: self.decode(param) for name, param in value["params"].items()}
        state = None if value["state"] is None else self.decode(value["state"])
        return cls._from_record(params, state, self.settings)

    def decode(self, value: Any) -> Any:
        """Return the value of JSON."""
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        tags = [key for key in value if key.startswith("$")]
        if not tags:
            return {key: self.decode(item) for key, item in value.items()}
        if "$class" in value:
            return self.decode_estimator(value)
        if len(value) != 1 or tags[0] not in self._DECODERS:
            raise ValueError(f"The model has a value of the unknown kind {tags[0][:80]!r}.")
        return self._DECODERS[tags[0]](self, value[tags[0]])

    def close(self) -> None:
        """Raise ValueError if an array was not used."""
        if self.tensors:
            raise ValueError(
                f"model.safetensors has an array {min(self.tensors)[:80]!r} that config.json does "
                "not name."
            )

    def _decode_tensor(self, name: Any) -> np.ndarray:
        if not isinstance(name, str) or name not in self.tensors:
            raise ValueError(
                f"config.json names the array {str(name)[:80]!r}, which model.safetensors lacks "
                "(or which was named before)."
            )
        array, scale_name = self.tensors.pop(name), name + _SCALE_SUFFIX
        if array.dtype != np.int8 or scale_name not in self.tensors:
            return array
        scale = self.tensors.pop(scale_name)
        if array.ndim != 2 or scale.shape != array.shape[:1]:
            raise ValueError(f"{scale_name!r} has no value for each row of the array {name!r}.")
        return array * scale[:, None]

    def _decode_float(self, text: Any) -> float:
        if text not in ("nan", "inf", "-inf"):
            raise ValueError(f"$float must be nan, inf or -inf, not {str(text)[:20]!r}.")
        return float(text)

    def _decode_tuple(self, items: Any) -> tuple[Any, ...]:
        return tuple(self.decode(_check_list(items, "$tuple")))

    def _decode_map(self, pairs: Any) -> dict[Any, Any]:
        items = [self.decode(_check_list(pair, "$map", 2)) for pair in _check_list(pairs, "$map")]
        try:
            content = dict(items)
        except TypeError:
            raise ValueError("$map has a key that is not hashable.") from None
        if len(content) != len(pairs):
            raise ValueError("$map has a duplicate key.")
        return content

    def _decode_numpy(self, content: Any) -> np.generic:
        kind, item = _check_list(content, "$numpy", 2)
        return _check_dtype(kind, 1).type(self.decode(item))

    def _decode_array(self, content: Any) -> np.ndarray:
        kind, shape, items = _check_list(content, "$array", 3)
        items = self.decode(_check_list(items, "$array"))
        if not all(type(n) is int and 0 <= n < 2**32 for n in _check_list(shape, "$array")):
            raise ValueError("A shape must consist of integers from 0 to 2**32 - 1.")
        if len(shape) > 8 or math.prod(shape) != len(items):
            raise ValueError(f"$array of shape {str(shape)[:40]} has {len(items)} items.")
        if kind == "object":  # np.array would unpack lists
            array = np.fromiter(items, dtype=object, count=len(items))
        else:
            if not all(isinstance(item, str) for item in items):
                raise ValueError("The items of $array must be texts.")
            array = np.array(items, dtype=_check_dtype(kind, len(items)))
        return array.reshape(shape)

    def _decode_pipeline(self, steps: Any) -> Pipeline:
        estimators = []
        for step in _check_list(steps, "$pipeline"):
            name, item = _check_list(step, "$pipeline", 2)
            item = self.decode(item)
            is_empty = item is None or (isinstance(item, str) and item == "passthrough")
            if not isinstance(name, str) or not (is_empty or _is_estimator(item)):
                raise ValueError("A step of $pipeline must be a name and an estimator.")
            estimators.append((name, item))
        if not estimators:
            raise ValueError("$pipeline has no steps.")
        pipeline = Pipeline(estimators)
        pipeline._validate_names([name for name, _ in estimators])
        return pipeline

    def _decode_frozen(self, estimator: Any) -> FrozenEstimator:
        inner = self.decode(estimator)
        if not _is_estimator(inner):
            raise ValueError("The value of $frozen must be an estimator.")
        return FrozenEstimator(inner)

    _DECODERS: ClassVar = {
        "$array": _decode_array,
        "$float": _decode_float,
        "$frozen": _decode_frozen,
        "$map": _decode_map,
        "$numpy": _decode_numpy,
        "$pipeline": _decode_pipeline,
        "$tensor": _decode_tensor,
        "$tuple": _decode_tuple,
    }


def _pack_rows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return integers and scales of which the products equal a matrix exactly, or None."""
    if values.ndim != 2 or values.dtype != np.float32 or not values.size:
        return None
    # Most matrices are not of this kind, which their first row shows.
    for rows in (values[:1], values):
        largest = np.abs(rows).max(axis=1)
        scale = largest / np.float32(127)
        with np.errstate(invalid="ignore"):  # infinite values
            integers = np.rint(rows / np.where(scale > 0, scale, 1)[:, None])
            is_equal = np.array_equal(integers * scale[:, None], rows)
        if not is_equal:
            return None
    return integers.astype(np.int8), scale


def _is_estimator(value: Any) -> bool:
    return isinstance(value, Pipeline | FrozenEstimator) or is_serializable(value)


def _check_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TypeError(f"{where} is not valid Unicode ({error.reason}).") from None
    return text


def _check_list(value: Any, what: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise ValueError(f"{what} must be a list{'' if length is None else f' of {length}'}.")
    return value


def _check_dtype(kind: Any, n_items: int) -> np.dtype:
    match = _DTYPE.fullmatch(kind) if isinstance(kind, str) else None
    if match is None or 4 * int(match["length"] or 0) * n_items > _MAX_STRING_BYTES:
        raise ValueError(f"The model has values of the unknown type {str(kind)[:40]!r}.")
    return np.dtype(kind)
