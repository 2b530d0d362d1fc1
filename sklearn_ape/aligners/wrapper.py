"""Base class for estimators that wrap an aligner, and the choice of that aligner."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import Tags, get_tags

from ..encoders import TimmImageEncoder, TransformersTextEncoder
from ..heads import ClosedFormHead, KernelMap, TwoTower, WhitenedMap
from ..persistence import FittedState, PretrainedMixin
from ..persistence.hub import Facts
from ..prompts import list_labels, resolve_names, to_builtin
from ..utils.torch_state import default_state
from .fitted_images import FittedImages, embedding_digest
from .kernel import KernelAligner
from .similarity import Bank

FOLDER = Path(__file__).with_name("starter")


_FORMAT = 1


def encoders(**options: Any) -> tuple[TimmImageEncoder, TransformersTextEncoder]:
    """Return the encoders that the starter model was made with; options such as ``cache``."""
    return (
        TimmImageEncoder("efficientnet_lite0", pooling="gem", crop="pad", **options),
        TransformersTextEncoder("all-MiniLM-L6-v2", **options),
    )


@cache
def load_starter() -> KernelAligner:
    """Return the starter model, a fitted aligner that ships with the package.

    Estimators with ``aligner=None`` use it. It takes images and texts.

    Returns
    -------
    aligner : KernelAligner
        Fitted, with its encoders. Always the same object: make a ``copy.deepcopy`` before you
        change parameters of its encoders.

    Raises
    ------
    ImportError
        When the packages that carry the encoders' weights are not installed.

    See Also
    --------
    load_pretrained : Load an aligner that was saved.

    Examples
    --------
    >>> from sklearn_ape import load_starter
    >>> load_starter().transform_text(["a cat", "a dog"]).shape
    (2, 640)
    """
    aligner = unpacked(FOLDER / "model.safetensors")
    aligner.image_encoder_._check_parameters()
    aligner.text_encoder_._check_parameters()
    return aligner


def packed(aligner: KernelAligner) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return an aligner as small tensors and their description.

    Anchors and coefficients, nearly all of it, become 8-bit integers with a scale a row.
    """
    image, text = (
        cast(Any, head).base for head in (aligner.module_.image_head, aligner.module_.text_head)
    )
    tensors = {
        "image_mean": image.mean.numpy(),
        "image_directions": image.directions.numpy().astype(np.float16),
    }
    tensors["fitted_images"] = aligner._fitted_images.keys
    rows = {
        "anchors": text.anchors.numpy(),
        "coefficients": text.coefficients.numpy(),
        "bank_image": aligner.bank_.image,
        "bank_text": aligner.bank_.text,
    }
    for name, values in rows.items():
        tensors[name], tensors[f"{name}_scale"] = _eight_bit(values)
    described = {
        "format": _FORMAT,
        "gamma": aligner.gamma_,
        "logit_scale": aligner.logit_scale_,
    }
    # One entry: several are written in any order, and equal models should be equal files.
    return tensors, {"sklearn_ape": json.dumps(described)}


@default_state()
def unpacked(path: Path) -> KernelAligner:
    """Return a fitted aligner from a file of `packed` tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        described = json.loads(file.metadata()["sklearn_ape"])
        if described["format"] != _FORMAT:
            raise ValueError(
                f"{str(path)!r} is of format {described['format']}, this version of sklearn-ape "
                f"reads {_FORMAT}: reinstall sklearn-ape."
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    rows = {
        name: tensors[name].astype(np.float32) * tensors[f"{name}_scale"][:, None]
        for name in ("anchors", "coefficients", "bank_image", "bank_text")
    }
    anchors = torch.nn.functional.normalize(torch.from_numpy(rows["anchors"]))
    directions = tensors["image_directions"].astype(np.float32)
    module = TwoTower(
        ClosedFormHead(WhitenedMap(tensors["image_mean"], directions)),
        ClosedFormHead(KernelMap(anchors, rows["coefficients"], described["gamma"])),
    )
    image_encoder, text_encoder = encoders()
    aligner = KernelAligner(image_encoder=image_encoder, text_encoder=text_encoder)
    aligner._keep(module.eval())
    aligner.logit_scale_ = described["logit_scale"]
    aligner.image_encoder_, aligner.text_encoder_ = encoders()
    aligner.n_features_in_ = len(tensors["image_mean"])
    aligner.n_text_features_in_ = anchors.shape[1]
    aligner.bank_ = Bank.of(rows["bank_image"], rows["bank_text"])
    aligner._fitted_images = FittedImages(tensors["fitted_images"], are_contents=True)
    return aligner


def _eight_bit(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = np.abs(values).max(axis=1) / 127
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.rint(values / scale[:, None]).astype(np.int8), scale


_CLIP = "open_clip:"


def resolve_aligner(aligner: Any) -> Any:
    """Return the aligner that a name stands for; an aligner as it is.

    Parameters
    ----------
    aligner : None, str or estimator
        None is the starter model; ``"open_clip:"`` and the name of an OpenCLIP model, or an
        estimator.

    Returns
    -------
    aligner : estimator
        For one name always the same object, so that what is computed for it is kept.

    Raises
    ------
    ValueError
        When the name stands for nothing; the message lists the forms.
    """
    if aligner is None:
        return load_starter()
    return _named(aligner) if isinstance(aligner, str) else aligner


@lru_cache(maxsize=8)
def _named(name: str) -> Any:
    from . import CLIPAligner

    if not name.startswith(_CLIP) or name == _CLIP:
        saved = ""
        if "/" in name or os.path.isdir(name):
            saved = f" A saved one is loaded first: aligner=load_pretrained({name!r})."
        raise ValueError(
            f"aligner={name!r} names no aligner.{saved} Expected 'open_clip:ViT-B-32/openai' "
            "('open_clip:', then architecture/weights, a hub name or a folder), or an estimator: "
            "a fitted APEAligner, a Pipeline that ends in one, ..."
        )
    aligner = CLIPAligner(name.removeprefix(_CLIP))
    aligner.text_encoder._check_parameters()
    return aligner


def unwrap_aligner(aligner: Any) -> Any:
    """Return the estimator that embeds texts: the aligner within a Pipeline, a search, ...

    Raises
    ------
    TypeError
        When there is none.
    """
    inner = aligner
    while not hasattr(inner, "transform_text"):
        if isinstance(inner, Pipeline):
            inner = inner.steps[-1][1]
        elif isinstance(inner, FrozenEstimator):
            inner = inner.estimator
        elif hasattr(inner, "best_estimator_"):
            inner = inner.best_estimator_
        elif hasattr(inner, "estimator") and hasattr(inner, "fit"):
            inner = inner.estimator
        else:
            raise TypeError(
                f"aligner must be an aligner such as APEAligner, or a Pipeline that ends in one, "
                f"not {type(aligner).__name__}."
            )
    return inner


_SAME = "as the parameter says"


_NAMED = 20


class AlignerWrapperMixin(PretrainedMixin):
    """Base of estimators whose ``aligner`` parameter is an aligner or stands for one.

    Subclasses say with `_own_state` and `_restore_own` what else they keep, and in `_fit_only`
    which parameters have no effect before the next fit.
    """

    aligner: Any
    _fit_only: ClassVar[tuple[str, ...]] = ("aligner",)

    def _note_fit(self) -> None:
        """Record the digest of the aligner and the parameters, for `_check_current`."""
        self._at_fit = {
            "embeddings": embedding_digest(self._aligner_in_use()),
            "parameters": {name: getattr(self, name) for name in self._fit_only},
        }

    def _check_current(self) -> None:
        """Raise ValueError if the aligner or a parameter of `fit` was changed after `fit`."""
        noted = getattr(self, "_at_fit", None)
        if noted is None:
            return
        for name, then in noted["parameters"].items():
            now = getattr(self, name)
            if now is not then and not (isinstance(then, str) and now == then):
                raise ValueError(
                    f"{name}={_shown(now)} was set after fit, which used another one. Call fit "
                    "again, or set it back."
                )
        if embedding_digest(self._aligner_in_use()) != noted["embeddings"]:
            raise ValueError(
                f"aligner was changed since this {type(self).__name__} was fitted: it was fitted "
                "again, or a parameter of its encoders or of another step of its Pipeline was "
                "set. Embeddings are not comparable with those of the fit. Call fit again, or set "
                "the parameter back."
            )

    def __getstate__(self) -> dict[str, Any]:
        attributes: Any = super().__getstate__()
        state = dict(attributes)
        noted = state.get("_at_fit")
        if noted is not None:
            # A digest is valid in one process: `__setstate__` computes it again, if it is current.
            is_current = embedding_digest(self._aligner_in_use()) == noted["embeddings"]
            state["_at_fit"] = {**noted, "embeddings": None if is_current else ""}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if hasattr(self, "aligner_") and "_at_fit" not in state:  # of an earlier version
            self._note_fit()
        elif "_at_fit" in state and state["_at_fit"]["embeddings"] is None:
            self._at_fit["embeddings"] = embedding_digest(self._aligner_in_use())

    def _own_state(self) -> dict[str, Any]:
        """Return what was fitted besides the aligner."""
        return {}

    def _restore_own(self, state: FittedState) -> None:
        """Put it back."""

    def _recorded_params(self) -> dict[str, Any]:
        params = super()._recorded_params()
        if hasattr(self, "aligner_") and not self._is_as_given():
            # It was fitted anew: what the parameter itself had learned answers nothing.
            params["aligner"] = None if self.aligner is None else clone(self.aligner)
        return params

    def _fitted_state(self) -> dict[str, Any]:
        aligner: Any = None
        if hasattr(self, "aligner_"):
            aligner = _SAME if self._is_as_given() else self.aligner_
        return {
            "aligner": aligner,
            "starter": load_starter().fingerprint_ if self._uses_starter() else None,
            **self._own_state(),
        }

    def _restore_state(self, state: FittedState) -> None:
        aligner = state.optional("aligner")
        if aligner is not None:
            same = isinstance(aligner, str) and aligner == _SAME
            self.aligner_ = resolve_aligner(self.aligner) if same else aligner
            unwrap_aligner(self.aligner_)
        starter = state.optional("starter")
        if starter is not None and starter != load_starter().fingerprint_:
            raise ValueError(
                "This version of sklearn-ape has another starter model than the one that was "
                "saved with, and would answer otherwise. Install the version that README.md of "
                "the model names. (What is saved with aligner=load_starter() keeps its own.)"
            )
        self._restore_own(state)
        if hasattr(self, "aligner_"):
            self._note_fit()

    def _aligner_in_use(self) -> Any:
        return self.aligner_ if hasattr(self, "aligner_") else resolve_aligner(self.aligner)

    def _uses_starter(self) -> bool:
        """Say whether the starter model is used, and is not stored in the file."""
        return self.aligner is None and (not hasattr(self, "aligner_") or self._is_as_given())

    def _is_as_given(self) -> bool:
        given = self.aligner
        if given is not None and not isinstance(given, str):
            return self.aligner_ is given
        return isinstance(given, str) and self.aligner_ is resolve_aligner(given)

    def _aligner_facts(self) -> Facts:
        """Return what the card tells of the aligner."""
        aligner = self._aligner_in_use()
        inner = unwrap_aligner(aligner)
        facts = inner._card_facts() if isinstance(inner, PretrainedMixin) else Facts()
        own = {"aligner": type(inner).__name__, **facts.facts}
        if self._uses_starter():
            own["encoders"] = "those of the starter model, which comes with sklearn-ape"
        return Facts(
            what=facts.what,
            facts=own,
            scores=facts.scores,
            limits=facts.limits,
            tags=facts.tags,
        )

    def __sklearn_tags__(self) -> Tags:
        """Return tags that say of X what the aligner's do."""
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        if self.aligner is None or isinstance(self.aligner, str):
            tags.input_tags.two_d_array = False
        elif hasattr(self.aligner, "__sklearn_tags__"):
            tags.input_tags = get_tags(self.aligner).input_tags
        return tags


def _shown(value: Any) -> str:
    is_plain = value is None or isinstance(value, str)
    return repr(value) if is_plain else f"{type(value).__name__}(...)"


class SavedClassifier(AlignerWrapperMixin):
    """The part of a classifier by names that is saved and loaded."""

    labels: Any
    _says = "which of the classes an image shows, by the cosine of the image with the classes'"

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        if "aligner_" in state and self._uses_starter():
            state = {**state, "aligner_": None}  # every installation has these 54 MB
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "aligner_" in state and state["aligner_"] is None:
            state = {**state, "aligner_": load_starter()}
        super().__setstate__(state)

    def _is_as_given(self) -> bool:
        is_starter = self.aligner is None and self.aligner_ is load_starter()
        return is_starter or super()._is_as_given()

    def _recorded_params(self) -> dict[str, Any]:
        params = super()._recorded_params()
        params["labels"] = _recorded_labels(params["labels"])
        return params

    def _own_state(self) -> dict[str, Any]:
        return {"names": getattr(self, "_names", None)}

    def _restore_own(self, state: FittedState) -> None:
        names = state.optional("names")
        if names is not None:
            if not isinstance(names, dict):
                raise ValueError("names must say what each class is called.")
            self._names = resolve_names(names)

    def _card_facts(self) -> Facts:
        known: Any = self
        facts = self._aligner_facts()
        names = [str(label) for label in known._resolve_names()]
        shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        facts.what = f"Says {self._says} names. {facts.what}"
        facts.facts = {"classes": f"{len(names):,}: {shown}"} | facts.facts
        facts.limits.append(self._limit())
        takes_features = getattr(
            unwrap_aligner(resolve_aligner(known.aligner)), "image_encoder", None
        )
        is_alone = takes_features is None and not hasattr(known.aligner, "steps")
        facts.usage = f"print(model.predict({'image_features' if is_alone else ['image.jpg']}))"
        return facts

    def _limit(self) -> str:
        if getattr(self, "threshold", None) is None:
            return "It always answers with one of its classes."
        return "It always answers with one of its classes or, below the threshold, unknown."


def _recorded_labels(labels: Any) -> Any:
    """Return labels in a form that a file can hold: members of an Enum become their values."""
    if labels is None or isinstance(labels, str) or not isinstance(labels, Iterable):
        return labels
    if isinstance(labels, Mapping):
        return {_recorded_label(label): _recorded_label(value) for label, value in labels.items()}
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "biufU":
        return labels
    listed = [_recorded_label(label) for label in list_labels(labels)]
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "O":
        return np.array(listed, dtype=object)
    return tuple(listed) if isinstance(labels, tuple) else listed


def _recorded_label(label: Any) -> Any:
    return to_builtin(label) if isinstance(label, Enum) else label
