"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Aligner",
    "Cache",
    "CaptionColumn",
    "Captions",
    "Data",
    "Device",
    "Format",
    "ImageColumn",
    "ImageEncoder",
    "Images",
    "LabelColumn",
    "Labels",
    "LabelsFile",
    "NJobs",
    "Quiet",
    "RandomState",
    "Strict",
    "Templates",
    "TextEncoder",
]

Images = Annotated[
    list[str],
    typer.Argument(
        help="Images, folders of them (sub-folders too), patterns such as '*.jpg', or - for a "
        "list on standard input.",
        show_default=False,
    ),
]
Data = Annotated[
    Path,
    typer.Argument(
        help="A folder of images, with photo.txt beside photo.jpg for its caption or with "
        "sub-folders for labels; or a table of pairs (.csv, .tsv, .jsonl, .parquet).",
        show_default=False,
    ),
]
ImageColumn = Annotated[
    str, typer.Option("--image", help="In a table: the column of the images' paths.")
]
CaptionColumn = Annotated[
    str, typer.Option("--caption", help="In a table: the column of the captions.")
]
LabelColumn = Annotated[
    str | None, typer.Option("--label", help="In a table: the column of the labels, if any.")
]
Captions = Annotated[
    str,
    typer.Option(
        help="In a folder: where captions come from. sidecar (photo.txt beside photo.jpg), table "
        "(metadata.csv in the folder), folder (names of sub-folders), filename, or auto."
    ),
]
Aligner = Annotated[
    str | None,
    typer.Option(
        help="What was saved by 'fit': a folder, or owner/name on the Hugging Face hub; or a "
        "CLIP model, such as open_clip:ViT-B-32/openai. By default the starter model.",
        show_default=False,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Names of the classes, separated by commas. A name with a comma in it goes between "
        "double quotes: 'cat,\"salt, pepper\"'.",
        show_default=False,
    ),
]
LabelsFile = Annotated[
    Path | None,
    typer.Option(
        help="Names of the classes in a file: .txt with one a line, or .json with a list or "
        'with synonyms, {"vehicle": ["car", "bus"]}.',
        show_default=False,
    ),
]
Templates = Annotated[
    str,
    typer.Option(
        help="Sentences that names are put into: none, simple, photo, clip, drawing, or one of "
        "your own with {} for the name."
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="csv, tsv, json, jsonl, parquet or table. By default that of the output's name; on "
        "standard output a table for a terminal, else csv.",
        show_default=False,
    ),
]
ImageEncoder = Annotated[
    str, typer.Option(help="A name of 'sklearn-ape models', or see 'encode --help'.")
]
TextEncoder = Annotated[str, typer.Option(help="As --image-encoder.")]
Cache = Annotated[
    str | None,
    typer.Option(
        help="Folder where features are kept, so that no image is encoded twice, by default "
        "your own; 'memory' keeps none.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
NJobs = Annotated[int, typer.Option("--n-jobs", help="Threads that read images; -1: one a core.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, only results and errors.")
]
RandomState = Annotated[int, typer.Option(help="Seed, for equal results again.")]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Stop at an image that cannot be read, instead of going on."),
]
