"""The two trainings of a fit: one finds how many epochs are best, one takes all pairs."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from skorch import NeuralNet

from .._callbacks import FitContext
from ..heads import TwoTower
from ..training import EpochProgress, Ranks
from ._checkpoint import Checkpoint
from ._course import Course, course_of, is_first, watchers
from ._embedded import embedders
from ._head_training import HeadTraining, start_kind
from ._learned import learned_heads
from ._logit_scale import fit_logit_scale, held_out_logit_scale
from ._pairs import Pairs, held_out


class TrainedHeads(NamedTuple):
    """What a fit leaves behind."""

    module: TwoTower
    logit_scale: float
    course: Course


def trained_heads(
    aligner: Any, data: Pairs, ranks: Ranks | None, fit: FitContext, kept: Checkpoint
) -> TrainedHeads:
    """Train heads as an aligner's parameters say, or keep their start.

    Parameters
    ----------
    aligner : APEAligner
        Its parameters are read.
    data : Pairs
        All pairs.
    ranks : Ranks or None
        Processes to train with, that call this alike.
    fit : FitContext
        Tells scikit-learn's callbacks.
    kept : Checkpoint
        Knows the seed, keeps the state, and says where to go on.
    """
    seed = kept.seed
    torch.manual_seed(seed)
    train, valid = data, None
    if aligner.early_stopping:
        train, valid = held_out(data, aligner.validation_fraction, seed)
    start = start_kind(aligner.init, len(data.text))
    heads_for = partial(HeadTraining, aligner, start, seed, ranks=ranks)
    course = kept.course
    if course is None:
        training = heads_for(train)
        start_recall = None
        if valid is not None and aligner.init is not None:
            start_recall = training.recall(valid.by_item())
        course, scale = Course([], 0, 0), 0.0
        # "auto" does not train where nothing could tell whether that helps.
        if not (aligner.init == "auto" and aligner.early_stopping and valid is None):
            net = _find_best_epoch(aligner, training, valid, ranks, fit, kept)
            course, scale = course_of(net, aligner), _scale_of(net)
        if valid is not None and start_recall is not None:
            course = _compared_with_start(course, start_recall, len(valid.pairs))
        kept.note_course(course)
        if course.best_epoch == 0:
            return _start(aligner, course, data, heads_for, training, valid)
    if valid is not None and aligner.refit:
        kept.begin("refit")
        torch.manual_seed(seed)
        training = heads_for(data)
        watching: list[Any] = []
        if aligner.verbose == 1 and is_first(ranks):
            watching = [("progress", EpochProgress(course.best_epoch, "refit"))]
        net = training.run([*watching, *kept.callbacks("refit")], course.best_epoch)
        scale = _scale_of(net)
        if sum("train_loss" in row for row in net.history) < course.best_epoch:
            kept.stop()
    return TrainedHeads(training.module, scale, course)


def _find_best_epoch(
    aligner: Any,
    training: HeadTraining,
    valid: Pairs | None,
    ranks: Ranks | None,
    fit: FitContext,
    kept: Checkpoint,
) -> NeuralNet:
    watched = None if valid is None else training.inputs(valid.by_item())

    def learned_so_far(net: NeuralNet) -> dict[str, Any]:
        return learned_heads(deepcopy(training.module), _scale_of(net))

    keeping = kept.callbacks("align")
    watching = watchers(aligner, watched, fit, learned_so_far, "align", keeping, ranks)
    return training.run(watching, aligner.max_epochs)


def _compared_with_start(course: Course, recall: float, n_valid: int) -> Course:
    """Call the start epoch 0, and the best one unless training beat it beyond chance."""
    best = max(row["valid_recall"] for row in course.history)
    # The best of many epochs is partly luck: one standard error is asked of it.
    is_beaten = best > recall + (recall * (1 - recall) / n_valid) ** 0.5
    return course._replace(
        history=[{"epoch": 0, "valid_recall": recall}, *course.history],
        best_epoch=course.best_epoch if is_beaten else 0,
    )


def _start(
    aligner: Any,
    course: Course,
    data: Pairs,
    heads_for: Any,
    training: HeadTraining,
    valid: Pairs | None,
) -> TrainedHeads:
    """Return the closed form, solved on all pairs unless `refit` says otherwise."""
    if valid is None:
        scale = held_out_logit_scale(data, lambda some: embedders(heads_for(some).module))
    else:
        image, text = embedders(training.start_alone().eval())
        scale = fit_logit_scale(image(valid.image), text(valid.text), valid.pairs)
        training = heads_for(data) if aligner.refit else training
    return TrainedHeads(training.start_alone(), scale, course)


def _scale_of(net: NeuralNet) -> float:
    return float(net.criterion_.logit_scale.item())
