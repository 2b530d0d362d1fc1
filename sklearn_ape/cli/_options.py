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
        help="Images, folders (including subfolders), patterns such as '*.jpg', or - for a list "
        "on standard input.",
        show_default=False,
    ),
]
Data = Annotated[
    Path,
    typer.Argument(
        help="Folder of images, with the caption of photo.jpg in photo.txt or with subfolders as "
        "labels; or table of pairs (.csv, .tsv, .jsonl, .parquet).",
        show_default=False,
    ),
]
ImageColumn = Annotated[
    str, typer.Option("--image", help="Column of a table with the paths of the images.")
]
CaptionColumn = Annotated[
    str, typer.Option("--caption", help="Column of a table with the captions.")
]
LabelColumn = Annotated[
    str | None, typer.Option("--label", help="Column of a table with the labels, if there is one.")
]
Captions = Annotated[
    str,
    typer.Option(
        help="Source of the captions in a folder: sidecar (photo.txt next to photo.jpg), table "
        "(metadata.csv in the folder), folder (names of subfolders), filename or auto."
    ),
]
Aligner = Annotated[
    str | None,
    typer.Option(
        help="Saved aligner: a folder written by 'fit', or owner/name on the Hugging Face Hub; or "
        "a CLIP model such as open_clip:ViT-B-32/openai. Default: the starter model.",
        show_default=False,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Label names, separated by commas. Put a name that contains a comma in double "
        "quotes: 'cat,\"salt, pepper\"'.",
        show_default=False,
    ),
]
LabelsFile = Annotated[
    Path | None,
    typer.Option(
        help="File of label names: .txt with one name per line, or .json with a list or with "
        'synonyms, {"vehicle": ["car", "bus"]}.',
        show_default=False,
    ),
]
Templates = Annotated[
    str,
    typer.Option(
        help="Prompt templates for the label names: none, simple, photo, clip, drawing, or your "
        "own template with {} for the name."
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Output format: csv, tsv, json, jsonl, parquet or table. Default: by the suffix of "
        "the output file; on standard output, table for a terminal and csv otherwise.",
        show_default=False,
    ),
]
ImageEncoder = Annotated[
    str,
    typer.Option(
        help="Image encoder to use: a name listed by 'sklearn-ape models', a timm model, "
        "transformers:NAME or open_clip:NAME/WEIGHTS."
    ),
]
TextEncoder = Annotated[
    str, typer.Option(help="Text encoder to use; see --image-encoder for valid names.")
]
Cache = Annotated[
    str | None,
    typer.Option(
        help="Feature cache folder (default: your user cache; 'memory': do not store on disk).",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1, mps, ...")]
NJobs = Annotated[
    int, typer.Option("--n-jobs", help="Number of threads that read images; -1: one per core.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only results, warnings and errors.")
]
RandomState = Annotated[int, typer.Option(help="Random seed, for reproducible results.")]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Stop at the first unreadable image instead of skipping it."),
]
