"""The command ``sklearn-ape fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from . import _inputs as option
from ._console import print_message
from ._inputs import load_data, parse_labels
from ._output import check_model_folder, resolve_format

_Method = Literal["ape", "kernel", "cca", "asif", "lit"]


def fit(
    data: option.Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder in which the aligner is saved.")
    ],
    method: Annotated[
        _Method,
        typer.Option(
            help="Kind of aligner: ape trains a small head, kernel and cca compute a "
            "closed-form solution in seconds, asif stores the pairs, lit trains the text encoder."
        ),
    ] = "ape",
    depth: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of layers of the head of --method ape.", show_default="2"
        ),
    ] = None,
    head_pairs: Annotated[
        bool,
        typer.Option(
            "--head-pairs/--no-head-pairs",
            help="Also train on the class names of the image encoder's pretrained classification "
            "head.",
        ),
    ] = False,
    image_encoder: option.ImageEncoder = "efficientnet_lite0",
    text_encoder: option.TextEncoder = "all-MiniLM-L6-v2",
    image: option.ImageColumn = "image",
    caption: option.CaptionColumn = "caption",
    captions: option.Captions = "auto",
    labels: option.Labels = None,
    labels_file: option.LabelsFile = None,
    templates: option.Templates = "simple",
    test_size: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Fraction of pairs held out for evaluation; 0 disables evaluation.",
        ),
    ] = 0.2,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit/--no-refit",
            help="Whether to fit the saved aligner on all pairs after the evaluation.",
        ),
    ] = True,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder for checkpoints of ape and lit, with which an interrupted run resumes "
            "when it is started again."
        ),
    ] = None,
    random_state: option.RandomState = 0,
    strict: option.Strict = False,
    file_format: option.Format = None,
    cache: option.Cache = None,
    device: option.Device = "auto",
    n_jobs: option.NJobs = -1,
    quiet: option.Quiet = False,
) -> None:
    """Fit an aligner on captioned images, evaluate it and save it.

    With --labels, a classifier with these labels is saved.
    Without captions, the names of the subfolders are used as captions.

    Example: sklearn-ape fit photos/ -o my-aligner
    """
    file_format = resolve_format(None, file_format)
    check_model_folder(output)
    names = parse_labels(labels, labels_file)
    if depth is not None and method != "ape":
        raise typer.BadParameter(
            f"{depth} has no effect with --method {method}. Use --method ape, or remove it.",
            param_hint="--depth",
        )
    if head_pairs and method == "lit":
        raise typer.BadParameter(
            "is not supported by --method lit. Remove it.", param_hint="--head-pairs"
        )
    if checkpoint is not None:
        if method not in ("ape", "lit"):
            raise typer.BadParameter(
                f"{str(checkpoint)!r} has no effect with --method {method}. Use --method ape or "
                "lit, or remove it.",
                param_hint="--checkpoint",
            )
        from ..aligners._checkpoint import prepare_folder

        prepare_folder(checkpoint)
    bunch = _load_pairs(data, image, caption, captions, strict, quiet)

    from ..aligners import APEAligner, ASIFAligner, CCAAligner, KernelAligner, LiTAligner
    from ..encoders import TransformersTextEncoder
    from ..zero_shot import ZeroShotClassifier
    from ._models import (
        RuntimeOptions,
        Score,
        card_label,
        encode_images,
        make_image_encoder,
        make_text_encoder,
        print_scores,
        score_held_out,
        split_rows,
    )

    options = RuntimeOptions(cache, device, n_jobs, quiet)
    encoder = make_image_encoder(image_encoder, options, on_error="raise" if strict else "nan")
    caption_encoder = make_text_encoder(text_encoder, options)
    if method == "lit" and not isinstance(caption_encoder, TransformersTextEncoder):
        raise typer.BadParameter(
            f"{text_encoder!r} cannot be trained. --method lit needs a text encoder of "
            "transformers.",
            param_hint="--text-encoder",
        )
    encoded = encode_images(encoder, bunch.images, options)
    rows = encoded.readable_rows
    images, texts = ([side[row] for row in rows] for side in (bunch.images, bunch.captions))
    classes = [bunch.labels[row] for row in rows] if bunch.from_labels else None
    split = split_rows(encoded.features[rows], texts, test_size, random_state, classes)
    # The features of all readable images are cached now.
    encoder.set_params(on_error="raise", verbose=0)
    aligners: dict[str, Any] = {"ape": APEAligner, "kernel": KernelAligner, "cca": CCAAligner}
    aligners |= {"asif": ASIFAligner, "lit": LiTAligner}
    params: dict[str, Any] = {"image_encoder": encoder, "text_encoder": caption_encoder}
    if head_pairs:
        params["head_pairs"] = encoder
    if method in ("ape", "lit"):
        params |= {"random_state": random_state, "checkpoint": checkpoint}
        params |= {"device": device, "verbose": int(not quiet)}
    if depth is not None:
        params["depth"] = depth
    aligner: Any = aligners[method](**params)
    scores: list[Score] = []
    if split is None and test_size:
        print_message(
            "Not evaluated: at least 50 pairs with distinct images and captions are needed for a "
            "held-out test.",
            quiet,
        )
    if split is not None:
        train, test = split
        n_fitted = len(train)
        aligner.fit([images[row] for row in train], [texts[row] for row in train])
        held_out = [images[row] for row in test], [texts[row] for row in test]
        scores = score_held_out(aligner, *held_out, are_classes=bunch.from_labels)
    if split is None or refit:
        n_fitted = len(images)
        aligner.fit(images, texts)

    model = aligner
    if names is not None:
        model = ZeroShotClassifier(names, aligner=aligner, templates=templates)
    card_scores = {card_label(score): score.value for score in scores}
    model.save_pretrained(output.expanduser(), scores=card_scores)
    if scores:
        print_scores(scores, file_format)
    print_message(f"Fitted on {n_fitted:,} images. Saved in {str(output)!r}.", quiet)


def _load_pairs(
    data: Path, image: str, caption: str, captions: str, strict: bool, quiet: bool
) -> Any:
    """Load pairs, with the names of subfolders as captions if there are no captions."""
    bunch = load_data(data, captions, strict, quiet, image=image, caption=caption)
    bunch.from_labels = bunch.captions is None
    if bunch.from_labels:
        if "labels" not in bunch:
            raise ValueError(
                f"{str(data)!r} has no captions. Write photo.txt next to photo.jpg, put the "
                "images in subfolders whose names describe them, or set --captions filename if "
                "the file names describe them."
            )
        bunch.captions = [label.replace("_", " ").strip() for label in bunch.labels]
        if len(set(bunch.captions)) < 2:
            raise ValueError(
                f"{str(data)!r} has a single subfolder and no captions, so all captions would be "
                "equal. Write captions, or add subfolders."
            )
        print_message(
            "There are no captions. The names of the subfolders are used as captions.", quiet
        )
    return bunch
