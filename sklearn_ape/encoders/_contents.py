"""Digests of the content of images, which tell equal images from different ones."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ._errors import ItemError
from ._images import image_digest
from ._items import as_items


def image_digests(X: Any) -> np.ndarray | None:
    """Return 16 bytes per image, equal for images with the same content.

    Parameters
    ----------
    X : sequence of images
        Paths, bytes, PIL images or arrays. A path stands for the bytes of its file.

    Returns
    -------
    digests : ndarray of shape (n_images,) and dtype V16, or None
        An item that is not an image, or cannot be read, differs from all others. None where X
        is not a sequence of items but, for instance, a table.
    """
    try:
        items = as_items(X, "image")
    except ValueError:
        return None
    digests = np.empty(len(items), dtype="V16")
    for row, item in enumerate(items):
        try:
            digest = image_digest(item)
        except ItemError:
            digest = hashlib.sha256(f"row {row}".encode()).digest()
        digests[row] = np.void(digest[:16])
    return digests


def image_groups(images: Any) -> np.ndarray:
    """Return the group of every image, for scores of their features: equal content, equal group.

    Parameters
    ----------
    images : sequence of images
        See `image_digests`.

    Returns
    -------
    groups : ndarray of int, shape (n_images,)
        Pass it as ``groups`` where an aligner scores features of these images.
    """
    digests = image_digests(images)
    if digests is None:
        raise ValueError(f"images must be a sequence of images, not {type(images).__name__}.")
    return np.unique(digests, return_inverse=True)[1]
