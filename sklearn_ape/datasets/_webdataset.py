"""Loader and writer of image-caption pairs in WebDataset tar shards."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from glob import escape, glob
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.files import expand_user, write_folder_atomically
from ..utils.messages import import_optional
from ..utils.validation import check_integer, check_same_length, check_sequence, format_list

# As in webdataset, the key of a sample is the path up to the first dot of the file name. Members
# with names in double underscores are metadata.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")


def find_shards(pattern: str) -> list[str]:
    """Return the local files of a folder, a glob or a brace pattern."""
    if "://" in pattern or pattern.startswith("pipe:"):
        raise ValueError(f"Shard {pattern!r} is not a local file. Download the shards first.")
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        pattern = os.path.join(escape(pattern), "*.tar")
    names = [pattern]
    if "{" in pattern and not os.path.exists(pattern):
        braceexpand = import_optional(
            "braceexpand", package="webdataset", extra="distributed", purpose="A brace pattern"
        )
        names = list(braceexpand.braceexpand(pattern))
    files = []
    for name in names:
        matches = [name] if os.path.exists(name) else sorted(glob(name))
        if not matches:
            raise FileNotFoundError(f"Shard {name!r} does not exist. Check the path.")
        files += matches
    return [os.path.abspath(file) for file in files]


class _Sample(NamedTuple):
    """The files of a sample by extension, and its description for messages."""

    files: dict[str, bytes]
    where: str


def _iter_samples(shard: str, extensions: Collection[str]) -> Iterator[_Sample]:
    """Yield the samples of a shard, with the contents of files with the given extensions only."""
    key = None
    try:
        with tarfile.open(shard) as tar:
            for key, group in groupby(_iter_files(tar, extensions), key=itemgetter(0)):
                files: dict[str, bytes] = {}
                for _, extension, content in group:
                    if extension in files and extension in extensions:
                        raise tarfile.ReadError(f"it has two files with the suffix .{extension}")
                    files[extension] = content
                yield _Sample(files, f"the sample {key!r} of {shard!r}")
    except (tarfile.TarError, EOFError, OSError) as error:
        place = f"after the sample {key!r}" if key else "at its start"
        raise ValueError(
            f"Shard {shard!r} is damaged or cut short {place}: {error}. Write it again, or remove "
            "it."
        ) from error


def _iter_files(tar: Any, extensions: Collection[str]) -> Iterator[tuple[str, str, bytes]]:
    """Yield the key, the extension and the content of each file of a sample.

    Other contents than those with the given extensions are not read, and are empty.
    """
    while (member := tar.next()) is not None:
        tar.members = []  # bounds memory; tarfile keeps all
        name = _NAME.fullmatch(member.name)
        if member.isreg() and name is not None and not _META.match(member.name):
            key, extension = name[1], name[2].lower()
            content = tar.extractfile(member).read() if extension in extensions else b""
            yield key, extension, content
    # tarfile treats an unreadable header as the end, but the end is a block of zeros.
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("no end of the archive")


def load_webdataset(
    shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    image_key: str = "jpg;jpeg;png;webp",
    caption_key: str = "txt;caption;json:caption",
) -> WebDatasetPairs:
    """Load images and captions of WebDataset tar shards, without reading them into memory.

    Parameters
    ----------
    shards : path-like, or list of path-like
        Local files in the format of WebDataset [1]_: a folder of ``.tar`` files, a file, a glob
        (``"data/*.tar"``), a brace pattern (``"data/{00000..00099}.tar"``), or a list of these.
    image_key : str, default="jpg;jpeg;png;webp"
        Extensions of image files. The first one that a sample has is used.
    caption_key : str, default="txt;caption;json:caption"
        Extensions of caption files. The first one that a sample has is used. ``json:caption``
        means the field ``caption`` of a JSON file.

    Returns
    -------
    pairs : WebDatasetPairs
        Iterable over ``(bytes, caption)``. ``pairs.images()`` and ``pairs.captions()`` can be
        passed to :meth:`encode_to` of an encoder.

    Raises
    ------
    FileNotFoundError
        If a pattern matches no file.
    ValueError
        If a shard is not local, or a key has no extension. During counting or iteration, if a
        shard is damaged, or a sample has no image or no caption.
    ImportError
        If a shard is given by a brace pattern, and webdataset is not installed.

    See Also
    --------
    write_webdataset : Write shards.
    load_pairs : Load images and captions that are listed in a table.

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
    files = [file for pattern in patterns for file in find_shards(os.fspath(pattern))]
    if not files:
        raise ValueError("shards is empty. Pass at least one file.")
    return WebDatasetPairs(
        files, _Keys.parse("image", image_key), _Keys.parse("caption", caption_key)
    )


class _Keys(NamedTuple):
    """Extensions of images or captions, each with a field for JSON files."""

    side: str
    fields: dict[str, str]

    @classmethod
    def parse(cls, side: str, keys: str) -> _Keys:
        parts = [part.strip().lstrip(".").partition(":") for part in str(keys).split(";")]
        parts = [part for part in parts if any(part)]
        fields = {extension.lower(): field for extension, _, field in parts}
        if not fields:
            raise ValueError(f"{side}_key must be extensions such as 'jpg;png', not {keys!r}.")
        if len(fields) < len(parts):
            raise ValueError(f"{side}_key={keys!r} repeats an extension. Pass each one once.")
        return cls(side, fields)

    def find(self, sample: _Sample) -> str:
        """Return the first key among the extensions of a sample."""
        for extension in self.fields:
            if extension in sample.files:
                return extension
        raise ValueError(
            f"{self.side}_key is {';'.join(self.fields)!r}, but there is no file with such an "
            f"extension in {sample.where}. Write the shard again, or pass another {self.side}_key."
        )


class ShardBytes(bytes):
    """Bytes of an image file, with the description of their sample as `where`."""

    where: str


class WebDatasetPairs:
    """Pairs of images and captions in tar shards, as returned by `load_webdataset`.

    Iteration yields ``(bytes, caption)`` and reads the shards each time. ``len`` and the first
    iteration read the headers of all shards, to check that all samples are pairs.
    """

    def __init__(self, shards: list[str], image: _Keys, caption: _Keys) -> None:
        self.shards = shards
        self._image, self._caption = image, caption
        self._n_samples: int | None = None

    def __len__(self) -> int:
        if self._n_samples is None:
            self._n_samples = sum(map(self._count_samples, self.shards))
        return self._n_samples

    def __iter__(self) -> Iterator[tuple[bytes, str]]:
        for sample in self._iter_samples({*self._image.fields, *self._caption.fields}):
            yield self._read_image(sample), self._read_caption(sample)

    def __repr__(self) -> str:
        return f"WebDatasetPairs({len(self.shards)} shards, {self.shards[0]!r} first)"

    def images(self) -> WebDatasetSide:
        """Return the images as a sized iterable of bytes of image files."""
        return WebDatasetSide(self, self._image, self._read_image)

    def captions(self) -> WebDatasetSide:
        """Return the captions as a sized iterable of str."""
        return WebDatasetSide(self, self._caption, self._read_caption)

    def _count_samples(self, shard: str) -> int:
        """Count the samples in the headers of a shard; raise ValueError unless all are pairs."""
        n_samples = 0
        for sample in _iter_samples(shard, ()):
            for keys in (self._image, self._caption):
                keys.find(sample)
            n_samples += 1
        if not n_samples:
            raise ValueError(f"Shard {shard!r} has no samples. Remove it.")
        return n_samples

    def _iter_samples(self, extensions: set[str]) -> Iterator[_Sample]:
        # Check that all samples are pairs: otherwise the rows of images and captions would differ.
        len(self)
        for shard in self.shards:
            yield from _iter_samples(shard, extensions)

    def _read_image(self, sample: _Sample) -> ShardBytes:
        content = ShardBytes(sample.files[self._image.find(sample)])
        content.where = sample.where
        return content

    def _read_caption(self, sample: _Sample) -> str:
        extension = self._caption.find(sample)
        field = self._caption.fields[extension]
        try:
            text = sample.files[extension].decode("utf-8-sig")
            caption = json.loads(text)[field] if field else text
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"The caption in .{extension}{':' * bool(field)}{field} of {sample.where} cannot "
                f"be read ({reason}). Write the shard again, or pass another caption_key."
            ) from error
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(
                f"The caption of {sample.where} is {caption!r}, not a text with words. Write the "
                "shard again, or pass another caption_key."
            )
        return " ".join(caption.split())


class WebDatasetSide:
    """Sized iterable over images or captions of shards, which are read at each iteration."""

    def __init__(
        self, pairs: WebDatasetPairs, keys: _Keys, read: Callable[[_Sample], Any]
    ) -> None:
        self._pairs, self._keys, self._read = pairs, keys, read

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[Any]:
        return map(self._read, self._pairs._iter_samples(set(self._keys.fields)))

    def __repr__(self) -> str:
        return f"{self._pairs!r}.{self._keys.side}s()"


def write_webdataset(
    images: Iterable[bytes | str | os.PathLike[str]],
    captions: Iterable[str],
    folder: str | os.PathLike[str],
    *,
    pairs_per_shard: int = 1000,
    extension: str | None = None,
) -> list[str]:
    """Write pairs of images and captions into WebDataset tar shards.

    The shards appear in the folder when all of them are written, so that none remain after an
    error.

    Parameters
    ----------
    images : iterable of path-like or bytes
        Paths or contents of image files, which are copied without conversion.
    captions : iterable of str
        Captions, one per image.
    folder : path-like
        Folder of the shards ``00000.tar`` and so on, without other shards. It is created if it
        does not exist.
    pairs_per_shard : int, default=1000
        Number of pairs per shard.
    extension : str or None, default=None
        Extension of images that are bytes. None detects the formats jpg, png and webp.

    Returns
    -------
    shards : list of str
        Paths of the shards.

    Raises
    ------
    ValueError
        If images and captions differ in length, or the format of an image is not detected.
    TypeError
        If a caption is not a text, or an image neither bytes nor a path.
    FileExistsError
        If the folder contains shards.
    ImportError
        If webdataset is not installed.

    See Also
    --------
    load_webdataset : Load shards.

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
    wds = import_optional("webdataset", extra="distributed", purpose="Writing shards of pairs")
    check_integer(pairs_per_shard, "pairs_per_shard", 1)
    for name, items, kind in (("images", images, "image"), ("captions", captions, "text")):
        if hasattr(items, "__len__") or not hasattr(items, "__iter__"):  # not a generator
            check_sequence(items, name, kind)
    if hasattr(images, "__len__") and hasattr(captions, "__len__"):
        check_same_length(images=images, captions=captions)
    folder = expand_user(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if existing := sorted(path.name for path in folder.glob("*.tar")):
        raise FileExistsError(
            f"{str(folder)!r} contains shards ({format_list(existing, str)}), which would be "
            "mixed with the new ones. Pass another folder, or delete them."
        )
    names: list[str] = []
    pairs = enumerate(zip(images, captions, strict=True))
    with write_folder_atomically(folder / "00000.tar") as temporary:
        while chunk := list(islice(pairs, pairs_per_shard)):
            names.append(f"{len(names):05d}.tar")
            with wds.TarWriter(str(temporary / names[-1])) as writer:
                for number, (image, caption) in chunk:
                    writer.write(_make_sample(number, image, caption, extension))
        for name in names:
            os.replace(temporary / name, folder / name)
    return [str(folder / name) for name in names]


def _make_sample(number: int, image: Any, caption: Any, extension: str | None) -> dict[str, Any]:
    name, content = _read_image(image, number, extension)
    if not isinstance(caption, str):
        raise TypeError(f"Caption {number} (the first is 0) is not a str: {caption!r}.")
    if not caption.strip():  # the loader rejects it
        raise ValueError(
            f"Caption {number} (the first is 0) is {caption!r}. Pass a text with words."
        )
    return {"__key__": f"{number:09d}", name: content, "txt": caption.encode()}


def _read_image(
    image: bytes | str | os.PathLike[str], number: int, extension: str | None
) -> tuple[str, bytes]:
    """Return the extension and the content of an image."""
    if isinstance(image, bytes):
        name, content = (extension or "").lower(), image
    elif isinstance(image, str | os.PathLike):
        name, content = Path(image).suffix.lower(), Path(image).read_bytes()
    else:
        raise TypeError(
            f"Image {number} (the first is 0) is of type {type(image).__name__}. Pass its path, "
            "or the bytes of an image file."
        )
    return name.lstrip(".") or _detect_format(content, number), content


def _detect_format(content: bytes, number: int) -> str:
    for name, start in (("jpg", b"\xff\xd8\xff"), ("png", b"\x89PNG")):
        if content.startswith(start):
            return name
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":  # sounds and videos are RIFF, too
        return "webp"
    raise ValueError(
        f"Image {number} (the first is 0) is not jpg, png or webp: it starts with "
        f"{content[:8]!r}. Pass its path or extension=..."
    )
