"""Contrastive training of two heads on frozen features, by skorch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from skorch.utils import to_tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from .heads import TwoTower
from .metrics import retrieval_report

__all__ = ["AlignmentNet", "PairBatches", "PairDataset", "split_pairs"]

_FEWEST_VALIDATION_GROUPS = 10
_MOST_VALIDATION_GROUPS = 5000
_ROWS_AT_ONCE = 8192


class PairDataset(Dataset):
    """Features of distinct pictures and captions, and which belong together.

    Parameters
    ----------
    image : torch.Tensor of shape (n_images, n_image_features)
        One row a distinct picture.
    text : torch.Tensor of shape (n_texts, n_text_features)
        One row a distinct caption.
    pairs : ndarray of shape (n_pairs, 2)
        Rows of pictures and of captions.
    """

    def __init__(self, image: torch.Tensor, text: torch.Tensor, pairs: np.ndarray) -> None:
        self.image = image
        self.text = text
        self.pairs = torch.as_tensor(pairs)
        one_to_one = len(pairs) == len(image) == len(text)
        ones = np.ones(len(pairs), dtype=bool)
        shape = (len(image), len(text))
        self._known = None if one_to_one else csr_array((ones, tuple(pairs.T)), shape=shape)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the features of some pairs, and which pictures and captions belong together.

        The second is True at (i, j) for picture i and caption j of these pairs; one number a pair
        stands for the diagonal, where no picture or caption has several partners.
        """
        ids = self.pairs[index]
        images, texts = ids[:, 0], ids[:, 1]
        if self._known is None:
            positive = torch.arange(len(ids))
        else:
            positive = torch.from_numpy(self._known[images.numpy()][:, texts.numpy()].toarray())
        return {"image": self.image[images], "text": self.text[texts]}, positive


class PairBatches:
    """Iterates over whole batches by index; skorch's stand-in for a data loader.

    Parameters
    ----------
    dataset : PairDataset
        What to iterate over.
    batch_size : int
        The most pairs in a batch. Batches are of equal size up to one pair, since a small last
        batch would be an easier task than the others, and one of a single pair none at all.
    shuffle : bool, default=False
        Draw a new order for every epoch.
    seed : int, default=0
        Of the orders.
    """

    def __init__(
        self, dataset: PairDataset, batch_size: int, shuffle: bool = False, seed: int = 0
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return n_batches(len(self.dataset), self.batch_size)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        n_pairs = len(self.dataset)
        order = self._rng.permutation(n_pairs) if self.shuffle else np.arange(n_pairs)
        for index in np.array_split(order, len(self)):
            yield self.dataset[torch.from_numpy(index)]


def n_batches(n_pairs: int, batch_size: int) -> int:
    """Count the batches of one epoch."""
    return max(1, math.ceil(n_pairs / batch_size))


class AlignmentNet(NeuralNet):
    """A skorch net whose module gives two embeddings and whose criterion compares them.

    Parameters
    ----------
    *args, **kwargs : object
        Those of `skorch.NeuralNet`; the module is a `TwoTower`, the dataset a `PairDataset`.
    """

    def get_loss(
        self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False
    ) -> torch.Tensor:
        """Return the criterion of both embeddings, given which of them belong together."""
        positive = to_tensor(y_true, device=self.device) if y_true.ndim == 2 else None
        return self.criterion_(*y_pred, positive)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take a step, then clamp the logit scale."""
        step = super().train_step(batch, **fit_params)
        self.criterion_.clamp_()
        return step


def adamw(groups: list[dict[str, Any]], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW that decays matrices and leaves biases, norms and the logit scale alone."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=lr,
    )


def cosine_schedule(n_steps: int, warmup: float = 0.05) -> LRScheduler:
    """Return a callback: a linear rise of the learning rate, then a cosine to zero."""
    n_warmup = max(1, round(warmup * n_steps))

    def factor(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        done = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
        return 0.5 * (1 + math.cos(math.pi * done))

    return LRScheduler(
        policy=torch.optim.lr_scheduler.LambdaLR, lr_lambda=factor, step_every="batch"
    )


def diverged(net: NeuralNet) -> FloatingPointError:
    """Return the error that says what to lower."""
    return FloatingPointError(
        f"Training diverged in epoch {net.history[-1, 'epoch']}: loss, weights or embeddings are "
        f"not finite. Lower learning_rate (now {net.lr:g}) or logit_scale."
    )


class ValidationRecall(Callback):
    """Records the logit scale and the recall on held-out pairs, as ``valid_recall``.

    It is the mean of recall@1, 5 and 10 in both directions over all held-out pairs at once, so it
    does not depend on the batch size as a loss does.
    """

    def __init__(self, dataset: PairDataset | None) -> None:
        self.dataset = dataset

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Evaluate the epoch's weights."""
        net.history.record("logit_scale", net.criterion_.logit_scale.item())
        if self.dataset is None:
            return
        image = embed(net.module_, "image", self.dataset.image, net.device)
        text = embed(net.module_, "text", self.dataset.text, net.device)
        if not (np.isfinite(image).all() and np.isfinite(text).all()):
            raise diverged(net)
        report = retrieval_report(image, text, self.dataset.pairs.numpy())
        recalls = [recall for direction in report.values() for recall in direction.values()]
        net.history.record("valid_recall", float(np.mean(recalls)))


class BestEpoch(EarlyStopping):
    """Remembers the best epoch, its logit scale included, and says when patience has run out."""

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Compare the epoch with the best one."""
        # skorch would stop here, before later callbacks have seen the epoch: StopWhenPatient does.
        with suppress(KeyboardInterrupt):
            super().on_epoch_end(net, **kwargs)
        if self.best_epoch_ == net.history[-1, "epoch"]:
            self.best_criterion_ = deepcopy(net.criterion_.state_dict())

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Restore weights and logit scale."""
        if self.best_epoch_:
            super().on_train_end(net, **kwargs)
            net.criterion_.load_state_dict(self.best_criterion_)

    def _sink(self, text: str, verbose: int) -> None:
        """Swallow skorch's remarks, which the aligner's ``history_`` holds."""


class StopWhenPatient(Callback):
    """Ends training when a `BestEpoch` has waited long enough."""

    def __init__(self, best: BestEpoch) -> None:
        self.best = best

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Stop, as skorch's callbacks do."""
        if self.best.misses_ >= self.best.patience:
            raise KeyboardInterrupt


class DivergenceGuard(Callback):
    """Stops a training whose loss or weights are no longer numbers."""

    def on_batch_end(
        self, net: NeuralNet, batch: Any = None, training: bool = False, **kwargs: Any
    ) -> None:
        """Look at the loss of the batch."""
        if training and not math.isfinite(net.history[-1, "batches", -1, "train_loss"]):
            raise diverged(net)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Look at the weights after the last batch."""
        if not all(torch.isfinite(p).all() for p in net.module_.parameters()):
            raise diverged(net)


class EpochProgress(Callback):
    """A progress bar over epochs with rate, time left, loss and recall."""

    def __init__(self, n_epochs: int, name: str) -> None:
        self.n_epochs = n_epochs
        self.name = name

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Show an empty bar."""
        self.bar_ = tqdm(total=self.n_epochs, unit="epoch", desc=self.name)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Move on by one epoch."""
        row = net.history[-1]
        shown = {key: f"{row[key]:.3f}" for key in ("train_loss", "valid_recall") if key in row}
        self.bar_.set_postfix(shown, refresh=False)
        self.bar_.update()

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Leave the bar as it stands."""
        self.bar_.close()


class Split(NamedTuple):
    """Rows of pairs to train on, and to validate on (or None)."""

    train: np.ndarray
    valid: np.ndarray | None


def split_pairs(pairs: np.ndarray, fraction: float, rng: np.random.RandomState) -> Split:
    """Hold out pairs that share neither picture nor caption with the others.

    Parameters
    ----------
    pairs : ndarray of shape (n_pairs, 2)
        Rows of pictures and of captions.
    fraction : float
        Share of the pairs to hold out, in at least 10 and at most 5,000 groups.
    rng : numpy.random.RandomState
        Draws the groups.

    Returns
    -------
    split : Split
        ``valid`` is None when there are too few groups for a recall that means something
        (fewer than 50).

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.training import split_pairs
    >>> pairs = np.column_stack([np.arange(100), np.arange(100)])
    >>> split = split_pairs(pairs, 0.1, np.random.RandomState(0))
    >>> len(split.train), len(split.valid)
    (90, 10)
    """
    n_images = int(pairs[:, 0].max()) + 1
    n_nodes = n_images + int(pairs[:, 1].max()) + 1
    edges = (np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1] + n_images))
    graph = coo_array(edges, shape=(n_nodes, n_nodes))
    group = connected_components(graph, directed=False)[1][pairs[:, 0]]
    groups, sizes = np.unique(group, return_counts=True)
    if len(groups) < 5 * _FEWEST_VALIDATION_GROUPS:
        return Split(np.arange(len(pairs)), None)
    # A caption of very many pictures makes a large group: it stays in training.
    room = max(fraction * len(pairs), float(_FEWEST_VALIDATION_GROUPS))
    chosen: list[int] = []
    for number in rng.permutation(len(groups)):
        if sizes[number] <= room and len(chosen) < _MOST_VALIDATION_GROUPS:
            chosen.append(groups[number])
            room -= sizes[number]
    if len(chosen) < _FEWEST_VALIDATION_GROUPS:
        return Split(np.arange(len(pairs)), None)
    held_out = np.isin(group, chosen)
    return Split(np.flatnonzero(~held_out), np.flatnonzero(held_out))


def subset(dataset: PairDataset, rows: np.ndarray) -> PairDataset:
    """Return some pairs of a dataset, with only their pictures and captions."""
    pairs = dataset.pairs[torch.from_numpy(rows)].numpy()
    images, at_image = np.unique(pairs[:, 0], return_inverse=True)
    texts, at_text = np.unique(pairs[:, 1], return_inverse=True)
    return PairDataset(
        dataset.image[torch.from_numpy(images)],
        dataset.text[torch.from_numpy(texts)],
        np.column_stack([at_image, at_text]),
    )


def embed(module: TwoTower, side: str, features: torch.Tensor, device: Any) -> np.ndarray:
    """Return the embeddings of one side's features, a bounded number of rows at a time."""
    tower = module.embed_image if side == "image" else module.embed_text
    was_training = module.training
    module.eval()
    with torch.inference_mode():
        parts = [tower(rows.to(device)).float().cpu() for rows in features.split(_ROWS_AT_ONCE)]
    module.train(was_training)
    return torch.cat(parts).numpy()
