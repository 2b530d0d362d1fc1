"""The net that trains a text tower."""

from __future__ import annotations

from typing import Any

from skorch.callbacks import GradientNormClipping

from ..heads import TwoTower
from ..training import AlignmentNet, DivergenceGuard, PairBatches, cosine_schedule, n_batches
from ._head_training import LOSSES
from ._text_tower import adamw_of_two_rates

_LARGEST_GRADIENT = 1.0


def tower_net(
    aligner: Any, module: TwoTower, n_pairs: int, seed: int, callbacks: list[Any]
) -> AlignmentNet:
    """Return the net that trains a tower as an aligner's parameters want it.

    Parameters
    ----------
    aligner : LiTAligner
        Its parameters, and ``device_``, are read.
    module : TwoTower
        A frozen head of images, and a `TextTower`.
    n_pairs : int
        Pairs to train on.
    seed : int
        Of the batches.
    callbacks : list of (str, skorch.callbacks.Callback)
        Besides those that every training has.
    """
    always = [
        ("divergence", DivergenceGuard()),
        ("clipping", GradientNormClipping(_LARGEST_GRADIENT)),
        ("schedule", cosine_schedule(aligner.max_epochs * n_batches(n_pairs, aligner.batch_size))),
    ]
    # What no pattern names (the map and the loss) keeps lr; errors name the tower's.
    rates = [
        ("*projection.*", {"lr": aligner.head_learning_rate}),
        ("log_scale", {"lr": aligner.head_learning_rate}),
        ("bias", {"lr": aligner.head_learning_rate}),
    ]
    return AlignmentNet(
        module=module,
        criterion=LOSSES[aligner.loss],
        criterion__logit_scale=aligner.logit_scale,
        criterion__max_logit_scale=aligner.max_logit_scale,
        criterion__learn_scale=aligner.learn_logit_scale,
        optimizer=adamw_of_two_rates,
        optimizer__param_groups=rates,
        optimizer__weight_decay=aligner.weight_decay,
        lr=aligner.learning_rate,
        batch_size=aligner.batch_size,
        max_epochs=aligner.max_epochs,
        iterator_train=PairBatches,
        iterator_train__shuffle=True,
        iterator_train__seed=seed,
        train_split=None,
        callbacks=always + callbacks,
        device=aligner.device_,
        verbose=int(aligner.verbose >= 2),
    )
