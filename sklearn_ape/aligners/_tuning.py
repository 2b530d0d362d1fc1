"""Contrastive training on a kernel's left-out predictions: its tuning, and a head beside it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..heads import ClosedFormHead, Head, KernelMap, TwoTower, WhitenedMap
from ..training.callbacks import BlendRecall, EpochProgress
from ..training.data import PairDataset, as_tensor, n_batches
from ..utils.linalg import l2_normalize
from ..utils.messages import shows_progress
from ._closed_form import Maps, TextFit
from ._head_training import HeadTraining

if TYPE_CHECKING:
    from ._trained import TrainingRun

# Numbers of epochs and of steps; the smaller one ends the training. Recall@1 on other sets was
# 14.1 % after 10 or 17 epochs of 24,000 icons and 13.8 % after 33, and 34.3 % after 10 epochs of
# 80,000 icons and 34.1 % after 21. It was lower with the learning rates 3e-3 and 1e-2, too.
_N_EPOCHS, _MAX_STEPS = 10, 400
_LEARNING_RATE = 1e-3

# Least share of the other images and texts in a prediction, for which the prediction without an
# image is divided by it. It limits the error if nearly all of the prediction is due to the image.
_MIN_OTHER_SHARE = 0.02


class LinearCorrection(Head):
    """The identity plus a matrix that is zero until the first training step.

    It has no bias and subtracts no mean, so that `correct` can multiply it into the coefficients
    of a kernel.
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
    """Pairs whose texts are the features, followed by the left-out embedding by the kernel.

    `text_features` are the features of all texts, `text_rows` the rows of those in `text`, and
    `matrix` is the correction by which predictions are multiplied, or None.
    """

    text_features: Any = None
    text_rows: Any = None
    matrix: Any = None

    @property
    def is_ready(self) -> bool:
        """Whether rows are available without reading, computing or moving anything."""
        is_tensor = isinstance(self.text_features, torch.Tensor)
        return super().is_ready and is_tensor and not self._needs_moving(self.text_features)

    def features(self, index: Any) -> dict[str, torch.Tensor]:
        """Return whitened images, and the inputs of a `BlendInputHead`."""
        features = super().features(index)
        embedding = features["text"]
        if self.matrix is not None:
            embedding = embedding @ self.matrix.to(embedding.device)
        rows = self.text_rows[self.pairs[np.asarray(index), 1]]
        text = self._read_rows(self.text_features, torch.from_numpy(rows))
        features["text"] = torch.cat([text, l2_normalize(embedding)], dim=1)
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

    def __init__(
        self,
        image_map: WhitenedMap,
        text_head: Head,
        fit: TextFit,
        data: PairDataset,
        run: TrainingRun,
    ) -> None:
        self.fit = fit
        super().__init__(TwoTower(ClosedFormHead(image_map), text_head), data, run)

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
        super().__init__(maps.image, text_head, maps.fit, _drop_unpredicted(data, maps.fit), run)

    def make_trained_heads(self) -> list[Head]:
        """Return the heads whose inputs are those of `make_inputs`."""
        image_head, text_head = super().make_trained_heads()
        return [image_head, BlendInputHead(text_head, BlendRecall.preferred_weight)]

    def make_inputs(self, data: PairDataset) -> BlendPairs:
        """Return the images, and the features of their texts with the kernel's embeddings."""
        left_out = super().make_inputs(data)
        return BlendPairs(
            **{field.name: getattr(left_out, field.name) for field in fields(left_out)},
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
    n_steps = n_batches(len(data.pairs), run.config.batch_size)
    n_epochs = min(_N_EPOCHS, max(1, _MAX_STEPS // n_steps))
    config = replace(
        run.config,
        optimizer="adamw",
        learning_rate=_LEARNING_RATE,
        max_epochs=n_epochs,
        mixup=0.0,
        structure_weight=0.0,
    )
    head = LinearCorrection(maps.image.n_out)
    run = run._replace(config=config)
    training = LeftOutTraining(maps.image, head, maps.fit, data, run)
    callbacks: list[Any] = []
    if shows_progress(run.verbose):
        callbacks = [("progress", EpochProgress(n_epochs, "tune", run.verbose))]
    net = training.train(callbacks, n_epochs)
    if sum("train_loss" in row for row in net.history) < n_epochs:  # interrupted by Ctrl-C
        raise KeyboardInterrupt
    matrix = head.matrix.detach().cpu().numpy()
    return matrix + np.eye(len(matrix), dtype=np.float32)


def correct(maps: Maps, matrix: np.ndarray) -> Maps:
    """Return maps whose text embeddings are multiplied by a matrix."""
    kernel = maps.text
    assert isinstance(kernel, KernelMap)
    coefficients = kernel.coefficients.numpy() @ matrix
    return Maps(maps.image, KernelMap(kernel.anchors, coefficients, float(kernel.gamma)))
