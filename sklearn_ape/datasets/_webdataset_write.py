"""Write pairs into tar shards."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from .._sequences import check_sequence
from ._base import require


def write_webdataset(
    images: Iterable[bytes | str | os.PathLike[str]],
    captions: Iterable[str],
    folder: str | os.PathLike[str],
    *,
    pairs_per_shard: int = 1000,
    extension: str | None = None,
) -> list[str]:
    """Write pairs into tar shards as WebDataset reads them.

    Parameters
    ----------
    images : iterable of path-like or bytes
        Files of images, or their content; copied as they are.
    captions : iterable of str
        One an image.
    folder : path-like
        Made when it does not exist; the shards are ``00000.tar`` and so on.
    pairs_per_shard : int, default=1000
        Pairs in a file.
    extension : str, default=None
        Of images given as bytes. None takes that of the format they begin with.

    Returns
    -------
    shards : list of str
        The files written.

    Raises
    ------
    ValueError
        If the sides are not of one length, or bytes are of no known format.
    ImportError
        If webdataset is not installed.

    See Also
    --------
    load_webdataset : Read them.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_ape.datasets import write_webdataset
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = write_webdataset([b"content"] * 3, ["a", "b", "c"], folder,
    ...                               pairs_per_shard=2, extension="jpg")
    >>> [shard[-9:] for shard in shards]
    ['00000.tar', '00001.tar']
    """
    wds = require(
        "webdataset", package="webdataset", extra="distributed", purpose="Writing shards of pairs"
    )
    if pairs_per_shard < 1:
        raise ValueError(f"pairs_per_shard must be at least 1, not {pairs_per_shard!r}.")
    for name, items, kind in (("images", images, "image"), ("captions", captions, "text")):
        if hasattr(items, "__len__") or not hasattr(items, "__iter__"):  # not an iterator
            check_sequence(items, name, kind)
    Path(folder).mkdir(parents=True, exist_ok=True)
    shards: list[str] = []
    pairs = enumerate(zip(images, captions, strict=True))
    while some := list(islice(pairs, pairs_per_shard)):
        shards.append(os.path.join(folder, f"{len(shards):05d}.tar"))
        with wds.TarWriter(shards[-1]) as writer:
            for number, (image, caption) in some:
                name, content = _file_of(image, extension, number)
                sample = {"__key__": f"{number:09d}", name: content, "txt": caption.encode()}
                writer.write(sample)
    return shards


def _file_of(
    image: bytes | str | os.PathLike[str], extension: str | None, number: int
) -> tuple[str, bytes]:
    """Return the extension of an image's file, and its content."""
    if not isinstance(image, bytes):
        return Path(image).suffix.lower().lstrip("."), Path(image).read_bytes()
    return extension or _format_of(image, number), image


def _format_of(content: bytes, number: int) -> str:
    for name, start in (("jpg", b"\xff\xd8\xff"), ("png", b"\x89PNG"), ("webp", b"RIFF")):
        if content.startswith(start):
            return name
    raise ValueError(
        f"Image {number} (the first is 0) begins with {content[:8]!r}, as no jpg, png or webp "
        "does. Pass its path, or extension=..."
    )
