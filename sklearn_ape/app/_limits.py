"""How much the page takes from its visitors."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds on what visitors of the page may send; more is refused with the reason.

    Parameters
    ----------
    upload_bytes : int, default=64 MiB
        Size of one uploaded file.
    unpacked_bytes : int, default=256 MiB
        Size of all files of a zip together, unpacked.
    ratio : int, default=200
        How many times a packed file of more than 1 MiB may grow when it is unpacked.
    files : int, default=4000
        Entries of a zip.
    images : int, default=2000
        Images of a collection, or of a set to align on.
    pixels : int, default=40,000,000
        Width times height of an image.
    labels : int, default=500
        Names to choose from.
    text_length : int, default=500
        Characters of a name, a sentence or a caption.
    request_bytes : int, default=1 MiB
        Size of a request that is not an upload.
    found : int, default=48
        Images shown for a search.
    waiting : int, default=64
        Requests that wait; further ones are told to come again later.
    at_once : int, default=2
        Requests that are worked on at the same time. Alignments are one at a time.
    sessions : int, default=50
        Visitors whose own aligner and collection are kept; the longest unseen go first. One takes
        up to some 30 MB.
    idle_seconds : int, default=3600
        How long they are kept after their last change, and uploaded files at all.
    stored_bytes : int, default=2 GiB
        Size of all uploaded files together; further ones are told to come again later.

    Examples
    --------
    >>> from sklearn_ape.app import Limits
    >>> Limits(labels=50).labels
    50
    """

    upload_bytes: int = 64 * 2**20
    unpacked_bytes: int = 256 * 2**20
    ratio: int = 200
    files: int = 4_000
    images: int = 2_000
    pixels: int = 40_000_000
    labels: int = 500
    text_length: int = 500
    request_bytes: int = 2**20
    found: int = 48
    waiting: int = 64
    at_once: int = 2
    sessions: int = 50
    idle_seconds: int = 3600
    stored_bytes: int = 2 * 2**30

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"Limits: {field.name} must be an integer >= 1, not {value!r}.")


def in_words(n_bytes: int) -> str:
    """Return a size as people write it.

    >>> in_words(64 * 2**20), in_words(1536)
    ('64 MiB', '1.5 KiB')
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes} bytes"
