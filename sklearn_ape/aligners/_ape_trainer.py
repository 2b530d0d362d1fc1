"""Training of APE heads: head pairs first, then all pairs."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import GradientNormClipping

from ..devices import resolve_device
from ..features.memmap import StoredRows
from ..heads import HEAD_KINDS, BaseMap, ClosedFormHead, Head, TwoTower, hidden_width, make_head
from ..training import (
    OPTIMIZERS,
    AlignmentNet,
    DivergenceGuard,
    EpochProgress,
    PairBatches,
    PairDataset,
    Ranks,
    as_tensor,
    cosine_schedule,
    mean_recall,
    n_batches,
)
from ..training.callbacks import TrainingResult, collect_result, is_first_rank, make_callbacks
from ..training.data import Pairs, held_out
from ..training.net import LOSSES
from ..utils.sklearn_compat import FitContext
from ..utils.validation import check_choice, check_integer, check_number
from ._checkpoint import Checkpoint
from ._closed_form import (
    MOST_ANCHORS,
    RIDGE,
    WHITENING,
    Maps,
    fit_logit_scale,
    held_out_logit_scale,
    kernel_maps,
    linear_maps,
)
from .similarity import make_embedders


def check_head_training(aligner: Any) -> None:
    """Refuse parameters of `APEAligner` that cannot be used; the message names the parameter."""
    if aligner.init is not None:
        check_choice(aligner.init, "init", ("auto", "kernel", "linear"))
    check_choice(aligner.head, "head", HEAD_KINDS)
    check_choice(aligner.side, "side", ("text", "image", "both"))
    check_choice(aligner.loss, "loss", tuple(LOSSES))
    check_choice(aligner.optimizer, "optimizer", tuple(OPTIMIZERS))
    check_integer(aligner.depth, "depth", 1)
    hidden_width(aligner.width, 1)
    check_integer(aligner.n_components, "n_components", 1, optional=True)
    check_integer(aligner.batch_size, "batch_size", 2)
    check_integer(aligner.max_epochs, "max_epochs", 1)
    check_integer(aligner.n_iter_no_change, "n_iter_no_change", 1)
    check_number(aligner.dropout, "dropout", 0, 1)
    check_number(aligner.validation_fraction, "validation_fraction", 0, 1, closed="neither")
    check_number(aligner.learning_rate, "learning_rate", 0, closed="neither")
    for name in ("weight_decay", "mixup", "structure_weight", "warmup"):
        check_number(getattr(aligner, name), name, 0)
    if aligner.clip_norm is not None:
        check_number(aligner.clip_norm, "clip_norm", 0, closed="neither")
    check_number(aligner.logit_scale, "logit_scale", 0, closed="neither")
    check_number(aligner.max_logit_scale, "max_logit_scale", aligner.logit_scale)
    cosine_schedule(1, aligner.warmup)
    LOSSES[aligner.loss](tile_size=aligner.tile_size)
    resolve_device(aligner.device)


def fitted_attributes(
    module: TwoTower, logit_scale: float, numbers: Iterable[torch.Tensor]
) -> dict[str, Any]:
    """Return what prediction needs, by the names of the attributes.

    Parameters
    ----------
    module : TwoTower
        Moved to the CPU, so that a pickle opens on a machine without the training device.
    logit_scale : float
        Factor of the cosines.
    numbers : iterable of torch.Tensor
        What was trained or solved for, to be counted.
    """
    return {
        "module_": module.to("cpu").eval(),
        "logit_scale_": float(logit_scale),
        "n_parameters_": sum(tensor.numel() for tensor in numbers),
        "n_components_": module.n_components,
        "_n_features_out": module.n_components,
        "fingerprint_": module.fingerprint(),
    }


def head_attributes(module: TwoTower, logit_scale: float) -> dict[str, Any]:
    """Return the same of heads that may stand on a solution in closed form."""
    maps = [part for part in module.modules() if isinstance(part, BaseMap)]
    solved = [buffer for part in maps for buffer in part.buffers()]
    return fitted_attributes(module, logit_scale, [*module.parameters(), *solved])


_WIDTH_OF_BOTH = 512


_LINEAR_RIDGE = 0.1


class HeadTraining:
    """Heads for some pairs, and their training as an aligner's parameters want it.

    Parameters
    ----------
    aligner : APEAligner
        Its parameters are read.
    start : {"kernel", "linear"} or None
        What `start_kind` says of all pairs; those trained on may be fewer.
    seed : int
        Of weights and batches; torch's generator is seeded by the caller.
    data : Pairs
        What the heads take their start and their statistics from, and are trained on.
    ranks : Ranks or None, default=None
        Processes to train with, that call this alike.
    """

    def __init__(
        self,
        aligner: Any,
        start: str | None,
        seed: int,
        data: Pairs,
        ranks: Ranks | None = None,
    ) -> None:
        self.aligner = aligner
        self.ranks = ranks
        self.data = data
        self.seed = seed
        self.maps = _solve_initial_maps(aligner, start, seed, data)
        self.module = self._new_module()
        for side, features in (("image", data.image), ("text", data.text)):
            head = getattr(self.module, f"{side}_head")
            head.set_statistics(_tensor_or_stored(features))
        if ranks is not None:
            ranks.same_weights(self.module)

    def run(self, callbacks: list[Any], n_epochs: int) -> AlignmentNet:
        """Train `module`; the schedule is that of all of the aligner's epochs."""
        a = self.aligner
        dataset = self.inputs(self.data).to(a.device_)
        n_steps = a.max_epochs * n_batches(len(dataset), a.batch_size)
        always = [
            ("divergence", DivergenceGuard()),
            ("schedule", cosine_schedule(n_steps, a.warmup)),
        ]
        if a.clip_norm is not None:
            always.append(("clip", GradientNormClipping(a.clip_norm)))
        net = _Net(
            module=TwoTower(*(_trainable(head) for head in self._heads())),
            criterion=LOSSES[a.loss],
            criterion__logit_scale=a.logit_scale,
            criterion__max_logit_scale=a.max_logit_scale,
            criterion__learn_scale=a.learn_logit_scale,
            criterion__tile_size=a.tile_size,
            structure_weight=a.structure_weight,
            optimizer=OPTIMIZERS[a.optimizer],
            optimizer__weight_decay=a.weight_decay,
            lr=a.learning_rate,
            batch_size=a.batch_size,
            max_epochs=n_epochs,
            iterator_train=PairBatches,
            iterator_train__shuffle=True,
            iterator_train__seed=self.seed,
            iterator_train__mixup=a.mixup,
            train_split=None,
            callbacks=always + callbacks,
            device=a.device_,
            verbose=int(a.verbose >= 2 and is_first_rank(self.ranks)),
            ranks=self.ranks,
        )
        if self.ranks is None:
            return net.fit(dataset, y=None)
        net.set_params(iterator_train__rank=self.ranks.rank)
        net.set_params(iterator_train__n_ranks=self.ranks.size)
        # Processes must not drop the same units of different rows.
        torch.manual_seed(self.seed + self.ranks.rank)
        with self.ranks.interrupts():
            net.fit(dataset, y=None)
        self.ranks.same_weights(self.module)
        return net

    def inputs(self, data: Pairs) -> PairDataset:
        """Return pairs as the trained module takes them: what never changes is computed once."""
        image, text = (_tensor_or_stored(features) for features in (data.image, data.text))
        image_head, text_head = self._heads()
        return PairDataset(_inputs(image_head, image), _inputs(text_head, text), data.pairs)

    def recall(self, data: Pairs) -> float:
        """Return what `ValidationRecall` records, of the heads as they are."""
        embed_image, embed_text = make_embedders(self.module)
        recall = mean_recall(embed_image(data.image), embed_text(data.text), data.pairs)
        return recall if self.ranks is None else self.ranks.of_first(recall)

    def start_alone(self) -> TwoTower:
        """Return the solution in closed form, without trained heads."""
        assert self.maps is not None
        return TwoTower(ClosedFormHead(self.maps.image), ClosedFormHead(self.maps.text))

    def _heads(self) -> tuple[Head, Head]:
        return self.module.image_head, self.module.text_head

    def _new_module(self) -> TwoTower:
        a, data, maps = self.aligner, self.data, self.maps
        n_image, n_text = data.image.shape[1], data.text.shape[1]
        if maps is None:
            wide = {"image": n_text, "text": n_image, "both": _WIDTH_OF_BOTH}[a.side]
            n_out = a.n_components or wide
        else:
            n_out = maps.image.n_out
        shape = {"depth": a.depth, "width": a.width, "dropout": a.dropout}
        heads: list[Head] = []
        for side, n_in in (("image", n_image), ("text", n_text)):
            kind = a.head if a.side in (side, "both") else None
            if maps is None:
                heads.append(make_head(kind, n_in, n_out, **shape))
            else:
                residual = None if kind is None else make_head(kind, n_in, n_out, **shape)
                heads.append(ClosedFormHead(getattr(maps, side), residual))
        return TwoTower(*heads)


class _OnComputedBase(Head):
    """What is trained of a `ClosedFormHead`: takes features with the base's output behind them.

    A kernel of thousands of anchors costs more than all the rest of a step.
    """

    scale: torch.Tensor

    def __init__(self, head: ClosedFormHead) -> None:
        assert head.residual is not None
        super().__init__(head.n_in + head.n_out, head.n_out, standardize=False)
        self.residual = head.residual
        self.register_buffer("scale", head.scale.clone())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in + n_out) to (n, n_out)."""
        features, base = inputs.split([self.n_in - self.n_out, self.n_out], dim=1)
        return base + self.scale * self.residual(features)


class _Net(AlignmentNet):
    """Shows the structure loss features alone, without the base's output behind them."""

    def get_loss(
        self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False
    ) -> torch.Tensor:
        """Return the loss of a batch."""
        if self.structure_weight and X is not None:
            heads = {side: getattr(self.module_, f"{side}_head") for side in X}
            widths = {side: getattr(head, "residual", head).n_in for side, head in heads.items()}
            X = {side: inputs[:, : widths[side]] for side, inputs in X.items()}
        return super().get_loss(y_pred, y_true, X, training)


class _AsItIs(Head):
    """Passes on what was computed."""

    def __init__(self, n_out: int) -> None:
        super().__init__(n_out, n_out, standardize=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the inputs."""
        return inputs


def _trainable(head: Head) -> Head:
    if not isinstance(head, ClosedFormHead):
        return head
    return _AsItIs(head.n_out) if head.residual is None else _OnComputedBase(head)


def _inputs(head: Head, features: torch.Tensor | StoredRows) -> Any:
    if not isinstance(head, ClosedFormHead):
        return features
    inputs = _BaseInputs(head, features)
    return inputs if isinstance(features, StoredRows) else inputs[slice(None)]


class _BaseInputs:
    """Rows of features with the base's output behind them, or of that alone without a residual.

    Of stored features they are computed when they are asked for: kept, they would take more room
    than the features.
    """

    def __init__(self, head: ClosedFormHead, features: torch.Tensor | StoredRows) -> None:
        self.base = head.base
        self.is_base_alone = head.residual is None
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> torch.Tensor:
        features = torch.as_tensor(self.features[rows])
        with torch.inference_mode():
            base = self.base(features)
        base = base.clone()  # not an inference tensor any more
        return base if self.is_base_alone else torch.cat([features, base], dim=1)


def _tensor_or_stored(features: np.ndarray | StoredRows) -> torch.Tensor | StoredRows:
    return features if isinstance(features, StoredRows) else as_tensor(features)


def start_kind(init: str | None, n_texts: int) -> str | None:
    """Return what ``init`` stands for with so many captions."""
    if init != "auto":
        return init
    # With more captions than anchors a kernel misses most of them.
    return "kernel" if n_texts <= MOST_ANCHORS else "linear"


def _solve_initial_maps(aligner: Any, kind: str | None, seed: int, data: Pairs) -> Maps | None:
    """Return the solution that training starts from, if any."""
    if kind is None:
        return None
    shape = {"whitening": WHITENING, "n_components": aligner.n_components}
    if kind == "linear":
        return linear_maps(data, ridge=_LINEAR_RIDGE, **shape)
    return kernel_maps(
        data,
        gamma="scale",
        ridge=RIDGE,
        max_anchors=MOST_ANCHORS,
        rng=np.random.RandomState(seed),
        **shape,
    )


class TrainedHeads(NamedTuple):
    """What a fit leaves behind."""

    module: TwoTower
    logit_scale: float
    course: TrainingResult


def train_heads(
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
        course, scale = TrainingResult([], 0, 0), 0.0
        # "auto" does not train where nothing could tell whether that helps.
        if not (aligner.init == "auto" and aligner.early_stopping and valid is None):
            net = _find_best_epoch(aligner, training, valid, ranks, fit, kept)
            course, scale = collect_result(net, aligner), _scale_of(net)
        if valid is not None and start_recall is not None:
            course = _compared_with_start(course, start_recall, len(valid.pairs))
        kept.note_course(course)
        if course.best_epoch == 0:
            return _restore_initialization(aligner, course, data, heads_for, training, valid)
    if valid is not None and aligner.refit:
        kept.begin("refit")
        torch.manual_seed(seed)
        training = heads_for(data)
        watching: list[Any] = []
        if aligner.verbose == 1 and is_first_rank(ranks):
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
        return head_attributes(deepcopy(training.module), _scale_of(net))

    keeping = kept.callbacks("align")
    watching = make_callbacks(aligner, watched, fit, learned_so_far, "align", keeping, ranks)
    return training.run(watching, aligner.max_epochs)


def _compared_with_start(course: TrainingResult, recall: float, n_valid: int) -> TrainingResult:
    """Call the start epoch 0, and the best one unless training beat it beyond chance."""
    best = max(row["valid_recall"] for row in course.history)
    # The best of many epochs is partly luck: one standard error is asked of it.
    is_beaten = best > recall + (recall * (1 - recall) / n_valid) ** 0.5
    return course._replace(
        history=[{"epoch": 0, "valid_recall": recall}, *course.history],
        best_epoch=course.best_epoch if is_beaten else 0,
    )


def _restore_initialization(
    aligner: Any,
    course: TrainingResult,
    data: Pairs,
    heads_for: Any,
    training: HeadTraining,
    valid: Pairs | None,
) -> TrainedHeads:
    """Return the closed form, solved on all pairs unless `refit` says otherwise."""
    if valid is None:
        scale = held_out_logit_scale(data, lambda some: make_embedders(heads_for(some).module))
    else:
        image, text = make_embedders(training.start_alone().eval())
        scale = fit_logit_scale(image(valid.image), text(valid.text), valid.pairs)
        training = heads_for(data) if aligner.refit else training
    return TrainedHeads(training.start_alone(), scale, course)


def _scale_of(net: NeuralNet) -> float:
    return float(net.criterion_.logit_scale.item())
