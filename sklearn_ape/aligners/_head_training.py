"""Training of both heads, of a correction that tunes a kernel, and of a head blended with one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..devices import has_fast_bfloat16
from ..features.matrix import StoredRows
from ..heads import ClosedFormHead, Head, KernelMap, TwoTower
from ..training.callbacks import BlendRecall, EpochProgress, make_standard_callbacks, mean_recall
from ..training.data import PairDataset, as_tensor, count_batches
from ..training.distributed import broadcast
from ..training.net import AlignmentNet, embed_pairs, make_net
from ..utils.linalg import l2_normalize
from ._closed_form import Maps, TextFit

if TYPE_CHECKING:
    from ._trained import TrainingRun

# Number of pairs from which heads are trained in bfloat16 if that is fast. Recall was compared
# with float32 on 30,000 pairs only, so small sets, which take little time, stay in float32.
_MIN_PAIRS_IN_BFLOAT16 = 10_000

# Numbers of epochs and of steps of the tuning; the smaller one ends it. Recall@1 on other sets was
# 14.1 % after 10 or 17 epochs of 24,000 icons and 13.8 % after 33, and 34.3 % after 10 epochs of
# 80,000 icons and 34.1 % after 21. It was lower with the learning rates 3e-3 and 1e-2, too.
_N_TUNING_EPOCHS, _MAX_TUNING_STEPS = 10, 400
_TUNING_LEARNING_RATE = 1e-3

# Least share of the other images and texts in a prediction, for which the prediction without an
# image is divided by it. It limits the error if nearly all of the prediction is due to the image.
_MIN_OTHER_SHARE = 0.02


class HeadTraining:
    """Two heads, and the steps to train them on a set of pairs.

    The statistics of the heads are computed from the pairs. The caller seeds torch's global
    generator; the seed of `run` is that of the batches.
    """

    def __init__(self, module: TwoTower, data: PairDataset, run: TrainingRun) -> None:
        self.module = module
        self.data = data
        self.run = run
        module.image_head.set_statistics(as_tensor(data.image))
        module.text_head.set_statistics(as_tensor(data.text))
        if run.ranks is not None:
            run.ranks.broadcast_weights(self.module)

    def train(self, callbacks: list[Any], n_epochs: int) -> AlignmentNet:
        """Train the module for some of the epochs for which the learning rate is scheduled."""
        config, seed, ranks = self.run.config, self.run.seed, self.run.ranks
        dataset = self.make_inputs(self.data).to(config.device)
        make_module = MixedPrecisionTower if self._uses_bfloat16() else TwoTower
        module = make_module(*self.make_trained_heads())
        callbacks = [*make_standard_callbacks(config, len(dataset)), *callbacks]
        net = make_net(config, module, seed, callbacks, ranks, max_epochs=n_epochs)
        if ranks is None:
            return net.fit(dataset, y=None)
        # Ranks must not drop the same units in different rows.
        torch.manual_seed(seed + ranks.rank)
        with ranks.defer_interrupts():
            net.fit(dataset, y=None)
        ranks.broadcast_weights(self.module)
        return net

    def make_trained_heads(self) -> list[Head]:
        """Return the heads of the trained module, which share the weights of `module`."""
        heads = (self.module.image_head, self.module.text_head)
        return [ResidualInputHead(h) if isinstance(h, ClosedFormHead) else h for h in heads]

    def make_inputs(self, data: PairDataset) -> PairDataset:
        """Return pairs with the inputs of the trained module, which include the base's output."""
        image = _make_inputs(self.module.image_head, data.image)
        text = _make_inputs(self.module.text_head, data.text)
        return PairDataset(image, text, data.pairs)

    def recall(self, data: PairDataset) -> float:
        """Return the recall that `ValidationRecall` records, for the present heads."""
        recall = mean_recall(*embed_pairs(self.module, data), data.pairs)
        return broadcast(self.run.ranks, recall)

    def _uses_bfloat16(self) -> bool:
        config = self.run.config
        if config.dtype != "auto":
            return config.dtype == "bfloat16"
        is_large = len(self.data.pairs) >= _MIN_PAIRS_IN_BFLOAT16
        return is_large and config.device.type == "cpu" and has_fast_bfloat16()


class ResidualInputHead(Head):
    """The residual of a `ClosedFormHead`, for inputs that include the output of its base.

    A kernel with thousands of anchors takes more time than the rest of a training step, and its
    output does not change. So it is computed once, and appended to the columns of the features.
    Without a residual the inputs are the output of the base alone.
    """

    scale: torch.Tensor

    def __init__(self, head: ClosedFormHead) -> None:
        super().__init__(head.n_in, head.n_out, standardize=False)
        self.residual = head.residual
        if head.residual is not None:
            self.register_buffer("scale", head.scale.clone())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs of shape (n, n_in + n_out) to (n, n_out)."""
        if self.residual is None:
            return inputs
        features, base = inputs.split([self.n_in, self.n_out], dim=1)
        return base + self.scale * self.residual(features)


class MixedPrecisionTower(TwoTower):
    """Heads that training evaluates in bfloat16. Their weights and embeddings are float32."""

    def forward(
        self, image: torch.Tensor, text: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings of both sides."""
        # torch drops its bfloat16 copies of weights at the end of the outermost autocast. If the
        # caller is in an autocast, they would be stale after the next optimizer step.
        with torch.autocast(image.device.type, torch.bfloat16, cache_enabled=False):
            image, text = self.image_head(image), self.text_head(text)
        # In bfloat16, logits of up to 100 would be rounded to multiples of 0.5.
        return l2_normalize(image.float()), l2_normalize(text.float())


def _make_inputs(head: Head, features: np.ndarray | StoredRows) -> Any:
    """Return the inputs of the trained part of a head."""
    tensor = as_tensor(features)
    if not isinstance(head, ClosedFormHead):
        return tensor
    inputs = _InputsWithBase(head, tensor)
    # For stored features, the outputs of the base may not fit into memory.
    return inputs if isinstance(features, StoredRows) else inputs[slice(None)]


class _InputsWithBase:
    """Inputs of a `ResidualInputHead`, whose base output is computed for the requested rows."""

    def __init__(self, head: ClosedFormHead, features: torch.Tensor | StoredRows) -> None:
        self.base = head.base
        self.has_residual = head.residual is not None
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> torch.Tensor:
        features = torch.as_tensor(self.features[rows])
        with torch.inference_mode():
            base = self.base(features)
        base = base.clone()  # autograd does not accept tensors made in inference mode
        return torch.cat([features, base], dim=1) if self.has_residual else base


class LinearCorrection(Head):
    """The identity plus a matrix that is zero until the first training step.

    It has no bias and subtracts no mean, so that `apply_correction` can multiply it into the
    coefficients of a kernel.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features, n_features, standardize=False)
        self.matrix = nn.Parameter(torch.zeros(n_features, n_features))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_features) to (n, n_features)."""
        return features + features @ self.matrix


@dataclass(eq=False, repr=False)
class LeftOutPairs(PairDataset):
    """Pairs of an image and the prediction for its text without this image.

    `text` holds the predictions with all images, and `shares` those of the images of all pairs.
    The prediction of a ridge regression without one of its observations follows from it, the
    observation, and its share in the prediction. This is exact for images with one caption. The
    captions of an image count as one observation; they have the same target.
    """

    shares: Any = None
    mean_target: Any = None

    def features(self, index: Any) -> dict[str, torch.Tensor]:
        """Return whitened images, and left-out predictions of norm ``sqrt(n_features)``."""
        features = super().features(index)
        image, prediction = features["image"], features["text"]
        share = self.shares[np.asarray(index), None].to(image.device)
        target = l2_normalize(image) - self.mean_target.to(image.device)
        left_out = (prediction - share * target) / (1 - share).clamp_min(_MIN_OTHER_SHARE)
        features["text"] = l2_normalize(left_out) * image.shape[1] ** 0.5
        return features


@dataclass(eq=False, repr=False)
class BlendPairs(LeftOutPairs):
    """Pairs of an image and the input of a `BlendInputHead` for its text.

    `text_features` are the features of all texts, which precede the prediction in the inputs, and
    `text_rows` the rows of those in `text`. `matrix` is the correction by which predictions are
    multiplied, or None.
    """

    text_features: Any = None
    text_rows: Any = None
    matrix: torch.Tensor | None = None

    def _list_sources(self) -> list[Any]:
        return [*super()._list_sources(), self.text_features]

    def features(self, index: Any) -> dict[str, torch.Tensor]:
        """Return whitened images, and features of texts with left-out predictions of norm 1."""
        features = super().features(index)
        prediction = features["text"]
        if self.matrix is not None:
            prediction = prediction @ self.matrix.to(prediction.device)
        rows = self.text_rows[self.pairs[np.asarray(index), 1]]
        text = self._read_rows(self.text_features, torch.from_numpy(rows))
        features["text"] = torch.cat([text, l2_normalize(prediction)], dim=1)
        return features


class BlendInputHead(Head):
    """The blend of a head with an embedding that follows the features in the inputs.

    Without the embedding (zeros), the direction of the output is that of the head alone.
    """

    def __init__(self, head: Head, weight: float) -> None:
        super().__init__(head.n_in, head.n_out, standardize=False)
        self.head = head
        self.weight = weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs of shape (n, n_in + n_out) to (n, n_out)."""
        features, embedding = inputs.split([self.n_in, self.n_out], dim=1)
        embedding = l2_normalize(embedding)  # mixup decreases the norm
        own = l2_normalize(self.head(features).float())  # may be in bfloat16
        return (1 - self.weight) * embedding + self.weight * own


class LeftOutTraining(HeadTraining):
    """Training of a text head on left-out predictions of a kernel."""

    def __init__(self, maps: Maps, text_head: Head, data: PairDataset, run: TrainingRun) -> None:
        assert maps.fit is not None
        self.fit = maps.fit
        super().__init__(TwoTower(ClosedFormHead(maps.image), text_head), data, run)

    def make_inputs(self, data: PairDataset) -> LeftOutPairs:
        """Return the images and the predictions for their texts, all of which must be known."""
        image = super().make_inputs(data).image
        row = np.empty(len(data.text), dtype=np.intp)
        row[self.fit.texts] = np.arange(len(self.fit.texts))
        images, rows = data.pairs[:, 0], row[data.pairs[:, 1]]
        return LeftOutPairs(
            image,
            torch.as_tensor(self.fit.predictions),
            np.column_stack([images, rows]),
            shares=torch.as_tensor(self.fit.estimate_shares(images, rows)),
            mean_target=torch.as_tensor(self.fit.mean_target, dtype=torch.float32),
        )


class BlendTraining(LeftOutTraining):
    """Training of a text head as a part of its blend with a kernel.

    A head that is trained alone learns what the kernel knows already. In the blend, it learns what
    is missing: with 80,000 icons, the recall@1 of the blend on other sets was 35.0 % instead of
    34.7 %. As in the tuning, the kernel's embedding of a text is that without the image.
    """

    def __init__(
        self,
        maps: Maps,
        correction: np.ndarray | None,
        text_head: Head,
        data: PairDataset,
        run: TrainingRun,
    ) -> None:
        assert maps.fit is not None
        self.correction = None if correction is None else torch.as_tensor(correction)
        super().__init__(maps, text_head, _drop_unpredicted(data, maps.fit), run)

    def make_trained_heads(self) -> list[Head]:
        """Return the heads whose inputs are those of `make_inputs`."""
        image_head, text_head = super().make_trained_heads()
        return [image_head, BlendInputHead(text_head, BlendRecall.preferred_weight)]

    def make_inputs(self, data: PairDataset) -> BlendPairs:
        """Return the images, and the features of their texts with the kernel's embeddings."""
        left_out = super().make_inputs(data)
        return BlendPairs(
            left_out.image,
            left_out.text,
            left_out.pairs,
            shares=left_out.shares,
            mean_target=left_out.mean_target,
            text_features=as_tensor(data.text),
            text_rows=self.fit.texts,
            matrix=self.correction,
        )

    def make_head_inputs(self, data: PairDataset) -> PairDataset:
        """Return inputs for which the trained module embeds texts by the head alone."""
        inputs = HeadTraining.make_inputs(self, data)
        text = torch.as_tensor(inputs.text[slice(None)])
        zeros = torch.zeros(len(text), self.module.n_components)
        return replace(inputs, text=torch.cat([text, zeros], dim=1))


def _drop_unpredicted(data: PairDataset, fit: TextFit) -> PairDataset:
    """Leave out the pairs of texts without a prediction; there are some with very many texts."""
    return replace(data, pairs=data.pairs[np.isin(data.pairs[:, 1], fit.texts)])


def train_correction(maps: Maps, data: PairDataset, run: TrainingRun) -> np.ndarray:
    """Return the matrix by which the text embeddings of a kernel are to be multiplied.

    The kernel minimizes the squared error of each text on its own. A linear map of its output is
    trained to tell the texts apart. Predictions for texts whose images the kernel was computed
    from would be too good, so each image is left out of the prediction for its text.
    """
    assert maps.fit is not None
    data = _drop_unpredicted(data, maps.fit)
    n_steps = count_batches(len(data.pairs), run.config.batch_size)
    n_epochs = min(_N_TUNING_EPOCHS, max(1, _MAX_TUNING_STEPS // n_steps))
    config = replace(
        run.config,
        optimizer="adamw",
        learning_rate=_TUNING_LEARNING_RATE,
        max_epochs=n_epochs,
        mixup=0.0,
        structure_weight=0.0,
    )
    head = LinearCorrection(maps.image.n_out)
    run = run._replace(config=config)
    training = LeftOutTraining(maps, head, data, run)
    progress = EpochProgress(n_epochs, "tune", run.verbose)  # hidden if `verbose` says so
    net = training.train([("progress", progress)], n_epochs)
    if sum("train_loss" in row for row in net.history) < n_epochs:  # interrupted by Ctrl-C
        raise KeyboardInterrupt
    matrix = head.matrix.detach().cpu().numpy()
    return matrix + np.eye(len(matrix), dtype=np.float32)


def apply_correction(maps: Maps, matrix: np.ndarray) -> Maps:
    """Return maps whose text embeddings are multiplied by a matrix."""
    kernel = maps.text
    assert isinstance(kernel, KernelMap)
    coefficients = kernel.coefficients.numpy() @ matrix
    return Maps(maps.image, KernelMap(kernel.anchors, coefficients, float(kernel.gamma)))
