"""The command ``sklearn-ape encode``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.files import expand_user
from . import _inputs as option
from ._inputs import list_images
from ._output import (
    FileName,
    Table,
    check_output_file,
    note_on_interrupt,
    print_loading,
    print_message,
)

# Images per chunk: at most this many images are encoded again after an interruption.
_CHUNK = 512


def encode(
    images: option.OptionalImages = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Feature file, with the suffix .npy.")
    ] = Path("features.npy"),
    encoder: option.ImageEncoder = option.DEFAULT_IMAGE_ENCODER,
    pooling: Annotated[
        str | None,
        typer.Option(
            help="Pooling of the image encoder: auto, mean, gem, cls or cls+mean. Default: "
            "depends on the encoder."
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Text file to encode, one text per line. If there are images, too, the "
            "features of the texts are written to NAME.texts.npy."
        ),
    ] = None,
    text_encoder: option.TextEncoder = option.DEFAULT_TEXT_ENCODER,
    dtype: Annotated[
        str, typer.Option(help="Data type of the features: float32, or float16 for half the size.")
    ] = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file with features of other images.")
    ] = False,
    device: option.Device = "auto",
    n_jobs: option.NJobs = -1,
    quiet: option.Quiet = False,
) -> None:
    """Encode images as features in a NumPy file.

    NAME.csv lists the image of each row and the unreadable images.
    An interrupted run resumes when it is started again.

    Example: sklearn-ape encode photos/ -o features.npy
    """
    if not images and texts is None:
        raise typer.BadParameter("Nothing to encode. Pass images, or set --texts captions.txt.")
    if texts is not None and texts.suffix.lower() in option.TABLE_SUFFIXES:
        raise typer.BadParameter(
            f"{str(texts)!r} is a table, whose lines are not texts. Write one text per line in a "
            ".txt file.",
            param_hint="--texts",
        )
    if output.suffix.lower() != ".npy":
        raise typer.BadParameter(
            f"{str(output)!r} does not have the suffix .npy.", param_hint="--output"
        )
    output = expand_user(output)
    paths = list_images(images, quiet) if images else []
    lines = [] if texts is None else _read_texts(texts)
    check_output_file(output)

    print_loading(quiet)
    from ._models import RuntimeOptions, make_image_encoder, make_text_encoder

    options = RuntimeOptions("memory", device, n_jobs, quiet)
    if paths:
        image_encoder = make_image_encoder(encoder, options, pooling=pooling)
        _encode_to_file(image_encoder, paths, "path", output, dtype, overwrite, quiet)
    if lines:
        target = output.with_suffix(".texts.npy") if paths else output
        line_encoder = make_text_encoder(text_encoder, options)
        _encode_to_file(line_encoder, lines, "text", target, dtype, overwrite, quiet)


def _read_texts(file: Path) -> list[str]:
    """Return the lines of a text file that are not blank; print how many others it has."""
    from ..datasets.base import read_text

    text = read_text(expand_user(file)).rstrip()  # blank lines at the end do not matter
    # str.splitlines would also split at form feeds and U+2028.
    lines = [line.strip() for line in text.split("\n")]
    texts = [line for line in lines if line]
    if not texts:
        raise ValueError(f"{str(file)!r} contains no text. Write one text per line.")
    if n_blank := len(lines) - len(texts):
        noun = "blank line" if n_blank == 1 else "blank lines"
        print_message(
            f"Skipped {n_blank:,} {noun} of {str(file)!r}, so the numbers of rows differ from "
            "those of lines."
        )
    return texts


def _encode_to_file(
    encoder: Any,
    items: list[str],
    kind: str,
    output: Path,
    dtype: str,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Write the features of items to a file, and the list of its rows to a csv file."""
    from ..features import OtherContentError
    from ._models import ignore_unreadable, report_unreadable

    encoder.set_params(cache=None)  # the feature file itself can be resumed
    n_bytes = len(items) * encoder._n_features_out * (4 if dtype == "float32" else 2)
    if not output.exists():
        check_output_file(output, n_bytes)
    listing, columns = output.with_suffix(".csv"), ["row", kind, "error"]
    if not overwrite:
        _check_listing(listing, columns)
    note = f"Finished features are in {f'{output}.partial'!r}. Run the command again to resume."
    with note_on_interrupt(note), ignore_unreadable():
        try:
            features = encoder.encode_to(
                output, items, chunk_size=_CHUNK, dtype=dtype, overwrite=overwrite
            )
        except OtherContentError as error:
            raise FileExistsError(
                f"{error.problem} Give --overwrite to replace it, or choose another --output."
            ) from error
    errors = encoder.errors_
    with Table(columns, listing) as table:
        for row, item in enumerate(items):
            table.write([row, FileName(item) if kind == "path" else item, errors.get(row)])
    report_unreadable(errors, len(items))
    n_rows, n_features = features.shape
    print_message(
        f"Wrote {n_rows:,} x {n_features:,} features to {str(output)!r} and the list of the rows "
        f"to {str(listing)!r}.",
        quiet,
    )
    if len(errors) == len(items):
        raise typer.Exit(1)


def _check_listing(listing: Path, columns: list[str]) -> None:
    """Raise FileExistsError if a file exists that an earlier run did not write."""
    if not listing.exists():
        return
    with listing.open("rb") as file:
        header = file.readline().strip()
    if header != ",".join(columns).encode():
        raise FileExistsError(
            f"{str(listing)!r} exists and is not a list of {columns[1]}s that 'sklearn-ape "
            "encode' wrote. Give --overwrite to replace it, or choose another --output."
        )
