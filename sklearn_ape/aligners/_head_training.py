"""A training of heads, from scratch or from a solution in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from skorch.callbacks import GradientNormClipping

from ..heads import ClosedFormHead, Head, TwoTower, make_head
from ..losses import InfoNCELoss, SigmoidLoss
from ..training import (
    OPTIMIZERS,
    AlignmentNet,
    DivergenceGuard,
    PairBatches,
    PairDataset,
    Ranks,
    StoredRows,
    as_tensor,
    cosine_schedule,
    mean_recall,
    n_batches,
)
from ._course import is_first
from ._embedded import embedders
from ._pairs import Pairs
from ._solve import MOST_ANCHORS, RIDGE, WHITENING, Maps, kernel_maps, linear_maps

LOSSES = {"infonce": InfoNCELoss, "sigmoid": SigmoidLoss}
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
        self.maps = _start(aligner, start, seed, data)
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
            verbose=int(a.verbose >= 2 and is_first(self.ranks)),
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
        embed_image, embed_text = embedders(self.module)
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


def _start(aligner: Any, kind: str | None, seed: int, data: Pairs) -> Maps | None:
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
