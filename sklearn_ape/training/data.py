"""Datasets of pairs, batches, and splits into training and validation pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from torch.utils.data import Dataset

from ..features.memmap import select
from ..utils.concurrency import map_threaded


class Pairs(NamedTuple):
    """Features of images and captions, and which belong together.

    Parameters
    ----------
    image, text : ndarray or StoredRows of shape (n_rows, n_features)
        The last `n_prototypes` rows of `image` are not images but stand for classes.
    pairs : ndarray of int, shape (n_pairs, 2)
        Rows of `image` and `text` that belong together.
    n_prototypes : int, default=0
        Number of prototypes.
    items : ndarray of int, shape (n_item_pairs, 4), or None, default=None
        Where several images or captions share one row, since their features are equal: the
        image, its row, the caption and its row of every pair. None where each has its own row.
    """

    image: Any
    text: Any
    pairs: np.ndarray
    n_prototypes: int = 0
    items: np.ndarray | None = None

    @property
    def n_images(self) -> int:
        """Number of the rows of `image`, the first ones, that are images."""
        return len(self.image) - self.n_prototypes

    def by_item(self) -> Pairs:
        """Return the pairs with a row for every image and caption, as they are to be scored.

        Training cannot tell equal features apart and treats them as one. A score must not do so:
        it would rise as an encoder maps more images to the same features.
        """
        if self.items is None:
            return self
        _, first_image, at_image = np.unique(
            self.items[:, 0], return_index=True, return_inverse=True
        )
        texts, first_text, at_text = np.unique(
            self.items[:, 2], return_index=True, return_inverse=True
        )
        return Pairs(
            select(self.image, self.items[first_image, 1]),
            select(self.text, self.items[first_text, 3]),
            _sorted_pairs(at_image, at_text, len(texts)),
        )


def _sorted_pairs(images: np.ndarray, texts: np.ndarray, n_texts: int) -> np.ndarray:
    """Return distinct pairs, sorted, of shape (n_pairs, 2)."""
    # One number per pair: rows of two take many times as long to sort, in copies.
    return np.column_stack(np.divmod(np.unique(images * n_texts + texts), n_texts))


def subset_of(data: Pairs, rows: np.ndarray) -> Pairs:
    """Return some of the pairs, with only their images, prototypes and captions."""
    pairs = data.pairs[rows]
    images, at_image = np.unique(pairs[:, 0], return_inverse=True)
    texts, at_text = np.unique(pairs[:, 1], return_inverse=True)
    items = None
    if data.items is not None:
        n_texts = len(data.text)
        keys = pairs[:, 0] * n_texts + pairs[:, 1]
        items = data.items[np.isin(data.items[:, 1] * n_texts + data.items[:, 3], keys)]
        items[:, 1] = np.searchsorted(images, items[:, 1])
        items[:, 3] = np.searchsorted(texts, items[:, 3])
    return Pairs(
        select(data.image, images),
        select(data.text, texts),
        np.column_stack([at_image, at_text]),
        int((images >= data.n_images).sum()),
        items,
    )


def held_out(data: Pairs, fraction: float, seed: int) -> tuple[Pairs, Pairs | None]:
    """Return pairs to train on, and pairs held out; None where there are too few."""
    split = split_pairs(data.pairs, fraction, np.random.RandomState(seed))
    if split.valid is None:
        return data, None
    # Prototypes are not images: users do not search for their names.
    images = split.valid[data.pairs[split.valid, 0] < data.n_images]
    if len(images) < 2:
        return data, None
    return subset_of(data, split.train), subset_of(data, images)


class PairDataset(Dataset):
    """Features of distinct images and captions, and which belong together.

    Parameters
    ----------
    image : torch.Tensor of shape (n_images, n_image_features)
        One row a distinct image. Or `StoredRows`, or anything else that has a length and
        returns rows for an array of their numbers.
    text : torch.Tensor of shape (n_texts, n_text_features)
        One row a distinct caption; or the like.
    pairs : ndarray of shape (n_pairs, 2)
        Rows of images and of captions.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sklearn_ape.training import PairDataset
    >>> pairs = np.array([[0, 0], [0, 1], [1, 2]])  # the first image has two captions
    >>> dataset = PairDataset(torch.zeros(2, 4), torch.zeros(3, 5), pairs)
    >>> features, positive = dataset[torch.arange(3)]
    >>> features["image"].shape, features["text"].shape
    (torch.Size([3, 4]), torch.Size([3, 5]))
    """

    def __init__(self, image: Any, text: Any, pairs: np.ndarray) -> None:
        self.image = image
        self.text = text
        self.pairs = torch.as_tensor(pairs)
        self.device: torch.device | None = None
        one_to_one = all(len(np.unique(side)) == len(pairs) for side in pairs.T)
        ones = np.ones(len(pairs), dtype=bool)
        shape = (len(image), len(text))
        self._known = None if one_to_one else csr_array((ones, tuple(pairs.T)), shape=shape)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the features of some pairs, and which images and captions belong together.

        The second has a row (i, j) for each image i and caption j of these pairs that do, so it
        takes no room of its own in a batch of very many; one number a pair stands for the
        diagonal, where no image or caption has several partners.
        """
        return self.features(index), self.positive(index)

    def features(self, index: Any) -> dict[str, torch.Tensor]:
        """Return the features of both sides of some pairs."""
        ids = self.pairs[index]
        return {
            "image": self._rows(self.image, ids[:, 0]),
            "text": self._rows(self.text, ids[:, 1]),
        }

    def positive(self, index: Any) -> torch.Tensor:
        """Return which images and captions of some pairs belong together."""
        if self._known is None:
            return torch.arange(len(index))
        images, texts = self.pairs[index].numpy().T
        met = self._known[images][:, texts]
        return torch.from_numpy(np.column_stack(met.nonzero()).astype(np.int64))

    @property
    def is_at_hand(self) -> bool:
        """Whether rows are there without reading, computing or moving anything."""
        sides = (self.image, self.text)
        return all(isinstance(s, torch.Tensor) for s in sides) and not self._moves(*sides)

    def to(self, device: torch.device) -> PairDataset:
        """Return the same pairs for training on a device.

        Parameters
        ----------
        device : torch.device
            Where the heads are.

        Returns
        -------
        dataset : PairDataset
            Of features that lie on a CUDA device, if they take less than half of its free
            memory; else of those here, whose batches are moved there one by one.
        """
        moved = copy(self)
        moved.device = device
        sides = (self.image, self.text)
        if device.type == "cuda" and all(isinstance(side, torch.Tensor) for side in sides):
            size = sum(side.numel() * side.element_size() for side in sides)
            if 2 * size < torch.cuda.mem_get_info(device)[0]:
                moved.image, moved.text = (side.to(device) for side in sides)
        return moved

    def _rows(self, side: Any, ids: torch.Tensor) -> torch.Tensor:
        if isinstance(side, torch.Tensor):
            rows = side[ids.to(side.device, non_blocking=True)]
        else:
            rows = torch.as_tensor(side[ids.numpy()])
        if self._moves(rows):
            return rows.pin_memory().to(self.device, non_blocking=True)
        return rows

    def _moves(self, *tensors: torch.Tensor) -> bool:
        """Say whether tensors have to be moved to a CUDA device, which takes time."""
        is_cuda = self.device is not None and self.device.type == "cuda"
        return is_cuda and any(tensor.device.type != "cuda" for tensor in tensors)


def as_tensor(features: np.ndarray) -> torch.Tensor:
    """Return features as a tensor, which shares their memory if that can be written to.

    Parameters
    ----------
    features : ndarray
        Such as an aligner's X.

    Returns
    -------
    tensor : torch.Tensor
        Of the same numbers. torch warns of arrays that are read-only, so these are copied.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.training import as_tensor
    >>> as_tensor(np.ones((2, 3), dtype=np.float32)).shape
    torch.Size([2, 3])
    """
    return torch.from_numpy(np.require(features, requirements=["C", "W"]))


def subset(dataset: PairDataset, rows: np.ndarray) -> PairDataset:
    """Return some pairs of a dataset, with only their images and captions.

    Parameters
    ----------
    dataset : PairDataset
        All pairs.
    rows : ndarray of int
        Which of them.

    Returns
    -------
    subset : PairDataset
        With images and captions numbered anew.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sklearn_ape.training import PairDataset, subset
    >>> pairs = np.array([[0, 0], [1, 1], [2, 2]])
    >>> dataset = PairDataset(torch.zeros(3, 4), torch.zeros(3, 5), pairs)
    >>> some = subset(dataset, np.array([0, 2]))
    >>> some.pairs.tolist(), some.image.shape
    ([[0, 0], [1, 1]], torch.Size([2, 4]))
    """
    pairs = dataset.pairs[torch.from_numpy(rows)].numpy()
    images, at_image = np.unique(pairs[:, 0], return_inverse=True)
    texts, at_text = np.unique(pairs[:, 1], return_inverse=True)
    image, text = (
        as_tensor(side) if isinstance(side, np.ndarray) else side
        for side in (select(dataset.image, images), select(dataset.text, texts))
    )
    return PairDataset(image, text, np.column_stack([at_image, at_text]))


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
        return map_threaded(self._read, drawn, n_threads=1)

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


_FEWEST_VALIDATION_GROUPS = 10


_MOST_VALIDATION_GROUPS = 5000


class Split(NamedTuple):
    """Rows of pairs to train on, and to validate on.

    Attributes
    ----------
    train : ndarray of int
        Rows to train on.
    valid : ndarray of int or None
        Rows held out.
    """

    train: np.ndarray
    valid: np.ndarray | None


def split_pairs(pairs: np.ndarray, fraction: float, rng: np.random.RandomState) -> Split:
    """Hold out pairs that share neither image nor caption with the others.

    Parameters
    ----------
    pairs : ndarray of shape (n_pairs, 2)
        Rows of images and of captions.
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
    # As int32, since older versions of scipy find no components, in silence, among int64.
    ends = (pairs[:, 0].astype(np.int32), (pairs[:, 1] + n_images).astype(np.int32))
    graph = coo_array((np.ones(len(pairs), dtype=bool), ends), shape=(n_nodes, n_nodes))
    group = connected_components(graph, directed=False)[1][pairs[:, 0]]
    groups, sizes = np.unique(group, return_counts=True)
    if len(groups) < 5 * _FEWEST_VALIDATION_GROUPS:
        return Split(np.arange(len(pairs)), None)
    # A caption of very many images makes a large group: it stays in training.
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
