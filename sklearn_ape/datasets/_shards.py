"""Tar shards: which there are, what samples they hold, and what is wrong with them."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from glob import escape, glob
from typing import Any

from ._base import require

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
