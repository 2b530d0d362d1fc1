"""Datasets of pairs, batches, and splits into training and validation pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch.utils.data import Dataset

from ..features.matrix import StoredRows, select
from ..utils.concurrency import map_threaded
from ..utils.linalg import merge_groups
from ..utils.validation import check_integer, check_number

# With fewer groups, recall is too noisy to find the best epoch. With more, each evaluation would
# take longer and the similarity matrix more memory, for hardly more precision.
_MIN_VALIDATION_GROUPS = 10
_MAX_VALIDATION_GROUPS = 2500


@dataclass(eq=False, repr=False)
class PairDataset(Dataset):
    """Features of distinct images and captions, and the pairs that belong together.

    Parameters
    ----------
    image : torch.Tensor, ndarray or StoredRows of shape (n_images, n_image_features)
        Features of the images, one row per distinct image. Any other object that has a length
        and returns rows for an array of row numbers is accepted, too.
    text : torch.Tensor, ndarray or StoredRows of shape (n_texts, n_text_features)
        Features of the captions, one row per distinct caption.
    pairs : array-like of int, shape (n_pairs, 2)
        Rows of `image` and `text` that belong together.
    n_prototypes : int, default=0
        Number of the last rows of `image` that are not images but stand for classes.
    items : ndarray of int, shape (n_item_pairs, 4), or None, default=None
        The image, its row, the caption and its row of every pair, where several images or
        captions share one row because their features are equal. None if every image and caption
        has its own row.

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

    image: Any
    text: Any
    pairs: np.ndarray
    n_prototypes: int = 0
    items: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.pairs = np.asarray(self.pairs)
        self.device: torch.device | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the features and the positives of the pairs at `index`."""
        return self.features(index), self.positive(index)

    @property
    def n_images(self) -> int:
        """Number of the rows of `image`, the first ones, that are images."""
        return len(self.image) - self.n_prototypes

    def expand_items(self) -> PairDataset:
        """Return a dataset with one row per image and per caption, for scoring.

        Training cannot tell equal features apart and treats them as one. A score must not do so:
        it would rise as an encoder maps more images to the same features.
        """
        if self.items is None:
            return self
        images, image_rows, texts, text_rows = self.items.T
        _, first_image, image = np.unique(images, return_index=True, return_inverse=True)
        _, first_text, text = np.unique(texts, return_index=True, return_inverse=True)
        return PairDataset(
            select(self.image, image_rows[first_image]),
            select(self.text, text_rows[first_text]),
            drop_repeated_pairs(image, text, len(first_text)),
        )

    def features(self, index: Any) -> dict[str, torch.Tensor]:
        """Return the features of both sides of the pairs at `index`."""
        rows = torch.from_numpy(self.pairs[np.asarray(index)])
        return {
            "image": self._read_rows(self.image, rows[:, 0]),
            "text": self._read_rows(self.text, rows[:, 1]),
        }

    def positive(self, index: Any) -> torch.Tensor:
        """Return the image and caption, as (i, j), of all positives among the pairs at `index`.

        A list of positives has room for batches whose square matrix would not fit into memory. One
        number per pair stands for the diagonal, where no image or caption has several partners.
        """
        if self._adjacency is None:
            return torch.arange(len(index))
        images, texts = self.pairs[np.asarray(index)].T
        positive = self._adjacency[images][:, texts]
        return torch.from_numpy(np.column_stack(positive.nonzero()).astype(np.int64))

    @cached_property
    def _adjacency(self) -> csr_array | None:
        """Images by captions that belong together; None if each has a single partner."""
        if all(len(np.unique(side)) == len(self.pairs) for side in self.pairs.T):
            return None
        ones = np.ones(len(self.pairs), dtype=bool)
        return csr_array((ones, tuple(self.pairs.T)), shape=(len(self.image), len(self.text)))

    @property
    def is_ready(self) -> bool:
        """Whether rows are available without reading, computing or moving anything."""
        sources = self._list_sources()
        is_tensor = all(isinstance(source, torch.Tensor) for source in sources)
        return is_tensor and not self._needs_moving(*sources)

    def to(self, device: torch.device) -> PairDataset:
        """Return the same pairs for training on a device.

        Features are moved to a CUDA device if they take less than half of its free memory.
        Otherwise they stay where they are, and each batch is moved.
        """
        dataset = copy(self)
        dataset.device = device
        sides = (self.image, self.text)
        if device.type == "cuda" and all(isinstance(side, torch.Tensor) for side in sides):
            size = sum(side.numel() * side.element_size() for side in sides)
            if 2 * size < torch.cuda.mem_get_info(device)[0]:
                dataset.image, dataset.text = (side.to(device) for side in sides)
        return dataset

    def _list_sources(self) -> list[Any]:
        """Return the features that `features` reads."""
        return [self.image, self.text]

    def _read_rows(self, features: Any, rows: torch.Tensor) -> torch.Tensor:
        if isinstance(features, torch.Tensor):
            tensor = features[rows.to(features.device, non_blocking=True)]
        else:
            tensor = torch.as_tensor(features[rows.numpy()])
        if self._needs_moving(tensor):
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def _needs_moving(self, *tensors: torch.Tensor) -> bool:
        """Return whether tensors have to be copied to a CUDA device, which takes time."""
        is_cuda = self.device is not None and self.device.type == "cuda"
        return is_cuda and any(tensor.device.type != "cuda" for tensor in tensors)


def drop_repeated_pairs(images: np.ndarray, texts: np.ndarray, n_texts: int) -> np.ndarray:
    """Return the distinct pairs of rows, sorted, as an array of shape (n_pairs, 2)."""
    # One number per pair: np.unique along an axis takes many times as long, and copies.
    return np.column_stack(np.divmod(np.unique(images * n_texts + texts), n_texts))


def as_tensor(features: Any) -> Any:
    """Return features as a tensor, which shares the memory of a writable array.

    Read-only arrays are copied, because torch warns about them. `StoredRows` are returned as is.

    >>> as_tensor(np.ones((2, 3), dtype=np.float32)).shape
    torch.Size([2, 3])
    """
    if isinstance(features, StoredRows):
        return features
    return torch.from_numpy(np.require(features, requirements=["C", "W"]))


def subset(dataset: PairDataset, rows: np.ndarray) -> PairDataset:
    """Return some pairs of a dataset with only their images and captions, numbered from 0.

    >>> pairs = np.array([[0, 0], [1, 1], [2, 2]])
    >>> dataset = PairDataset(torch.zeros(3, 4), torch.zeros(3, 5), pairs)
    >>> part = subset(dataset, np.array([0, 2]))
    >>> part.pairs.tolist(), part.image.shape
    ([[0, 0], [1, 1]], torch.Size([2, 4]))
    """
    pairs = dataset.pairs[rows]
    images, image_rows = np.unique(pairs[:, 0], return_inverse=True)
    texts, text_rows = np.unique(pairs[:, 1], return_inverse=True)
    items = None
    if dataset.items is not None:
        image_item, image_row, text_item, text_row = dataset.items.T
        # One number per pair of rows, so that `isin` can compare them.
        n_texts = len(dataset.text)
        keys = pairs[:, 0] * n_texts + pairs[:, 1]
        is_selected = np.isin(image_row * n_texts + text_row, keys)
        # `searchsorted` returns the new number of a selected row, and any number for other rows.
        new_image_row = np.searchsorted(images, image_row)
        new_text_row = np.searchsorted(texts, text_row)
        items = np.column_stack([image_item, new_image_row, text_item, new_text_row])[is_selected]
    return PairDataset(
        select(dataset.image, images),
        select(dataset.text, texts),
        np.column_stack([image_rows, text_rows]),
        int((images >= dataset.n_images).sum()),
        items,
    )


@dataclass(eq=False, repr=False)
class PairBatches:
    """Batches of a `PairDataset`; an iterator for skorch in place of a data loader.

    Parameters
    ----------
    dataset : PairDataset
        Pairs to iterate over.
    batch_size : int
        Maximum number of pairs per batch. The sizes of the batches differ by at most one pair: a
        small last batch would be an easier task, and a batch of one pair has no negatives.
    shuffle : bool, default=False
        Whether to shuffle the pairs in every epoch.
    seed : int, default=0
        Seed of the shuffling and of `mixup`.
    mixup : float, default=0.0
        Parameter of the mixing of pairs, after FuseMix [1]_; 0 disables it. The features of both
        sides of a pair become ``share * own + (1 - share) * partner``, where the partner is
        another pair of the batch, and the share, one per batch, is drawn from Beta(mixup, mixup).
        With 1 it is uniform; smaller values leave most pairs nearly unchanged.
    rank, n_ranks : int, default=0, 1
        Rank of this process and number of ranks in distributed training. Each rank gets its part
        of the rows of every batch, and the positives of the whole batch.

    Raises
    ------
    ValueError
        If `batch_size` is not an integer of at least 1, or `mixup` is negative or not finite.

    Notes
    -----
    A mixed image and a mixed caption are positives if both of their parts are. If only one part
    belongs together, the caption is wrong for the mixture. On synthetic pairs with 12 images per
    caption this was more accurate than letting the larger part decide.

    Pairs are drawn from the whole dataset. Features stored on disk are read by a thread, in the
    order in which they are stored, while earlier batches are trained on; the batches are the same
    as those of features in memory.

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

    dataset: PairDataset
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    mixup: float = 0.0
    rank: int = 0
    n_ranks: int = 1

    def __post_init__(self) -> None:
        check_integer(self.batch_size, "batch_size", 1)
        check_number(self.mixup, "mixup", 0)
        self._rng = np.random.default_rng(self.seed)
        # The second generator ensures that mixing does not change the order of the pairs.
        self._mixing_rng = np.random.default_rng([self.seed, 1])

    def __len__(self) -> int:
        return count_batches(len(self.dataset), self.batch_size)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        n_pairs = len(self.dataset)
        order = self._rng.permutation(n_pairs) if self.shuffle else np.arange(n_pairs)
        draws = map(self._draw, np.array_split(order, len(self)))
        if self.dataset.is_ready:
            return map(self._read, draws)
        return map_threaded(self._read, draws, n_threads=1)

    def generator_states(self) -> dict[str, Any]:
        """Return the states of the random generators between two epochs, as plain data."""
        return {
            "order": self._rng.bit_generator.state,
            "mixing": self._mixing_rng.bit_generator.state,
        }

    def restore_generators(self, states: dict[str, Any]) -> None:
        """Restore the states that `generator_states` returned."""
        self._rng.bit_generator.state = states["order"]
        self._mixing_rng.bit_generator.state = states["mixing"]

    def _draw(self, index: np.ndarray) -> _Draw:
        """Draw everything random about a batch now, since a thread may read it later."""
        if not self.mixup:
            return _Draw(index)
        share = self._mixing_rng.beta(self.mixup, self.mixup)
        # Neighbours on a random circle: every pair is a partner once, and never its own.
        circle = self._mixing_rng.permutation(len(index))
        partner = np.empty(len(index), dtype=np.int64)
        partner[circle] = np.roll(circle, 1)
        return _Draw(index, partner, share)

    def _read(self, draw: _Draw) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the inputs of this rank and the positives of the whole batch."""
        index, partner, share = draw
        rows_of_rank = rank_rows(len(index), self.rank, self.n_ranks)
        inputs = self.dataset.features(index[rows_of_rank])
        positive = self.dataset.positive(index)
        if partner is None:
            return inputs, positive
        if positive.ndim == 2:
            positive = _keep_mixed_positives(positive, partner)
        if self.n_ranks == 1:
            partners = {side: rows[torch.from_numpy(partner)] for side, rows in inputs.items()}
        else:  # partners may be in the rows of other ranks
            partners = self.dataset.features(index[partner[rows_of_rank]])
        inputs = {
            side: share * rows + (1 - share) * partners[side] for side, rows in inputs.items()
        }
        return inputs, positive


class _Draw(NamedTuple):
    """Pairs of a batch, the partner of each pair, and the share of the pair's own features."""

    pairs: np.ndarray
    partner: np.ndarray | None = None
    share: float = 1.0


def _keep_mixed_positives(positive: torch.Tensor, partner: np.ndarray) -> torch.Tensor:
    """Return the positives (i, j) of a batch whose partners are positives of each other, too."""
    n_pairs = len(partner)
    partner_positive = torch.from_numpy(partner)[positive]
    # One number per positive, so that `isin` can compare them.
    keys, partner_keys = (
        rows[:, 0] * n_pairs + rows[:, 1] for rows in (positive, partner_positive)
    )
    return positive[torch.isin(partner_keys, keys)]


def rank_rows(n_pairs: int, rank: int, n_ranks: int) -> slice:
    """Return the rows of a batch that one rank processes.

    The numbers of rows differ by at most one between ranks, and may be zero.
    """
    size, remainder = divmod(n_pairs, n_ranks)
    start = rank * size + min(rank, remainder)
    return slice(start, start + size + (rank < remainder))


def count_batches(n_pairs: int, batch_size: int) -> int:
    """Count the batches of one epoch, at least 1.

    >>> count_batches(1000, 300)
    4
    """
    return max(1, math.ceil(n_pairs / batch_size))


class Split(NamedTuple):
    """Rows of pairs to train on, and to validate on.

    Attributes
    ----------
    train : ndarray of int
        Rows of the training pairs.
    valid : ndarray of int or None
        Rows of the validation pairs.
    """

    train: np.ndarray
    valid: np.ndarray | None


def split_pairs(
    pairs: np.ndarray, fraction: float, rng: np.random.RandomState, by_image: bool = False
) -> Split:
    """Hold out pairs that share neither an image nor a caption with the other pairs.

    Parameters
    ----------
    pairs : ndarray of shape (n_pairs, 2)
        Rows of images and of captions.
    fraction : float
        Fraction of the pairs to hold out, in [0, 1), in at least 10 and at most 2,500 groups.
    rng : numpy.random.RandomState
        Random generator that draws the groups.
    by_image : bool, default=False
        Whether the other pairs may have the same captions, but not the same images.

    Returns
    -------
    split : Split
        Rows of both parts. ``valid`` is None if there are fewer than 50 groups, which are too few
        for a meaningful recall.

    Raises
    ------
    ValueError
        If `fraction` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.training import split_pairs
    >>> pairs = np.column_stack([np.arange(100), np.arange(100)])
    >>> split = split_pairs(pairs, 0.1, np.random.RandomState(0))
    >>> len(split.train), len(split.valid)
    (90, 10)
    """
    check_number(fraction, "fraction", 0, 1)
    group = pairs[:, 0] if by_image else group_pairs(pairs)
    groups, sizes = np.unique(group, return_counts=True)
    if len(groups) < 5 * _MIN_VALIDATION_GROUPS:
        return Split(np.arange(len(pairs)), None)
    # A caption of many images is a large group, which stays in training.
    n_remaining = max(fraction * len(pairs), float(_MIN_VALIDATION_GROUPS))
    valid_groups: list[int] = []
    for index in rng.permutation(len(groups)):
        if sizes[index] <= n_remaining and len(valid_groups) < _MAX_VALIDATION_GROUPS:
            valid_groups.append(groups[index])
            n_remaining -= sizes[index]
    if len(valid_groups) < _MIN_VALIDATION_GROUPS:
        return Split(np.arange(len(pairs)), None)
    is_held_out = np.isin(group, valid_groups)
    return Split(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))


def group_pairs(pairs: np.ndarray) -> np.ndarray:
    """Return the group of every pair; pairs of different groups share no image or caption."""
    images, texts = pairs[:, 0], pairs[:, 1]
    n_images = int(images.max()) + 1
    return merge_groups(images, images, n_images + texts, n_images + int(texts.max()) + 1)
