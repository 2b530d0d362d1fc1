"""Pairs in tar shards of the webdataset format."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from glob import escape, glob
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.validation import check_sequence
from .base import listed, require

# As webdataset has it: the key of a sample is all before the first dot of the name, folders
# included; names in double underscores are no samples.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")


_META = re.compile(r"__[^/]*__($|/)")


# What tarfile, webdataset and decompression raise on damage.
_FAILURES = (tarfile.TarError, EOFError, OSError, ValueError, AttributeError)


def shard_files(pattern: str) -> list[str]:
    """List the local files that a folder, a glob or a brace pattern names."""
    if "://" in pattern or pattern.startswith("pipe:"):
        raise ValueError(f"{pattern!r} is not a local file. Download the shards first.")
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        pattern = os.path.join(escape(pattern), "*.tar")
    names = [pattern]
    if "{" in pattern and not os.path.exists(pattern):
        braceexpand = require(
            "braceexpand", package="webdataset", extra="distributed", purpose="A brace pattern"
        )
        names = list(braceexpand.braceexpand(pattern))
    files = []
    for name in names:
        found = [name] if os.path.exists(name) else sorted(glob(name))
        if not found:
            raise FileNotFoundError(f"There is no shard {name!r}.")
        files += found
    return [os.path.abspath(file) for file in files]


def place_of(key: str, shard: str) -> str:
    """Name a sample in messages."""
    return f"the sample {key!r} of {shard!r}"


def count_samples(shard: str, check: Callable[[set[str], str], None]) -> int:
    """Count samples from the headers of a shard, calling `check(extensions, place)` on each."""
    samples = 0
    key: str | None = None
    extensions: set[str] = set()
    try:
        with tarfile.open(shard) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                name = _NAME.fullmatch(member.name)
                if not member.isreg() or name is None or _META.match(member.name):
                    continue
                if name[1] != key:
                    if key is not None:
                        check(extensions, place_of(key, shard))
                    samples, key, extensions = samples + 1, name[1], set()
                extensions.add(name[2].lower())
            # Python takes a header that it cannot read for the end, which is a block of zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("no end of the archive")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _damaged(shard, key, error) from error
    if key is None:
        raise ValueError(f"The shard {shard!r} holds no sample. Remove it.")
    check(extensions, place_of(key, shard))
    return samples


def samples_of(shard: str, extensions: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield samples as webdataset does, reading only some extensions of each, or all."""
    wds = require(
        "webdataset", package="webdataset", extra="distributed", purpose="Reading tar shards"
    )

    def is_wanted(name: str) -> bool:
        parts = _NAME.fullmatch(name)
        return parts is not None and (extensions is None or parts[2].lower() in extensions)

    samples = iter(
        wds.DataPipeline(
            wds.SimpleShardList([shard]), wds.tarfile_to_samples(select_files=is_wanted)
        )
    )
    key = None
    while True:
        try:
            sample = next(samples, None)
        except _FAILURES as error:
            raise _damaged(shard, key, error) from error
        if sample is None:
            return
        key = sample["__key__"]
        yield sample


def _damaged(shard: str, key: str | None, error: Exception) -> ValueError:
    where = f"after the sample {key!r}" if key else "at its start"
    reason = error.args[0] if error.args else type(error).__name__
    return ValueError(
        f"The shard {shard!r} is damaged or cut short {where}: {reason}. Write it anew, or leave "
        "it out."
    )


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
