"""Pairs of features, and batches of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch.utils.data import Dataset


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
        one_to_one = all(len(np.unique(side)) == len(pairs) for side in pairs.T)
        ones = np.ones(len(pairs), dtype=bool)
        shape = (len(image), len(text))
        self._known = None if one_to_one else csr_array((ones, tuple(pairs.T)), shape=shape)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the features of some pairs, and which pictures and captions belong together.

        The second has a row (i, j) for each picture i and caption j of these pairs that do, so it
        takes no room of its own in a batch of very many; one number a pair stands for the
        diagonal, where no picture or caption has several partners.
        """
        ids = self.pairs[index]
        images, texts = ids[:, 0], ids[:, 1]
        if self._known is None:
            positive = torch.arange(len(ids))
        else:
            met = self._known[images.numpy()][:, texts.numpy()]
            positive = torch.from_numpy(np.column_stack(met.nonzero()).astype(np.int64))
        return {"image": self.image[images], "text": self.text[texts]}, positive


def subset(dataset: PairDataset, rows: np.ndarray) -> PairDataset:
    """Return some pairs of a dataset, with only their pictures and captions.

    Parameters
    ----------
    dataset : PairDataset
        All pairs.
    rows : ndarray of int
        Which of them.

    Returns
    -------
    subset : PairDataset
        With pictures and captions numbered anew.
    """
    pairs = dataset.pairs[torch.from_numpy(rows)].numpy()
    images, at_image = np.unique(pairs[:, 0], return_inverse=True)
    texts, at_text = np.unique(pairs[:, 1], return_inverse=True)
    return PairDataset(
        dataset.image[torch.from_numpy(images)],
        dataset.text[torch.from_numpy(texts)],
        np.column_stack([at_image, at_text]),
    )


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

    Raises
    ------
    ValueError
        When `mixup` is not a number from 0.

    Notes
    -----
    A mixed picture and a mixed caption belong together where both their parts do: where only one
    does, the caption is the wrong one for the mixture. On made-up pairs with 12 pictures a
    caption, this learned more than to let the larger part decide.

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
    ) -> None:
        if not 0 <= mixup < math.inf:
            raise ValueError(f"mixup must be a number from 0, not {mixup!r}.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.mixup = mixup
        self._rng = np.random.default_rng(seed)
        # Of its own, so that mixing leaves the orders as they are.
        self._mixing_rng = np.random.default_rng([seed, 1])

    def __len__(self) -> int:
        return n_batches(len(self.dataset), self.batch_size)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        n_pairs = len(self.dataset)
        order = self._rng.permutation(n_pairs) if self.shuffle else np.arange(n_pairs)
        for index in np.array_split(order, len(self)):
            inputs, positive = self.dataset[torch.from_numpy(index)]
            yield self._mixed(inputs, positive) if self.mixup else (inputs, positive)

    def _mixed(
        self, inputs: dict[str, torch.Tensor], positive: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        share = self._mixing_rng.beta(self.mixup, self.mixup)
        n_pairs = len(inputs["image"])
        # Neighbours on a random circle: every pair is a partner once, and never its own.
        circle = self._mixing_rng.permutation(n_pairs)
        partner = torch.empty(n_pairs, dtype=torch.int64)
        partner[torch.from_numpy(circle)] = torch.from_numpy(np.roll(circle, 1))
        if positive.ndim == 2:
            of_partners = partner[positive]
            numbers, known = (at[:, 0] * n_pairs + at[:, 1] for at in (of_partners, positive))
            positive = positive[torch.isin(numbers, known)]
        mixed = {side: share * x + (1 - share) * x[partner] for side, x in inputs.items()}
        return mixed, positive


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
    """
    return max(1, math.ceil(n_pairs / batch_size))
