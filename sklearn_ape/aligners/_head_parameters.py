"""The parameters of a training of heads, checked."""

from __future__ import annotations

from typing import Any

from ..devices import resolve_device
from ..heads import HEAD_KINDS, hidden_width
from ..training import OPTIMIZERS, cosine_schedule
from ._head_training import LOSSES
from ._parameters import check_choice, check_integer, check_number


def check_head_training(aligner: Any) -> None:
    """Refuse parameters of `APEAligner` that cannot be used; the message names the parameter."""
    if aligner.init is not None:
        check_choice(aligner, "init", ("auto", "kernel", "linear"))
    check_choice(aligner, "head", HEAD_KINDS)
    check_choice(aligner, "side", ("text", "image", "both"))
    check_choice(aligner, "loss", tuple(LOSSES))
    check_choice(aligner, "optimizer", tuple(OPTIMIZERS))
    check_integer(aligner, "depth", 1)
    hidden_width(aligner.width, 1)
    check_integer(aligner, "n_components", 1, optional=True)
    check_integer(aligner, "batch_size", 2)
    check_integer(aligner, "max_epochs", 1)
    check_integer(aligner, "n_iter_no_change", 1)
    check_number(aligner, "dropout", 0, 1)
    check_number(aligner, "validation_fraction", 0, 1, above=True)
    check_number(aligner, "learning_rate", 0, above=True)
    for name in ("weight_decay", "mixup", "structure_weight", "warmup"):
        check_number(aligner, name, 0)
    if aligner.clip_norm is not None:
        check_number(aligner, "clip_norm", 0, above=True)
    check_number(aligner, "logit_scale", 0, above=True)
    check_number(aligner, "max_logit_scale", aligner.logit_scale)
    cosine_schedule(1, aligner.warmup)
    LOSSES[aligner.loss](tile_size=aligner.tile_size)
    resolve_device(aligner.device)
