"""Encoders and aligners by the names that a user gives them."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline, make_pipeline

from .._aligner_choice import chosen_aligner, text_side
from ..aligners import CLIPAligner
from ..datasets import get_data_home
from ..encoders import OpenCLIPImageEncoder, TimmImageEncoder, list_encoders
from ..encoders._named import class_and_model

__all__ = [
    "Machine",
    "aligner_within",
    "features_folder",
    "image_encoder_named",
    "image_encoder_of",
    "open_aligner",
    "open_saved",
    "text_encoder_named",
]

_MEMORY = "memory"


class Machine(NamedTuple):
    """How to run on this machine: what does not change results."""

    cache: str | None = None
    device: str = "auto"
    n_jobs: int = -1
    quiet: bool = False

    def options(self, on_error: str) -> dict[str, Any]:
        """Parameters of encoders."""
        return {
            "cache": features_folder(self.cache),
            "device": self.device,
            "n_jobs": self.n_jobs,
            "on_error": on_error,
            "verbose": int(not self.quiet),
        }

    @property
    def kept(self) -> str:
        """What is left of the work after Ctrl-C, and how to go on."""
        folder = features_folder(self.cache)
        if folder == _MEMORY:
            return "Nothing is kept, since --cache is 'memory'."
        return f"The features that are finished are in {folder!r}: run it again to go on."


def features_folder(cache: str | None) -> str:
    """Return the folder of the feature cache, or "memory"."""
    if cache is None:
        return str(get_data_home() / "features")
    return cache if cache == _MEMORY else str(Path(cache).expanduser())


def image_encoder_named(
    name: str, machine: Machine, *, pooling: str | None = None, on_error: str = "nan"
) -> Any:
    """Return the image encoder of a name such as "efficientnet_lite0" or "open_clip:RN50/openai".

    Without `pooling`, networks of the EfficientNet-Lite family are used as the starter model
    uses them: whole images on white, and pooling by the generalised mean.
    """
    kind, model = class_and_model(name, "image")
    options = machine.options(on_error)
    if kind is TimmImageEncoder and model in {info.name for info in list_encoders("image")}:
        options |= {"pooling": "gem", "crop": "pad"}
    if pooling is not None:
        if kind is OpenCLIPImageEncoder:
            raise ValueError("The encoders of OpenCLIP have no --pooling to choose.")
        options["pooling"] = pooling
    encoder = kind(model, **options)
    encoder._check_parameters()
    return encoder


def text_encoder_named(name: str, machine: Machine, on_error: str = "raise") -> Any:
    """Return the text encoder of a name such as "all-MiniLM-L6-v2"."""
    kind, model = class_and_model(name, "text")
    options = machine.options(on_error)
    del options["n_jobs"]
    encoder = kind(model, **options)
    encoder._check_parameters()
    return encoder


def open_aligner(source: str | None, machine: Machine) -> Any:
    """Return a fitted aligner, or a Pipeline that ends in one, set to run on this machine.

    Parameters
    ----------
    source : str or None
        None is the starter model; "open_clip:..." a CLIP model; else a folder or a hub name.
    machine : Machine
        How to run.

    Raises
    ------
    ValueError
        When it takes features, not images.
    """
    return aligner_within(open_saved(source, machine), machine)


def aligner_within(opened: Any, machine: Machine) -> Any:
    """Return the aligner of what was opened: its own, if it is a classifier or a retriever."""
    aligner = opened
    while not _is_aligner(aligner):  # a saved classifier or retriever
        aligner = aligner.aligner_ if hasattr(aligner, "aligner_") else aligner.aligner
        if aligner is None or isinstance(aligner, str):
            aligner = _configured(copy.deepcopy(chosen_aligner(aligner)), machine)
    if isinstance(aligner, CLIPAligner):  # its encoder apart, which says what it cannot read
        aligner = make_pipeline(aligner.image_encoder, aligner)
    image_encoder_of(aligner)
    return aligner


def open_saved(source: str | None, machine: Machine) -> Any:
    """Return what was saved, whichever estimator it is, set to run on this machine."""
    if source is None or source.startswith("open_clip:"):
        # The starter model is one object a process, whose settings are not to be changed.
        return _configured(copy.deepcopy(chosen_aligner(source)), machine)
    is_folder = os.path.isdir(os.path.expanduser(source))
    if not is_folder and (source.count("/") != 1 or source.startswith((".", "~", "/"))):
        raise FileNotFoundError(
            f"There is no folder {source!r} with a saved model: 'sklearn-ape fit' makes one."
        )
    from .. import load_pretrained

    return _configured(load_pretrained(source), machine)


def _is_aligner(estimator: Any) -> bool:
    try:
        text_side(estimator)
    except TypeError:
        return False
    return True


def image_encoder_of(model: Any) -> Any:
    """Return the image encoder within a fitted model, which names the images it cannot read."""
    for estimator in _within(model):
        if getattr(estimator, "_modality", None) == "image":
            return estimator
    raise ValueError(
        "This aligner takes features of images, not images: it was saved without its image "
        "encoder. Save the Pipeline of both."
    )


def _configured(model: Any, machine: Machine) -> Any:
    """Set encoders, and CLIP models, to run on this machine; they are changed in place."""
    for estimator in _within(model):
        parameters = estimator.get_params(deep=False)
        if hasattr(estimator, "_modality") or "cache" in parameters:
            modality = getattr(estimator, "_modality", "image")
            options = machine.options("nan" if modality == "image" else "raise")
            if modality == "text":  # a few labels need no bar
                options["verbose"] = 0
            estimator.set_params(**{k: v for k, v in options.items() if k in parameters})
        elif "device" in parameters:
            estimator.set_params(device=machine.device)
    return model


def _within(model: Any) -> Iterator[Any]:
    """Yield the estimators in a fitted model, those that were fitted first."""
    if isinstance(model, Pipeline):
        for _, step in model.steps:
            yield from _within(step)
        return
    if isinstance(model, FrozenEstimator):
        yield from _within(model.estimator)
        return
    if not isinstance(model, BaseEstimator):
        return
    yield model
    for name in ("image_encoder_", "text_encoder_", "aligner_", "aligner"):
        yield from _within(vars(model).get(name))
