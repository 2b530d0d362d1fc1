"""``sklearn-ape evaluate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.validation import format_list
from ._console import say
from ._inputs import label_names, load_data
from ._options import (
    Aligner,
    Cache,
    CaptionColumn,
    Captions,
    Data,
    Device,
    Format,
    ImageColumn,
    LabelColumn,
    Labels,
    LabelsFile,
    NJobs,
    Quiet,
    Strict,
    Templates,
)
from ._output import check_file, form_of, whole_file


def evaluate(
    data: Data,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    aligner: Aligner = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File of the whole report, .json, with the images that could not be read.",
            show_default=False,
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            help="File of a figure (.png, .pdf, .svg): which labels are taken for which, and "
            "recall by the number of results.",
            show_default=False,
        ),
    ] = None,
    image: ImageColumn = "image",
    caption: CaptionColumn = "caption",
    label: LabelColumn = None,
    captions: Captions = "auto",
    templates: Templates = "simple",
    strict: Strict = False,
    form: Format = None,
    cache: Cache = None,
    device: Device = "auto",
    n_jobs: NJobs = -1,
    quiet: Quiet = False,
) -> None:
    """Measure an aligner on images with labels, captions or both, with 95 % intervals.

    Labels (the sub-folders' names) give the accuracy, class by class; captions
    how often the right one is among the first 1, 5 and 10 found, both ways.

    Example: sklearn-ape evaluate photos/ --aligner my-aligner --figure report.png
    """
    form = form_of(None, form)
    check_file(output)
    check_file(figure)
    if figure is not None:
        _check_figure(figure)
    names = label_names(labels, labels_file)
    bunch = load_data(
        data,
        image=image,
        caption=caption,
        label=label,
        captions=captions,
        strict=strict,
        quiet=quiet,
    )
    truth = bunch.get("labels")
    if truth is None and bunch.captions is None:
        raise ValueError(
            f"The images in {str(data)!r} have neither labels (sub-folders) nor captions "
            "(photo.txt beside photo.jpg): there is nothing to compare answers with."
        )
    if truth is not None:
        names = _checked_names(names, truth, bunch.captions is not None)

    from ..aligners.wrapper import unwrap_aligner
    from ._models import (
        Machine,
        accuracy_scores,
        encode_images,
        image_encoder_of,
        open_aligner,
        print_scores,
        recall_scores,
    )

    machine = Machine(cache, device, n_jobs, quiet)
    model = open_aligner(aligner, machine)
    encoder = image_encoder_of(model)
    if strict:
        encoder.set_params(on_error="raise")
    found = encode_images(encoder, bunch.images, machine)
    images = [bunch.images[row] for row in found.good]
    inputs = _inputs(model, images)
    n_known = _n_fitted_on(unwrap_aligner(model), inputs)
    scores: list[Any] = []
    classes = predicted = texts = None
    if truth is not None and names is not None:
        classes = [str(truth[row]) for row in found.good]
        predicted = _predicted(names, unwrap_aligner(model), inputs, templates)
        scores += accuracy_scores(classes, predicted)
    if bunch.captions is not None:
        texts = [bunch.captions[row] for row in found.good]
        scores += recall_scores(unwrap_aligner(model), inputs, texts, images)
    if output is not None:
        _write_report(output, data, aligner, len(bunch.images), n_known, found.errors, scores)
        say(f"Report in {str(output)!r}.", quiet)
    if figure is not None:
        _draw(figure, unwrap_aligner(model), inputs, images, classes, predicted, texts)
        say(f"Figure in {str(figure)!r}.", quiet)
    if n_known:
        say(
            f"sklearn-ape: Warning: {n_known:,} of {len(images):,} images were used to fit this "
            "aligner, so these scores are higher than on new images. Evaluate on images that were "
            "held out."
        )
    print_scores(scores, form)  # last, since its reader may go away


def _checked_names(names: Any, truth: Any, has_captions: bool) -> Any:
    """Return names of all classes; those of the images if none were given."""
    there = sorted(set(map(str, truth)))
    if names is None and len(there) < 2:
        if has_captions:  # one folder of captioned images: recall alone
            return None
        raise ValueError(
            f"All images have the label {there[0]!r}: give the names of the other classes with "
            "--labels."
        )
    if names is None:
        return {name: name.replace("_", " ") for name in there}
    absent = [name for name in there if name not in names]
    if absent:
        raise ValueError(
            "There are images with labels that are not among --labels: "
            f"{format_list(absent)}. Add them; a .json file of labels can give a class other "
            f'{{"{absent[0]}": ["a name", "another name"]}}.'
        )
    return names


def _inputs(model: Any, images: Sequence[Any]) -> Any:
    """Return what the model's last step takes: features in a Pipeline, else the images."""
    from sklearn.pipeline import Pipeline

    return model[:-1].transform(images) if isinstance(model, Pipeline) else images


def _n_fitted_on(aligner: Any, inputs: Any) -> int | None:
    """Return how many of the images the aligner was fitted on; None where that is not known."""
    known = aligner.was_fitted_on(inputs) if hasattr(aligner, "was_fitted_on") else None
    return None if known is None else int(known.sum())


def _predicted(names: Any, aligner: Any, inputs: Any, templates: str) -> list[str]:
    from .. import ZeroShotClassifier

    classifier = ZeroShotClassifier(names, aligner=aligner, templates=templates)
    return [str(name) for name in classifier.predict(inputs)]


def _write_report(
    output: Path,
    data: Path,
    aligner: str | None,
    n_images: int,
    n_known: int | None,
    errors: dict[int, str],
    scores: Sequence[Any],
) -> None:
    report = {
        "data": str(data),
        "aligner": aligner or "starter",
        "images": n_images,
        "used_for_fitting": n_known,
        "unreadable": [errors[row] for row in sorted(errors)],
        "confidence": 0.95,
        "scores": [
            {name: None if value != value else value for name, value in score._asdict().items()}
            for score in scores
        ],
    }
    with whole_file(output) as path:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _check_figure(figure: Path) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            '--figure needs matplotlib: pip install "sklearn-ape[plots]".'
        ) from error
    matplotlib.use("agg")
    if figure.suffix.lower() not in (".png", ".pdf", ".svg", ".jpg"):
        raise typer.BadParameter(
            f"{str(figure)!r} should end in .png, .pdf, .svg or .jpg.", param_hint="--figure"
        )


def _draw(
    figure: Path,
    aligner: Any,
    inputs: Any,
    images: Sequence[Any],
    classes: Sequence[str] | None,
    predicted: Sequence[str] | None,
    texts: Sequence[Any] | None,
) -> None:
    from matplotlib import pyplot as plt

    from ..encoders.images import image_groups
    from ..inspection import RecallCurveDisplay, ZeroShotConfusionDisplay

    n_panels = (classes is not None) + (texts is not None)
    canvas, axes = plt.subplots(1, n_panels, figsize=(7 * n_panels, 6), layout="constrained")
    panels = [axes] if n_panels == 1 else list(axes)
    if classes is not None:
        ZeroShotConfusionDisplay.from_predictions(
            classes, predicted, images=images, ax=panels.pop(0)
        )
    if texts is not None:
        RecallCurveDisplay.from_estimator(
            aligner, inputs, texts, groups=image_groups(images), ax=panels.pop(0)
        )
    try:
        with whole_file(figure) as path:
            canvas.savefig(path)
    finally:
        plt.close(canvas)
