"""Pairs in tar shards, read one after another."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ._base import listed
from ._shards import count_samples, place_of, samples_of, shard_files


def load_webdataset(
    shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    image_key: str = "jpg;jpeg;png;webp",
    caption_key: str = "txt;caption;json:caption",
) -> WebDatasetPairs:
    """Pair images and captions in WebDataset's tar shards, without reading them into memory.

    Parameters
    ----------
    shards : path-like, or list of path-like
        A folder of ``.tar`` files, a file, a glob (``"data/*.tar"``), a brace pattern
        (``"data/{00000..00099}.tar"``), or a list of these. Local files only.
    image_key : str, default="jpg;jpeg;png;webp"
        Extensions of images in a sample; the first that a sample has is taken.
    caption_key : str, default="txt;caption;json:caption"
        Extensions of captions, likewise. ``json:caption`` is the field ``caption`` of a JSON file.

    Returns
    -------
    pairs : WebDatasetPairs
        Iterable over ``(bytes, caption)``. ``pairs.images()`` and ``pairs.captions()`` are its
        sides, which :meth:`encode_to` of the encoders takes.

    Raises
    ------
    FileNotFoundError
        If a pattern matches no file.
    ValueError
        If a shard is not local, or a key names no extension. On counting or iterating, if a
        shard is cut short or a sample has no image or no caption.
    ImportError
        On iterating, if webdataset is not installed.

    See Also
    --------
    write_webdataset : Make such shards.
    load_pairs : Pairs named by a table.

    References
    ----------
    .. [1] https://github.com/webdataset/webdataset

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_ape.datasets import load_webdataset, write_webdataset
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_webdataset([b"one", b"two"], ["a cat", "a dog"], folder, extension="jpg")
    ...     pairs = load_webdataset(folder)
    ...     len(pairs), list(pairs.captions())
    (2, ['a cat', 'a dog'])
    """
    patterns = [shards] if isinstance(shards, str | os.PathLike) else list(shards)
    files = [file for pattern in patterns for file in shard_files(os.fspath(pattern))]
    if not files:
        raise ValueError("shards is empty: expected at least one file.")
    return WebDatasetPairs(files, _Keys.of("image", image_key), _Keys.of("caption", caption_key))


class _Keys(NamedTuple):
    """Extensions of a side of the pairs, each with the field to take if it is JSON."""

    side: str
    fields: dict[str, str]

    @classmethod
    def of(cls, side: str, keys: str) -> _Keys:
        parts = [part.strip().lstrip(".") for part in str(keys).split(";")]
        fields = {part.partition(":")[0].lower(): part.partition(":")[2] for part in parts if part}
        if not fields:
            raise ValueError(f"{side}_key must name extensions, such as 'jpg;png', not {keys!r}.")
        return cls(side, fields)

    def find(self, extensions: Iterable[str], place: str) -> str:
        """Return the extension to take of those that a sample has."""
        for extension in self.fields:
            if extension in extensions:
                return extension
        raise ValueError(
            f"There is no {self.side} in {place}: expected one of "
            f"{', '.join('.' + extension for extension in self.fields)}. Write the shard anew, "
            f"or name another {self.side}_key."
        )


class ShardBytes(bytes):
    """Bytes of an image's file that know, as `where`, the sample they are from."""

    where: str


class WebDatasetPairs:
    """Pairs of image and caption in tar shards; made by `load_webdataset`.

    Iterating gives ``(bytes, caption)`` and reads the shards anew every time. Before the first
    time, and for the length, the headers are read: they tell whether all samples are pairs.

    Parameters
    ----------
    shards : list of str
        The files, in order.
    image, caption : _Keys
        What to take of a sample.
    """

    def __init__(self, shards: list[str], image: _Keys, caption: _Keys) -> None:
        self.shards = shards
        self._image, self._caption = image, caption
        self._n_samples: int | None = None

    def __len__(self) -> int:
        def check(extensions: set[str], place: str) -> None:
            self._image.find(extensions, place)
            self._caption.find(extensions, place)

        if self._n_samples is None:
            self._n_samples = sum(count_samples(shard, check) for shard in self.shards)
        return self._n_samples

    def __iter__(self) -> Iterator[tuple[bytes, str]]:
        for sample in self._samples():
            yield self._image_in(sample), self._caption_in(sample)

    def __repr__(self) -> str:
        return f"WebDatasetPairs({listed(self.shards, 1)})"

    def images(self) -> WebDatasetSide:
        """Return the images: a sized iterable of bytes of image files."""
        return WebDatasetSide(self, "image")

    def captions(self) -> WebDatasetSide:
        """Return the captions: a sized iterable of str."""
        return WebDatasetSide(self, "caption")

    def _samples(self, keys: _Keys | None = None) -> Iterator[dict[str, Any]]:
        len(self)  # a sample without a side would shift the rows of one side alone
        for shard in self.shards:
            yield from samples_of(shard, None if keys is None else set(keys.fields))

    def _images(self) -> Iterator[ShardBytes]:
        return map(self._image_in, self._samples(self._image))

    def _captions(self) -> Iterator[str]:
        return map(self._caption_in, self._samples(self._caption))

    def _image_in(self, sample: dict[str, Any]) -> ShardBytes:
        place = place_of(sample["__key__"], sample["__url__"])
        content = ShardBytes(sample[self._image.find(sample, place)])
        content.where = place
        return content

    def _caption_in(self, sample: dict[str, Any]) -> str:
        place = place_of(sample["__key__"], sample["__url__"])
        extension = self._caption.find(sample, place)
        field = self._caption.fields[extension]
        try:
            text = sample[extension].decode()
            caption = json.loads(text)[field] if field else text
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"The caption in .{extension}{':' * bool(field)}{field} of {place} cannot be "
                f"read ({reason}). Write the shard anew, or name another caption_key."
            ) from error
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(
                f"The caption of {place} is {caption!r}; expected a text that is not empty. Write "
                "the shard anew, or name another caption_key."
            )
        return " ".join(caption.split())


class WebDatasetSide:
    """Images or captions of `WebDatasetPairs`, sized and read anew at every iteration."""

    def __init__(self, pairs: WebDatasetPairs, side: str) -> None:
        self._pairs, self._side = pairs, side

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[Any]:
        return self._pairs._images() if self._side == "image" else self._pairs._captions()

    def __repr__(self) -> str:
        return f"{self._pairs!r}.{self._side}s()"
