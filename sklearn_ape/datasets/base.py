"""Helper functions of the loaders: data directory, checks, rendering, captions and results."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from joblib import Parallel
from sklearn.utils import Bunch

from ..utils.files import expand_user, get_default_data_home
from ..utils.messages import import_optional, is_invisible, make_progress_bar

# The renderer ends the process if there is too little memory for an image.
_MAX_SIZE = 8192

# Suffixes of text files with the captions of the image next to them.
SIDECARS = (".txt", ".caption")
# Names of tables with the captions of the images in the same folder.
CAPTION_TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "captions.csv")
# Share of the images with a text file from which text files are probably meant as captions.
MIN_SIDECAR_SHARE = 0.1


def get_data_home(data_home: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder in which loaders store images that they render.

    The folder is created by the first loader that writes to it.

    Parameters
    ----------
    data_home : path-like, default=None
        Folder to use. None means the folder in the environment variable ``SKLEARN_APE_DATA`` or,
        if it is not set, the user's cache folder.

    Returns
    -------
    pathlib.Path
        Absolute path of the folder, with ``~`` expanded.

    Examples
    --------
    >>> from sklearn_ape.datasets import get_data_home
    >>> get_data_home("some/folder").parts[-2:]
    ('some', 'folder')
    """
    return expand_user(data_home).absolute() if data_home else get_default_data_home()


def check_folder(path: str | os.PathLike[str], expected: str) -> Path:
    """Return the absolute path of a folder that exists."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"Folder must be a path, not {type(path).__name__}. Pass {expected}.")
    folder = expand_user(path).absolute()
    if not folder.exists():
        raise FileNotFoundError(f"Folder {str(folder)!r} does not exist. Pass {expected}.")
    if not folder.is_dir():
        raise NotADirectoryError(f"{str(folder)!r} is a file. Pass {expected}.")
    return folder


def split_words(name: str) -> str:
    """Split a file name or identifier into words, and remove numbers at its end.

    >>> [split_words(name) for name in ("red_apple-01", "BlueMan#102", "кошка111", "M16")]
    ['red apple', 'Blue Man', 'кошка', 'M16']
    """
    text = re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z])", " ", name)
    text = re.sub(r"[\s_\-]+", " ", text).strip()
    # Remove numbers after a space or after at least three letters, but keep "M16".
    return re.sub(r"((^|\s+|#|(?<=[^\W\d_]{3}))v?\d+(\.\d+)*)+$", "", text).strip(" .#")


def name_folder(folder: str) -> str:
    """Return the name of a folder as a caption or as the name of a class.

    >>> name_folder("coffee_cup")
    'coffee cup'
    """
    return folder.replace("_", " ").strip()


def flatten_single_captions(captions: Sequence[Sequence[str]]) -> list[str] | list[list[str]]:
    """Return a flat list if every image has one caption, and otherwise one list per image."""
    if all(len(texts) == 1 for texts in captions):
        return [texts[0] for texts in captions]
    return [list(texts) for texts in captions]


def read_text(file: Path) -> str:
    """Return the content of a UTF-8 file, with or without a byte order mark."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not UTF-8 text: {error}. Save it as UTF-8.") from error


def find_sidecar(image: Path) -> Path | None:
    """Return the text file next to an image, `photo.txt` or `photo.jpg.txt`, if there is one."""
    stems = (image.with_suffix(""), image)
    ends = [end for suffix in SIDECARS for end in (suffix, suffix.upper())]
    files = (stem.with_name(stem.name + end) for stem in stems for end in ends)
    return next((file for file in files if file.is_file()), None)


def read_sidecar(file: Path) -> list[str]:
    """Return the captions of a text file, one per line."""
    # Not str.splitlines, which also splits at form feeds and U+2028.
    lines = read_text(file).split("\n")
    return [" ".join(line.split()) for line in lines if not is_invisible(line)]


def holds_numbers(file: Path) -> bool:
    """Return whether a text file contains numbers and no words, as annotations of boxes do."""
    text = file.read_text(encoding="utf-8", errors="replace")
    return bool(text.strip()) and not re.search(r"[^\d\s.,;:+eE-]", text)


def write_bytes_atomically(target: Path, content: bytes) -> None:
    """Write a file that is either complete or missing, even if the process is killed."""
    # Not `write_file_atomically`, which waits for the disk: thousands of small files are written.
    temporary = target.with_name(f".{target.stem}-{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Say in errors about a folder of rendered images how to choose another folder."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{str(folder)!r} cannot be written ({error}). Pass another data_home, or set the "
            "environment variable SKLEARN_APE_DATA."
        ) from error


def render_images(
    tasks: Iterable[Any], folder: Path, n_jobs: int | None, purpose: str, **bar_options: Any
) -> None:
    """Run calls, made by `joblib.delayed`, that use `svg_to_png` and write images to a folder."""
    import_optional("resvg_py", extra="starter", purpose=purpose)
    bar = make_progress_bar(**bar_options)
    with explain_write_errors(folder), bar:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in Parallel(n_jobs=n_jobs, return_as="generator_unordered")(tasks):
            bar.update()


def svg_to_png(size: int, name: str, remedy: str, **source: Any) -> bytes:
    """Return a drawing, `svg_path` or `svg_string`, as PNG; an error has its name and a remedy."""
    import resvg_py

    if size > _MAX_SIZE:
        raise ValueError(f"size must be at most {_MAX_SIZE}, not {size}. Pass a smaller size.")
    try:
        return resvg_py.svg_to_bytes(
            **source,
            width=size,
            height=size,
            background="#ffffff",
            skip_system_fonts=True,  # images must not depend on the installed fonts
        )
    except ValueError as error:
        raise ValueError(f"{name} cannot be rendered: {error}. {remedy}") from error


def make_result(bunch: Bunch, return_X_y: bool) -> Any:
    """Return the Bunch, or only its images and captions."""
    if not return_X_y:
        return bunch
    if bunch.captions is None:
        raise ValueError(
            "return_X_y=True requires captions, but these images have none. Pass "
            'captions="folder" or captions="filename" to load_image_folder, a column as caption '
            "to load_pairs, or return_X_y=False to use the labels."
        )
    return bunch.images, bunch.captions
