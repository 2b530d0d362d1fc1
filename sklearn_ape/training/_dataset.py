"""Pairs of features."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch.utils.data import Dataset

from ._stored import select


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
