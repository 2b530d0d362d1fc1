"""``sklearn-ape fit``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ._console import say
from ._inputs import label_names, load_data
from ._options import (
    Cache,
    CaptionColumn,
    Captions,
    Data,
    Device,
    Format,
    ImageColumn,
    ImageEncoder,
    Labels,
    LabelsFile,
    NJobs,
    Quiet,
    RandomState,
    Strict,
    Templates,
    TextEncoder,
)
from ._output import check_model_folder, form_of


class Method(StrEnum):
    """How to align."""

    ape = "ape"
    kernel = "kernel"
    cca = "cca"
    asif = "asif"
    lit = "lit"


def fit(
    data: Data,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the saved aligner.", show_default=False),
    ],
    method: Annotated[
        Method,
        typer.Option(
            help="ape trains a small head, kernel and cca solve for one in seconds, asif only "
            "remembers the pairs, lit trains the text encoder itself."
        ),
    ] = Method.ape,
    depth: Annotated[
        int | None,
        typer.Option(min=1, help="Layers of the head that ape trains.", show_default="2"),
    ] = None,
    head_pairs: Annotated[
        bool,
        typer.Option(
            "--head-pairs/--no-head-pairs",
            help="Learn besides from the names of the classes that the image encoder knows.",
        ),
    ] = False,
    image_encoder: ImageEncoder = "efficientnet_lite0",
    text_encoder: TextEncoder = "all-MiniLM-L6-v2",
    image: ImageColumn = "image",
    caption: CaptionColumn = "caption",
    captions: Captions = "auto",
    labels: Labels = None,
    labels_file: LabelsFile = None,
    templates: Templates = "simple",
    test_size: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Share of the pairs that are held out to measure with; 0 measures nothing.",
        ),
    ] = 0.2,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit/--no-refit",
            help="After measuring, fit once more on all pairs, and save that.",
        ),
    ] = True,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which the training of ape and lit is kept, so that a run that was "
            "killed goes on when it is started again.",
            show_default=False,
        ),
    ] = None,
    random_state: RandomState = 0,
    strict: Strict = False,
    form: Format = None,
    cache: Cache = None,
    device: Device = "auto",
    n_jobs: NJobs = -1,
    quiet: Quiet = False,
) -> None:
    """Align two encoders on images and their captions, measure, and save the aligner.

    With --labels, what is saved is a classifier that knows these labels.
    Without captions, the names of sub-folders are the captions.

    Example: sklearn-ape fit photos/ -o my-aligner
    """
    form = form_of(None, form)
    check_model_folder(output)
    names = label_names(labels, labels_file)
    if depth is not None and method is not Method.ape:
        raise typer.BadParameter("is for --method ape.", param_hint="--depth")
    if head_pairs and method is Method.lit:
        raise typer.BadParameter("is not for --method lit.", param_hint="--head-pairs")
    if checkpoint is not None:
        if method not in (Method.ape, Method.lit):
            raise typer.BadParameter("is for --method ape or lit.", param_hint="--checkpoint")
        from ..aligners._checkpoint import prepare_folder

        prepare_folder(checkpoint)
    bunch = _pairs(data, image, caption, captions, strict, quiet)

    from .. import ZeroShotClassifier
    from ._models import (
        Machine,
        encode_images,
        held_out_rows,
        held_out_scores,
        make_image_encoder,
        make_text_encoder,
        on_card,
        print_scores,
    )

    machine = Machine(cache, device, n_jobs, quiet)
    encoder = make_image_encoder(image_encoder, machine, on_error="raise" if strict else "nan")
    texts = make_text_encoder(text_encoder, machine)
    found = encode_images(encoder, bunch.images, machine)
    rows = found.good
    images, words = ([side[row] for row in rows] for side in (bunch.images, bunch.captions))
    classes = [bunch.labels[row] for row in rows] if bunch.from_labels else None
    split = held_out_rows(found.features[rows], words, test_size, random_state, classes)
    # From here on features come from the cache, and images that are bad are left out.
    encoder.set_params(on_error="raise", verbose=0)
    aligner: Any = _aligner(method, depth, encoder, texts, head_pairs, random_state, machine)
    if checkpoint is not None:
        aligner.set_params(checkpoint=checkpoint)
    scores: list[Any] = []
    if split is None and test_size:
        say(
            "Too few pairs to hold some out (fewer than 50 that share no image or caption): "
            "nothing is measured.",
            quiet,
        )
    fitted_on = len(images)
    if split is not None:
        train, test = split
        fitted_on = len(train)
        aligner.fit([images[row] for row in train], [words[row] for row in train])
        scores = held_out_scores(
            aligner,
            [images[row] for row in test],
            [words[row] for row in test],
            None if classes is None else [classes[row] for row in test],
        )
    if split is None or refit:
        fitted_on = len(images)
        aligner.fit(images, words)

    model = aligner
    if names is not None:
        model = ZeroShotClassifier(names, aligner=aligner, templates=templates)
    model.save_pretrained(
        output.expanduser(), scores={on_card(score): score.value for score in scores}
    )
    if scores:
        print_scores(scores, form)
    say(f"Fitted on {fitted_on:,} images; saved in {str(output)!r}.", quiet)


def _pairs(data: Path, image: str, caption: str, captions: str, strict: bool, quiet: bool) -> Any:
    """Load pairs; names of sub-folders stand in for captions that are not there."""
    bunch = load_data(
        data, image=image, caption=caption, captions=captions, strict=strict, quiet=quiet
    )
    bunch.from_labels = bunch.captions is None
    if bunch.from_labels:
        if "labels" not in bunch:
            raise ValueError(
                f"The images in {str(data)!r} have no captions. Write photo.txt beside "
                "photo.jpg, put them into sub-folders named by what they show, or give "
                "--captions filename if the files are named by what they show."
            )
        bunch.captions = [label.replace("_", " ").strip() for label in bunch.labels]
        if len(set(bunch.captions)) < 2:
            raise ValueError(
                f"All images in {str(data)!r} are in one sub-folder and have no captions: there "
                "is nothing to tell apart."
            )
        say("There are no captions: the names of the sub-folders are taken for them.", quiet)
    return bunch


def _aligner(
    method: Method,
    depth: int | None,
    images: Any,
    texts: Any,
    head_pairs: bool,
    random_state: int,
    machine: Any,
) -> Any:
    """Return the unfitted aligner."""
    from .. import APEAligner, ASIFAligner, CCAAligner, KernelAligner, LiTAligner

    encoders: dict[str, Any] = {"image_encoder": images, "text_encoder": texts}
    training: dict[str, Any] = {
        "random_state": random_state,
        "device": machine.device,
        "verbose": int(not machine.quiet),
    }
    if method is Method.lit:
        return LiTAligner(**encoders, **training)
    head = images if head_pairs else None
    if method is Method.ape:
        aligner = APEAligner(**encoders, head_pairs=head, **training)
        return aligner if depth is None else aligner.set_params(depth=depth)
    kinds: Any = {Method.kernel: KernelAligner, Method.cca: CCAAligner, Method.asif: ASIFAligner}
    return kinds[method](**encoders, head_pairs=head)
