"""Folders for what visitors send."""

from __future__ import annotations

import tempfile


def temporary_folder(purpose: str) -> tempfile.TemporaryDirectory[str]:
    """Return a folder that nobody else can read; it goes after use, at the latest at the end."""
    return tempfile.TemporaryDirectory(prefix=f"sklearn-ape-{purpose}")
