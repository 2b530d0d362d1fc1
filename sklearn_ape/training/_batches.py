"""Whole batches of pairs by index, read ahead where reading takes time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from .._threads import in_threads
from ._dataset import PairDataset


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
        Of the orders and mixtures.
    mixup : float, default=0.0
        Above 0, every pair of a batch is mixed with another one of it, after FuseMix [1]_: the
        features of both sides become ``share * own + (1 - share) * partner``, with one share a
        batch, drawn from Beta(mixup, mixup). 1 draws all shares alike, less leaves most pairs
        nearly as they are.
    rank, n_ranks : int, default=0, 1
        Which one, and of how many, processes that train together this is: it gets its share of
        the rows of every batch, and the positives of the whole batch.

    Raises
    ------
    ValueError
        When `mixup` is not a number from 0.

    Notes
    -----
    A mixed image and a mixed caption belong together where both their parts do: where only one
    does, the caption is the wrong one for the mixture. On made-up pairs with 12 images a
    caption, this learned more than to let the larger part decide.

    The rows of a batch are drawn from all pairs, wherever they lie. Those of features that are
    stored are read by a thread, in the order in which they lie, while the batches before are
    trained on: the batches are those of features in memory.

    References
    ----------
    .. [1] N. Vouitsis et al., "Data-Efficient Multimodal Fusion on a Single GPU", CVPR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sklearn_ape.training import PairBatches, PairDataset
    >>> pairs = np.column_stack([np.arange(6), np.arange(6)])
    >>> dataset = PairDataset(torch.eye(6), torch.eye(6), pairs)
    >>> [len(inputs["image"]) for inputs, _ in PairBatches(dataset, batch_size=4, mixup=1.0)]
    [3, 3]
    """

    def __init__(
        self,
        dataset: PairDataset,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        mixup: float = 0.0,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        if not 0 <= mixup < math.inf:
            raise ValueError(f"mixup must be a number from 0, not {mixup!r}.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.mixup = mixup
        self.rank = rank
        self.n_ranks = n_ranks
        self._rng = np.random.default_rng(seed)
        # Of its own, so that mixing leaves the orders as they are.
        self._mixing_rng = np.random.default_rng([seed, 1])

    def __len__(self) -> int:
        return n_batches(len(self.dataset), self.batch_size)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        n_pairs = len(self.dataset)
        order = self._rng.permutation(n_pairs) if self.shuffle else np.arange(n_pairs)
        drawn = map(self._draw, np.array_split(order, len(self)))
        if self.dataset.is_at_hand:
            return map(self._read, drawn)
        return in_threads(self._read, drawn, n_threads=1)

    def generators(self) -> dict[str, Any]:
        """Return where the random generators stand, between two epochs, as plain data."""
        return {
            "order": self._rng.bit_generator.state,
            "mixing": self._mixing_rng.bit_generator.state,
        }

    def restore_generators(self, states: dict[str, Any]) -> None:
        """Go on from where `generators` was called."""
        self._rng.bit_generator.state = states["order"]
        self._mixing_rng.bit_generator.state = states["mixing"]

    def _draw(self, index: np.ndarray) -> _Draw:
        """Draw all that is random about a batch, so that reading may wait."""
        if not self.mixup:
            return _Draw(index)
        share = self._mixing_rng.beta(self.mixup, self.mixup)
        # Neighbours on a random circle: every pair is a partner once, and never its own.
        circle = self._mixing_rng.permutation(len(index))
        partner = np.empty(len(index), dtype=np.int64)
        partner[circle] = np.roll(circle, 1)
        return _Draw(index, partner, share)

    def _read(self, drawn: _Draw) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        index, partner, share = drawn
        mine = part_of(len(index), self.rank, self.n_ranks)
        inputs = self.dataset.features(torch.from_numpy(index[mine]))
        positive = self.dataset.positive(torch.from_numpy(index))
        if partner is None:
            return inputs, positive
        if positive.ndim == 2:
            of_partners = torch.from_numpy(partner)[positive]
            numbers, known = (at[:, 0] * len(index) + at[:, 1] for at in (of_partners, positive))
            positive = positive[torch.isin(numbers, known)]
        if self.n_ranks == 1:
            others = {side: x[torch.from_numpy(partner)] for side, x in inputs.items()}
        else:
            others = self.dataset.features(torch.from_numpy(index[partner[mine]]))
        mixed = {side: share * x + (1 - share) * others[side] for side, x in inputs.items()}
        return mixed, positive


class _Draw(NamedTuple):
    """Pairs of a batch; for each the place of its partner, and the share of its own features."""

    pairs: np.ndarray
    partner: np.ndarray | None = None
    share: float = 1.0


def part_of(n_pairs: int, rank: int, n_ranks: int) -> slice:
    """Return the rows of a batch that are one process's share.

    Parameters
    ----------
    n_pairs : int
        Pairs in the batch.
    rank, n_ranks : int
        Which process, of how many.

    Returns
    -------
    rows : slice
        Shares are equal but for one row, and may be empty.
    """
    each, longer = divmod(n_pairs, n_ranks)
    start = rank * each + min(rank, longer)
    return slice(start, start + each + (rank < longer))


def n_batches(n_pairs: int, batch_size: int) -> int:
    """Count the batches of one epoch.

    Parameters
    ----------
    n_pairs, batch_size : int
        Pairs in all, and the most in a batch.

    Returns
    -------
    n_batches : int
        At least 1.

    Examples
    --------
    >>> from sklearn_ape.training import n_batches
    >>> n_batches(1000, 300)
    4
    """
    return max(1, math.ceil(n_pairs / batch_size))
