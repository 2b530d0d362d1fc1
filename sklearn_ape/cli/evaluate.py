"""The command ``sklearn-ape evaluate``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from . import _inputs as option
from ._inputs import check_replaces_no_input, load_data, parse_labels, resolve_label_names
from ._output import (
    check_output_file,
    print_loading,
    print_message,
    resolve_format,
    write_atomically,
)


def evaluate(
    data: option.Data,
    labels: option.Labels = None,
    labels_file: option.LabelsFile = None,
    aligner: option.Aligner = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="JSON report with all scores and the unreadable images."
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            help="Figure (.png, .pdf, .svg, .jpg) of the confusion matrix and the recall curve."
        ),
    ] = None,
    image: option.ImageColumn = "image",
    caption: option.CaptionColumn = "caption",
    label: option.LabelColumn = None,
    captions: option.Captions = "auto",
    templates: option.Templates = option.DEFAULT_TEMPLATES,
    strict: option.Strict = False,
    file_format: option.PrintedFormat = None,
    cache: option.Cache = None,
    device: option.Device = "auto",
    n_jobs: option.NJobs = -1,
    quiet: option.Quiet = False,
) -> None:
    """Evaluate a model on images with labels, captions or both.

    Labels, such as the names of subfolders, give the accuracy per class, and per level of a
    hierarchy of labels. Captions give recall@1, @5 and @10 in both directions. Each score has
    its 95 % confidence interval.

    Example: sklearn-ape evaluate photos/ --aligner my-aligner --figure report.png
    """
    file_format = resolve_format(None, file_format)
    check_replaces_no_input(output, data, labels_file)
    _check_report(output)
    _check_figure(figure)
    names = parse_labels(labels, labels_file)
    bunch = load_data(data, captions, strict, quiet, image=image, caption=caption, label=label)
    check_replaces_no_input(figure, *bunch.images)
    _check_has_truth(bunch, data)

    print_loading(quiet)
    from ..aligners.wrapper import unwrap
    from ..encoders.images import group_images
    from ..zero_shot import ZeroShotClassifier
    from . import _models

    options = _models.RuntimeOptions(cache, device, n_jobs, quiet)
    saved = _models.load_model(aligner, options)
    model = _models.extract_aligner(saved)
    classifier = _models.select_classifier(saved, names, templates, aligner, quiet)
    names = _resolve_names(classifier, names, bunch)
    encoder = _models.get_image_encoder(model)
    if strict:
        encoder.set_params(on_error="raise")
    encoded = _models.encode_images(encoder, bunch.images, options)
    rows = encoded.readable_rows
    images = [bunch.images[row] for row in rows]
    preprocessing, inner = unwrap(model)
    # In a Pipeline, the aligner expects features.
    inputs = images if preprocessing is None else preprocessing.transform(images)
    # A table has one row per caption, but images are counted once.
    keys = _models.identify_images(images)
    groups = group_images(images)
    n_fitted = _count_fitted(inner, inputs, classifier, images, keys)
    scores: list[_models.Score] = []
    labelled = y_true = y_pred = texts = None
    if names is not None:
        labelled, y_true = _drop_repeated(images, groups, [bunch.labels[row] for row in rows])
        if classifier is None:
            classifier = ZeroShotClassifier(names, aligner=model, templates=templates)
        y_pred = _resolve_groups(classifier.labels, y_true, classifier.predict(labelled))
        scores += _models.score_accuracy(y_true, y_pred)
        scores += _score_levels(classifier, labelled, y_true)
    if bunch.captions is not None:
        texts = [bunch.captions[row] for row in rows]
        _models.warn_about_few_pairs(texts, groups)
        scores += _models.score_recall(inner, inputs, texts, groups)
    if output is not None:
        facts = {
            "data": str(data),
            "aligner": aligner or "starter",
            "images": len(set(_models.identify_images(bunch.images))),
            "used_for_fitting": n_fitted,
            "unreadable": [encoded.errors[row] for row in sorted(encoded.errors)],
        }
        _write_report(output, facts, scores)
        print_message(f"Wrote the report to {str(output)!r}.", quiet)
    if figure is not None:
        _draw(figure, inner, inputs, groups, labelled, y_true, y_pred, texts)
        print_message(f"Wrote the figure to {str(figure)!r}.", quiet)
    if n_fitted:
        print_message(
            f"sklearn-ape: Warning: {n_fitted:,} of {len(set(keys)):,} images were used to fit "
            "this aligner, so these scores are higher than on new images. Evaluate on images "
            "that were held out."
        )
    # Last, because the reader may stop reading.
    _models.print_scores(scores, file_format, "images or captions")


def _check_report(output: Path | None) -> None:
    check_output_file(output)
    if str(output) == "-":
        raise typer.BadParameter(
            "The standard output has the scores. Choose a file for the report.",
            param_hint="--output",
        )
    if output is not None and output.suffix.lower() in (".csv", ".tsv", ".parquet", ".jsonl"):
        raise typer.BadParameter(
            f"{str(output)!r}: the report is JSON. Choose the suffix .json. To save the scores as "
            "a table, set --format, and redirect the standard output.",
            param_hint="--output",
        )


def _check_figure(figure: Path | None) -> None:
    from ..utils.messages import import_optional

    check_output_file(figure)
    if figure is None:
        return
    matplotlib = import_optional("matplotlib", extra="plots", purpose="--figure")
    matplotlib.use("agg")
    if figure.suffix.lower() not in (".png", ".pdf", ".svg", ".jpg"):
        raise typer.BadParameter(
            f"{str(figure)!r} does not have one of the suffixes .png, .pdf, .svg and .jpg.",
            param_hint="--figure",
        )


def _check_has_truth(bunch: Any, data: Path) -> None:
    if bunch.get("labels") is None and bunch.captions is None:
        raise ValueError(
            f"{str(data)!r} has neither labels nor captions to evaluate with. Put every image "
            "in a subfolder whose name is its label, or write captions (photo.txt next to "
            "photo.jpg). For a table, set --label to its column of labels."
        )


def _resolve_names(classifier: Any, names: Any, bunch: Any) -> Any:
    """Return the names of the classes, or None if recall can be computed, but no accuracy."""
    from ..prompts import is_hierarchy

    if classifier is not None:
        names = classifier.labels if is_hierarchy(classifier.labels) else list(classifier.classes_)
    labels = bunch.get("labels")
    if labels is None or (names is None and bunch.captions and len(set(labels)) == 1):
        return None
    # Images of no class have the label that the classifier predicts below its threshold.
    unknown_label = None if classifier is None else str(classifier.unknown_label)
    labels_of_classes = [label for label in labels if str(label) != unknown_label]
    is_model = classifier is not None
    return resolve_label_names(names, labels_of_classes, allow_groups=True, is_model=is_model)


def _drop_repeated(
    images: Sequence[Any], groups: Iterable[int], labels: Sequence[Any]
) -> tuple[list[Any], list[str]]:
    """Return images and their labels: in the accuracy, an image counts once per label."""
    pairs = zip(groups, map(str, labels), strict=True)
    image_by_pair = dict(zip(pairs, images, strict=True))
    return list(image_by_pair.values()), [label for _, label in image_by_pair]


def _count_fitted(
    aligner: Any, inputs: Any, classifier: Any, images: Sequence[Any], keys: Sequence[Any]
) -> int | None:
    """Return the number of distinct images that a model was fitted on; None if it is unknown."""
    from ..zero_shot import FewShotClassifier

    is_fitted = aligner.was_fitted_on(inputs) if hasattr(aligner, "was_fitted_on") else None
    if isinstance(classifier, FewShotClassifier):
        is_example = classifier.was_fitted_on(images)
        is_fitted = is_example if is_fitted is None else is_fitted | is_example
    return None if is_fitted is None else len({keys[row] for row in is_fitted.nonzero()[0]})


def _resolve_groups(labels: Any, y_true: Sequence[str], y_pred: Sequence[Any]) -> list[str]:
    """Return predicted names; in a hierarchy, a class counts as a group that an image is labelled.

    An image that is labelled "animal" does not say which animal it shows, so that "bird" is right.
    """
    from ..prompts import flatten_labels, is_hierarchy

    names = [str(name) for name in y_pred]
    if not is_hierarchy(labels):
        return names
    groups = {str(label): set(map(str, path)) for label, path in flatten_labels(labels)[1].items()}
    pairs = zip(y_true, names, strict=True)
    return [true if true in groups.get(name, ()) else name for true, name in pairs]


def _score_levels(classifier: Any, images: Sequence[Any], y_true: Sequence[str]) -> list[Any]:
    """Return the accuracy at each level of a hierarchy of labels, from the coarsest."""
    from ..prompts import flatten_labels, is_hierarchy
    from ._models import make_score

    if not is_hierarchy(classifier.labels):
        return []
    # The labels of a classifier that was saved in Python may be numbers.
    label_of = {str(label): label for label in flatten_labels(classifier.labels)[1]}
    # Images of no class are left out. An image that is labelled by a group is not counted at finer
    # levels than that of the group.
    rows = [row for row, label in enumerate(y_true) if label in label_of]
    if not rows:
        return []
    images, y = [images[row] for row in rows], [label_of[y_true[row]] for row in rows]
    hits_by_level = classifier._iter_hits_by_level(images, y)
    return [make_score("accuracy", f"level {n}", hits) for n, hits in enumerate(hits_by_level, 1)]


def _write_report(output: Path, facts: dict[str, Any], scores: list[Any]) -> None:
    values = [  # JSON has no NaN
        {name: None if value != value else value for name, value in score._asdict().items()}
        for score in scores
    ]
    report = facts | {"confidence": 0.95, "scores": values}
    with write_atomically(output) as path:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _draw(
    figure: Path,
    aligner: Any,
    inputs: Any,
    groups: Any,
    labelled: Sequence[Any] | None,
    y_true: Sequence[str] | None,
    y_pred: Sequence[str] | None,
    texts: Sequence[Any] | None,
) -> None:
    from matplotlib.figure import Figure

    from ..inspection import RecallCurveDisplay, ZeroShotConfusionDisplay

    n_panels = (y_true is not None) + (texts is not None)
    canvas = Figure(figsize=(7 * n_panels, 6), layout="constrained")
    panels = canvas.subplots(1, n_panels, squeeze=False)[0]
    if y_true is not None:
        ZeroShotConfusionDisplay.from_predictions(y_true, y_pred, images=labelled, ax=panels[0])
    if texts is not None:
        RecallCurveDisplay.from_estimator(aligner, inputs, texts, groups=groups, ax=panels[-1])
    with write_atomically(figure) as path:
        # The target of a link may have no suffix, which matplotlib would append.
        canvas.savefig(path, format=figure.suffix[1:].lower())
