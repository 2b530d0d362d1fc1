"""Options that the commands share, and the inputs that they name."""

from __future__ import annotations

import codecs
import csv
import glob
import io
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..utils.files import IMAGE_SUFFIXES, describe_conversion, expand_user
from ._output import print_message

_IMAGES: Any = typer.Argument(
    help="Images, folders, patterns such as '*.jpg', or - for a list on standard input."
)
Images = Annotated[list[str], _IMAGES]
OptionalImages = Annotated[list[str] | None, _IMAGES]
Data = Annotated[
    Path,
    typer.Argument(
        help="Folder (captions in photo.txt next to photo.jpg, labels as subfolders) or table."
    ),
]
ImageColumn = Annotated[str, typer.Option("--image", help="Column of a table: images.")]
CaptionColumn = Annotated[str, typer.Option("--caption", help="Column of a table: captions.")]
LabelColumn = Annotated[str | None, typer.Option("--label", help="Column of a table: labels.")]
Captions = Annotated[
    Literal["auto", "sidecar", "table", "folder", "filename", "none"],
    typer.Option(
        metavar="SOURCE",
        case_sensitive=False,
        help="Captions of a folder: sidecar (photo.txt), table, folder, filename, auto or none.",
    ),
]
Aligner = Annotated[
    str | None,
    typer.Option(
        "--aligner",
        "--model",
        help="Folder written by 'fit', owner/name on the Hub, or open_clip:MODEL/WEIGHTS. "
        "Default: the starter model.",
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        help="Label names, separated by commas. Quote a name with a comma: 'cat,\"salt, "
        "pepper\"'. Can be repeated."
    ),
]
LabelsFile = Annotated[
    Path | None,
    typer.Option(
        help='One name per line (.txt) or .json: {"vehicle": ["car", "bus"]}, or groups: '
        '{"animal": {"bird": null}}.'
    ),
]


def _check_templates(templates: str) -> str:
    """Raise ValueError for invalid templates, before images are encoded."""
    from ..prompts import resolve_templates

    resolve_templates(templates)
    return templates


Templates = Annotated[
    str,
    typer.Option(
        help="Prompt templates: none, simple, photo, clip, drawing or 'a map of {}'.",
        callback=_check_templates,
    ),
]
DEFAULT_TEMPLATES = "simple"
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="File (.csv, .tsv, .json, .jsonl, .parquet). Default: standard output.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="csv, tsv, json, jsonl, parquet or table. Default: by file suffix; table on a "
        "terminal; else csv.",
    ),
]
# Format of results that always go to standard output.
PrintedFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="csv, tsv, json, jsonl, parquet or table. Default: table on a terminal; else csv.",
    ),
]
ImageEncoder = Annotated[
    str,
    typer.Option(
        help="Name listed by 'sklearn-ape models', timm model, transformers:NAME or "
        "open_clip:NAME/WEIGHTS."
    ),
]
TextEncoder = Annotated[str, typer.Option(help="Text encoder, named like an image encoder.")]
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".xlsx", ".jsonl")
DEFAULT_IMAGE_ENCODER, DEFAULT_TEXT_ENCODER = "efficientnet_lite0", "all-MiniLM-L6-v2"
Cache = Annotated[
    str | None,
    typer.Option(help="Feature cache folder (default: your user cache), or 'memory'."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
NJobs = Annotated[int, typer.Option("--n-jobs", help="Threads to read images; -1: all cores.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors only.")
]
RandomState = Annotated[int, typer.Option(help="Random seed.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at unreadable images instead of skipping them.")
]


def check_replaces_no_input(output: Path | None, *inputs: Path | str | None) -> None:
    """Raise an error if an output file is an input of the command, or the captions of a folder."""
    if output is None or not expand_user(output).is_file():
        return
    from ..datasets.base import CAPTION_TABLES

    path = expand_user(output).resolve()
    for source in (expand_user(source).resolve() for source in inputs if source is not None):
        if path == source or (path.parent == source and path.name in CAPTION_TABLES):
            raise typer.BadParameter(
                f"{str(output)!r} is an input, which the output would replace. Choose another "
                "name."
            )


def list_images(arguments: Iterable[str], quiet: bool = False) -> list[str]:
    """Return the paths of the images that the arguments name, in order and without duplicates.

    The contents of a folder and the matches of a pattern are sorted. Other files are skipped, and
    counted in a message unless `quiet`.
    """
    skipped: Counter[str] = Counter()
    listed = list(_iter_images(arguments, skipped))
    paths: dict[str, str] = {}
    for path in listed:  # "photos" and "./photos" are the same folder
        paths.setdefault(make_absolute(path), path)
    _report_skipped(skipped, quiet)
    if len(paths) < len(listed):
        n_repeated = len(listed) - len(paths)
        print_message(f"Repeated paths are listed once ({n_repeated:,} left out).", quiet)
    if not paths:
        raise ValueError("IMAGES contains no images. Pass images, or folders that contain images.")
    return list(paths.values())


def make_absolute(path: str) -> str:
    """Return the absolute path of a file, without "." and ".."."""
    absolute = os.path.abspath(path)
    # After a link to a folder, ".." is the parent of its target. There is no link before "../..".
    if ".." in path.lstrip("./"):
        real_path = os.path.realpath(path)
        return absolute if real_path == os.path.realpath(absolute) else real_path
    return absolute


def _report_skipped(skipped: Counter[str], quiet: bool) -> None:
    if skipped:
        from ..utils.validation import format_list

        n = skipped.total()
        subject = "1 file" if n == 1 else f"{n:,} files"
        suffixes = [f"{count:,} {suffix!r}" for suffix, count in skipped.most_common()]
        hint = describe_conversion(skipped)
        listed = format_list(suffixes, str)
        print_message(f"Skipped {subject} of other formats ({listed}).{hint}", quiet)


def _iter_images(arguments: Iterable[str], skipped: Counter[str]) -> Iterator[str]:
    for argument in arguments:
        if argument == "-":
            for line in _read_stdin_names():
                # A missing file of a long list is reported later, as an unreadable image.
                yield from _expand_path(line, skipped) if os.path.lexists(line) else (line,)
        elif os.path.lexists(argument):
            yield from _expand_path(argument, skipped)
        else:
            paths = sorted(glob.glob(os.path.expanduser(argument), recursive=True))
            if not paths:
                raise FileNotFoundError(_describe_missing(argument))
            for path in paths:
                yield from _expand_path(path, skipped)


def _describe_missing(argument: str) -> str:
    if "://" in argument:
        return f"{argument!r} is a URL, not a file. Download the image first."
    if glob.has_magic(argument):
        return f"{argument!r} matches no files. Check the pattern."
    return f"{argument!r} does not exist. Pass a file, a folder or a pattern."


def _expand_path(path: str, skipped: Counter[str]) -> Iterable[str]:
    if not os.path.isdir(path):
        if _may_be_image(path):
            return (path,)
        skipped[os.path.splitext(path)[1].lower()] += 1
        return ()
    from ..datasets import load_image_folder
    from ..datasets.base import SIDECARS, find_sidecar

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There are no labels")  # none are needed
        data = load_image_folder(path, captions=None)
    others = Counter(data.other_files)
    if not others.keys().isdisjoint(SIDECARS):
        # Captions next to their images are expected, so they are not reported. Two images whose
        # names differ only in the suffix share a caption.
        captions = {find_sidecar(Path(image)) for image in data.images}
        others.subtract(file.suffix.lower() for file in captions if file is not None)
    skipped.update(+others)  # the counts above 0
    # The loader returns absolute paths. Results are easier to read with the path of the argument.
    root = expand_user(path).absolute()
    return [os.path.join(path, os.path.relpath(image, root)) for image in data.images]


def _may_be_image(path: str) -> bool:
    """Return whether a file is an image by its suffix or content, even if it is damaged."""
    if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES or not os.path.isfile(path):
        return True
    from PIL import Image

    try:
        Image.open(path).close()
    except Exception:  # plugins of Pillow raise any exception
        return False
    return True


def _read_stdin_names() -> list[str]:
    content = b"" if sys.stdin is None else sys.stdin.buffer.read()  # None if it was closed
    content = content.removeprefix(codecs.BOM_UTF8)  # which Windows writes
    # find -print0 separates names by zero bytes, since names may contain line feeds.
    names = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(name) for name in names if name.strip()]


def parse_labels(
    labels: Sequence[str] | None, labels_file: Path | None, required: bool = False, least: int = 2
) -> Any:
    """Return at least `least` names of --labels or --labels-file; None if neither is set."""
    if labels and labels_file is not None:
        raise typer.BadParameter("--labels and --labels-file are both set. Use one of them.")
    if labels:
        names: Any = [name for part in labels for name in _split_labels(part)]
        if len(names) == 1 and Path(names[0]).suffix.lower() in (".txt", ".json", *TABLE_SUFFIXES):
            raise typer.BadParameter(
                f"{names[0]!r} is the name of a file, not a label. Pass it to --labels-file.",
                param_hint="--labels",
            )
    elif labels_file is not None:
        names = _read_labels(labels_file)
    elif required:
        raise typer.BadParameter("No labels. Set --labels 'cat,dog' or --labels-file labels.txt.")
    else:
        return None
    if not names:
        source = "--labels" if labels else repr(str(labels_file))
        raise typer.BadParameter(f"{source} contains no names. Pass at least {least}.")
    from ..prompts import resolve_class_names

    if len(resolve_class_names(names)) < least:
        raise _make_single_label_error(next(iter(names)), labels_file)
    return names


def _make_single_label_error(name: str, labels_file: Path | None) -> typer.BadParameter:
    """Return the error about the only name of --labels, or of --labels-file if it is set."""
    if labels_file is None:
        return typer.BadParameter(
            f"{name!r} is the only label, so every image would be classified as it. Pass at least "
            "two labels, separated by commas and in quotes, for instance --labels "
            "'a cat,something else'."
        )
    form = "" if labels_file.suffix.lower() == ".json" else ", one per line"
    return typer.BadParameter(
        f"{str(labels_file)!r} has only one name, {name!r}. Write at least two names into the "
        f"file{form}.",
        param_hint="--labels-file",
    )


def resolve_label_names(
    names: Any, y: Iterable[Any], allow_groups: bool = False, is_model: bool = False
) -> Any:
    """Return `names`, which must contain the labels `y` of images, or names made of the labels.

    With `allow_groups`, images may be labelled by the groups of a hierarchy. With `is_model`, the
    names are those of a saved classifier, and not of --labels.
    """
    from ..prompts import describe_similar_label, flatten_labels, is_hierarchy
    from ..utils.validation import format_list

    classes = sorted(set(map(str, y)))
    if names is None:
        return _make_label_names(classes)
    leaves, nodes = flatten_labels(names) if is_hierarchy(names) else (names, names)
    label_names = list(map(str, nodes))
    if missing := [label for label in classes if label not in label_names]:
        if is_model:
            source, to_correct = "The model", "the labels of the images"
            hint = (
                "Leave out their images, or set --labels with all labels of the images to "
                "classify by the names alone."
            )
        else:
            source, to_correct = "--labels", "--labels or the labels of the images"
            hint = (
                "Add them, or leave out --labels to use the labels as names. To describe labels "
                "by other texts, pass --labels-file labels.json with "
                f'{{"{missing[0]}": ["a name", "another name"]}}.'
            )
        hint = describe_similar_label(missing[0], label_names, to_correct) or hint
        raise ValueError(
            f"{source} does not contain these labels of the images: {format_list(missing)}. {hint}"
        )
    if not allow_groups and (groups := [x for x in classes if x not in set(map(str, leaves))]):
        raise ValueError(
            f"Images have the labels {format_list(groups)}, which are groups of the hierarchy of "
            f"--labels-file. Label them by the innermost classes: {format_list(map(str, leaves))}."
        )
    return names


def _make_label_names(classes: Sequence[str]) -> dict[str, str]:
    """Return the names of classes, made of the labels; warn if these are numbers."""
    from ..datasets.base import name_folder
    from ..utils.messages import warn
    from ..utils.validation import format_list

    if len(classes) < 2:
        raise ValueError(
            f"All images have the label {classes[0]!r}. If this is a folder with a subfolder "
            "per label, pass it. Otherwise add images of other classes, or set --labels with "
            "the names of other classes."
        )
    if all(map(_is_number, classes)):
        warn(
            f"The labels of the images are numbers, {format_list(classes)}, which are "
            "embedded as names of the classes. Set names by a .json file for --labels-file: "
            f'{{"{classes[0]}": ["a name"], ...}}.'
        )
    return {label: name_folder(label) for label in classes}


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _split_labels(labels: str) -> list[str]:
    lines = csv.reader(io.StringIO(labels, newline=""), skipinitialspace=True)
    names = [name.strip() for line in lines for name in line if name.strip()]
    if names and names[0].startswith("[") and names[-1].endswith("]"):
        raise typer.BadParameter(
            f"is a list of Python or JSON, {labels!r}. Separate the names by commas, without "
            "brackets and quotes: 'cat,dog'.",
            param_hint="--labels",
        )
    return names


def _read_labels(file: Path) -> Any:
    suffix = file.suffix.lower()
    if suffix in (*TABLE_SUFFIXES, ".yaml", ".yml"):
        raise typer.BadParameter(
            f"{str(file)!r} is a {suffix} file. Write one name per line in a .txt file, or a "
            ".json file.",
            param_hint="--labels-file",
        )
    from ..datasets.base import read_text
    from ..utils.validation import parse_json

    text = read_text(expand_user(file))
    if suffix != ".json":
        lines = [line.strip().rstrip(",;").strip() for line in text.split("\n")]
        return [line for line in lines if line and not line.startswith("# ")]
    names = parse_json(text, repr(str(file)))
    if not isinstance(names, list | dict):
        raise ValueError(
            f"{str(file)!r} contains a {type(names).__name__}, not a list or an object. Write a "
            'list of names, ["cat", "dog"], or names with synonyms, {"vehicle": ["car", "bus"]}.'
        )
    return names


def load_data(
    data: Path, captions: str = "auto", strict: bool = False, quiet: bool = False, **columns: Any
) -> Any:
    """Load a folder or a table of pairs as a Bunch with images, captions and optional labels.

    An option that has no effect with the kind of the data is an error.
    """
    path = expand_user(data)
    if path.is_file():
        return _load_table(data, captions, strict, columns)
    if not path.exists():
        if str(data).startswith(("http:", "https:")):
            url = data.as_posix().replace(":/", "://", 1)  # Path leaves out one of the slashes
            raise FileNotFoundError(
                f"{url!r} is a URL, not a file. Download the images or the table first."
            )
        raise FileNotFoundError(f"{str(data)!r} does not exist. Pass a folder or a table.")
    for name, column in columns.items():
        if column not in (name, None):
            raise typer.BadParameter(
                f"{column!r} is a column of a table, and {str(data)!r} is a folder. Remove "
                f"--{name}, or pass the table.",
                param_hint=f"--{name}",
            )
    from ..datasets import load_image_folder
    from ..datasets.base import SIDECARS

    source: Any = None if captions == "none" else captions
    bunch = load_image_folder(path, captions=source)
    others = Counter(bunch.other_files)
    if bunch.captions is not None and captions not in ("folder", "filename"):
        for suffix in (*SIDECARS, *TABLE_SUFFIXES):  # the captions
            others.pop(suffix, None)
    _report_skipped(others, quiet)
    return bunch


def _load_table(data: Path, captions: str, strict: bool, columns: dict[str, Any]) -> Any:
    """Load a table of pairs; the options are those of `load_data`."""
    from ..datasets import load_pairs
    from ..datasets.table import check_images_exist

    if captions == "none" and columns.get("caption", "caption") == "caption":
        columns = columns | {"caption": None}
    elif captions != "auto":
        raise typer.BadParameter(
            f"{captions!r} is a source of captions in a folder, and {str(data)!r} is a table. "
            "Remove --captions, and set --caption to the column of captions.",
            param_hint="--captions",
        )
    path = expand_user(data)
    try:
        bunch = load_pairs(path, check_files=strict, **columns)
        if all(isinstance(image, str) and not os.path.isfile(image) for image in bunch.images):
            # The error for missing files says where relative paths start.
            file = path.absolute()
            check_images_exist(bunch.images, file.parent, repr(str(file)))
    except TypeError as error:  # a cell of the table is not an image
        raise ValueError(str(error)) from error
    return bunch
