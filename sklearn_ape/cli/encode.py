"""``sklearn-ape encode``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._console import noted_when_interrupted, say
from ._inputs import list_images, read_lines
from ._options import Device, NJobs, Quiet
from ._output import FileName, Table, check_file

_CHUNK = 512  # images that are lost together when a run is killed


def encode(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, folders of them (sub-folders too), patterns such as '*.jpg', or - "
            "for a list on standard input.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="File of the features; its name ends in .npy."),
    ] = Path("features.npy"),
    encoder: Annotated[
        str,
        typer.Option(
            help="A name of 'sklearn-ape models', or of timm; transformers:NAME and "
            "open_clip:NAME/WEIGHTS for those of these libraries."
        ),
    ] = "efficientnet_lite0",
    pooling: Annotated[
        str | None,
        typer.Option(
            help="auto, mean, gem, cls or cls+mean. By default what suits the encoder.",
            show_default=False,
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Texts to encode as well, one a line of this file; their features go to "
            "NAME.texts.npy if there are images, too.",
            show_default=False,
        ),
    ] = None,
    text_encoder: Annotated[
        str, typer.Option(help="As --encoder, for texts.")
    ] = "all-MiniLM-L6-v2",
    dtype: Annotated[str, typer.Option(help="float32, or float16 for half the size.")] = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that was made of other images.")
    ] = False,
    device: Device = "auto",
    n_jobs: NJobs = -1,
    quiet: Quiet = False,
) -> None:
    """Turn images into features, in one file that numpy reads.

    NAME.csv beside it says which row is which image and what cannot be read.
    A run that was stopped goes on where it was when it is started again.

    Example: sklearn-ape encode photos/ -o features.npy
    """
    if not images and texts is None:
        raise typer.BadParameter("give images, or --texts captions.txt.")
    if output.suffix.lower() != ".npy":
        raise typer.BadParameter(f"{str(output)!r} should end in .npy.", param_hint="--output")
    paths = list_images(images, quiet) if images else []
    lines = [] if texts is None else read_lines(texts)
    if texts is not None and not lines:
        raise ValueError(f"{str(texts)!r} holds no text.")
    check_file(output)

    from ._models import Machine, make_image_encoder, make_text_encoder

    machine = Machine("memory", device, n_jobs, quiet)
    if paths:
        images_encoder = make_image_encoder(encoder, machine, pooling=pooling)
        _to_file(images_encoder, paths, "path", output, dtype, overwrite, machine)
    if lines:
        target = output.with_suffix(".texts.npy") if paths else output
        texts_encoder = make_text_encoder(text_encoder, machine)
        _to_file(texts_encoder, lines, "text", target, dtype, overwrite, machine)


def _to_file(
    encoder: Any,
    items: list[str],
    kind: str,
    output: Path,
    dtype: str,
    overwrite: bool,
    machine: Any,
) -> None:
    """Encode items into a file and write the list of its rows beside it."""
    import warnings

    from ..encoders import EncodingFailedWarning
    from ..features import OtherContentError
    from ._models import say_unreadable

    encoder.set_params(cache=None)  # the file itself is what is kept
    n_bytes = len(items) * encoder._n_features_out * (4 if dtype == "float32" else 2)
    if not output.exists():
        check_file(output, n_bytes)
    note = f"What is finished is in {f'{output}.partial'!r}: run it again to go on."
    with noted_when_interrupted(note), warnings.catch_warnings():
        warnings.simplefilter("ignore", EncodingFailedWarning)
        try:
            features = encoder.encode_to(
                output, items, chunk_size=_CHUNK, dtype=dtype, overwrite=overwrite
            )
        except OtherContentError as error:
            raise FileExistsError(
                f"{error.problem} Give --overwrite to replace it, or choose another --output."
            ) from error
    errors = encoder.errors_
    with Table(["row", kind, "error"], output.with_suffix(".csv")) as table:
        for row, item in enumerate(items):
            cell = FileName(item) if kind == "path" else item
            table.write([row, cell, errors.get(row)])
    say_unreadable(errors, len(items))
    n_rows, width = features.shape
    say(
        f"Features in {str(output)!r}: {n_rows:,} x {width:,}; which row is which is in "
        f"{str(output.with_suffix('.csv'))!r}.",
        machine.quiet,
    )
    if len(errors) == len(items):
        raise typer.Exit(1)
