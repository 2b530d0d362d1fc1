"""The parameters of a training of a text tower, checked."""

from __future__ import annotations

from typing import Any

from ..devices import resolve_device
from ._head_training import LOSSES
from ._parameters import check_choice, check_integer, check_number


def check_text_training(aligner: Any) -> None:
    """Refuse parameters of `LiTAligner` that cannot be used; the message names the parameter."""
    check_choice(aligner, "loss", tuple(LOSSES))
    check_choice(aligner, "dtype", ("auto", "float32", "bfloat16"))
    check_integer(aligner, "n_components", 1, optional=True)
    check_integer(aligner, "batch_size", 2)
    check_integer(aligner, "max_epochs", 1)
    check_integer(aligner, "n_iter_no_change", 1)
    check_integer(aligner, "unlocked_layers", 0, optional=True)
    check_integer(aligner, "max_length", 1, optional=True)
    check_number(aligner, "validation_fraction", 0, 1, above=True)
    check_number(aligner, "learning_rate", 0, above=True)
    check_number(aligner, "head_learning_rate", 0, above=True)
    check_number(aligner, "weight_decay", 0)
    check_number(aligner, "logit_scale", 0, above=True)
    check_number(aligner, "max_logit_scale", aligner.logit_scale)
    resolve_device(aligner.device)
