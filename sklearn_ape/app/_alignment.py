"""Alignment on the captioned images of a visitor, and its evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from skorch.callbacks import Callback

from ..aligners.ape import APEAligner
from ..aligners.cca import CCAAligner
from ..aligners.kernel import KernelAligner
from ..aligners.pairs import flatten_captions
from ..aligners.wrapper import unwrap_aligner
from ..encoders import HeadPairs
from ..encoders.items import group_images
from ..features import MemoryFeatureCache
from ..heads import TwoTower
from ..training import split_pairs
from ._limits import Progress, UserError, scale_progress
from ._model import Alignment, Recall, clone_with_cache, encode, get_encoders
from ._uploads import CaptionedImages

_ALIGNERS = {"extend": APEAligner, "kernel": KernelAligner, "ape": APEAligner, "cca": CCAAligner}

_HELD_OUT_FRACTION = 0.2
_SEED = 0
_RECALL_KS = (1, 5)
_MIN_IMAGES = 4

# Fractions of the total time at the end of each step: encode images, encode captions, fit the
# aligner for the evaluation, fit the final aligner.
_STEPS = (0.6, 0.7, 0.85, 0.98)


class _EpochReporter(Callback):
    """skorch callback that reports the progress of the training."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __deepcopy__(self, memo: dict[int, Any]) -> _EpochReporter:
        return self  # the progress callback belongs to the request and cannot be copied

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        row = net.history[-1]
        step = f"Epoch {row['epoch']} of at most {net.max_epochs}, loss {row['train_loss']:.2f}"
        if "valid_recall" in row:
            step += f", recall {row['valid_recall']:.0%}"
        self.progress(row["epoch"] / net.max_epochs, step)


def list_methods(initial_aligner: Any) -> list[str]:
    """Return the methods of `align`: not every aligner can be extended, such as CLIP models."""
    module = getattr(unwrap_aligner(initial_aligner), "module_", None)
    return [name for name in _ALIGNERS if name != "extend" or isinstance(module, TwoTower)]


def align(
    initial_aligner: Any,
    data: CaptionedImages,
    method: str,
    head_pairs: HeadPairs | None,
    progress: Progress,
) -> Alignment:
    """Fit an aligner on captioned images, with the encoders of another aligner.

    With the method "extend", the pairs are added to that aligner.
    The aligner is fitted on all pairs. The recall is that of an aligner fitted without the
    held-out pairs, next to the recall of `initial_aligner` on the same pairs.
    """
    methods = list_methods(initial_aligner)
    if method not in methods:
        raise UserError(f"{method!r} is not a method. Choose one of {', '.join(methods)}.")
    n_images = len(data.images)
    if n_images < _MIN_IMAGES:
        raise UserError(
            f"The zip contains {n_images} captioned images, but at least {_MIN_IMAGES} are "
            "needed. Good results need a hundred or more."
        )
    cache = MemoryFeatureCache()  # the images are encoded once for all steps below
    image_encoder, text_encoder = (
        clone_with_cache(encoder, cache) for encoder in get_encoders(initial_aligner)
    )
    encode(image_encoder, data.images, scale_progress(progress, 0, _STEPS[0]), "Encoding image")
    texts, rows = flatten_captions(data.captions)
    encode(text_encoder, texts, scale_progress(progress, *_STEPS[:2]), "Encoding caption")

    def fit(rows: np.ndarray, start: float, end: float) -> Any:
        options: dict[str, Any] = {"head_pairs": head_pairs}
        if method == "extend":
            options["init"] = initial_aligner
        if method == "ape":
            reporter = _EpochReporter(scale_progress(progress, start, end))
            options |= {"random_state": _SEED, "callbacks": [reporter]}
        aligner = _ALIGNERS[method](
            image_encoder=image_encoder, text_encoder=text_encoder, **options
        )
        progress(start, f"Fitting on {len(rows)} pairs")
        try:
            return aligner.fit(*_select(data, rows))
        except (ValueError, FloatingPointError) as error:
            raise UserError(f"These pairs cannot be aligned: {error}") from error

    # The two parts have no image, nor a copy of one, and no caption in common.
    text_ids = np.unique(np.array(texts, dtype=object), return_inverse=True)[1]
    groups = group_images(data.images)
    first_copy = np.unique(groups, return_index=True)[1][groups]
    pairs = np.column_stack([first_copy[rows], text_ids])
    split = split_pairs(pairs, _HELD_OUT_FRACTION, np.random.RandomState(_SEED))
    held_out = np.array([], int) if split.valid is None else np.unique(rows[split.valid])
    recall, remark = [], ""
    if len(held_out):
        evaluated = fit(np.setdiff1d(rows, held_out), *_STEPS[1:3])
        recall = [
            _measure_recall("initial aligner", initial_aligner, *_select(data, held_out)),
            _measure_recall("your aligner", evaluated, *_select(data, held_out)),
        ]
    else:
        remark = (
            "Not evaluated: at least 50 distinct pairs are needed for a held-out test. Try the "
            "aligner on other images."
        )
    aligner = fit(np.arange(n_images), *_STEPS[2:4])
    return Alignment(
        _remove_training_objects(aligner),
        method,
        n_pairs=n_images,
        n_held_out=len(held_out),
        recall=recall,
        remark=remark,
        with_head=head_pairs is not None,
    )


def _remove_training_objects(aligner: Any) -> Any:
    """Remove caches, callbacks and head pairs, which are not needed after the fit."""
    for name in ("image_encoder", "text_encoder", "image_encoder_", "text_encoder_"):
        setattr(aligner, name, clone_with_cache(getattr(aligner, name), None))
    aligner.head_pairs = None
    if hasattr(aligner, "callbacks"):
        aligner.callbacks = None
    return aligner


def _measure_recall(name: str, aligner: Any, images: list[str], captions: list[Any]) -> Recall:
    inner = unwrap_aligner(aligner)
    X = images if inner is aligner else aligner[:-1].transform(images)
    report = inner.retrieval_report(X, captions, ks=_RECALL_KS, groups=group_images(images))
    means = (np.mean([direction[k] for direction in report.values()]) for k in _RECALL_KS)
    return Recall(name, *(100 * float(mean) for mean in means))


def _select(data: CaptionedImages, rows: np.ndarray) -> tuple[list[str], list[Any]]:
    return [data.images[row] for row in rows], [data.captions[row] for row in rows]
