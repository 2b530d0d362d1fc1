"""The command ``sklearn-ape classify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import _inputs as option
from ._inputs import list_images, parse_labels
from ._output import FileName, Table, check_output_file, print_message, resolve_format

_UNKNOWN = "unknown"


def classify(
    images: option.Images,
    labels: option.Labels = None,
    labels_file: option.LabelsFile = None,
    aligner: option.Aligner = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File (.csv, .tsv, .json, .jsonl, .parquet). Default: standard output.",
        ),
    ] = None,
    file_format: option.Format = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help=f"Minimum probability: images below it get the label {_UNKNOWN!r}."
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="Number of most probable labels per image.")
    ] = 1,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add the probability of each label.")
    ] = False,
    together: Annotated[
        bool,
        typer.Option(
            "--together", help="Take all images into account; for some hundred images or more."
        ),
    ] = False,
    templates: option.Templates = "simple",
    cache: option.Cache = None,
    device: option.Device = "auto",
    n_jobs: option.NJobs = -1,
    quiet: option.Quiet = False,
) -> None:
    """Classify images by label names. The output has one row per image.

    No training is needed: without --aligner, the starter model of the package is used.

    Example: sklearn-ape classify photos/ --labels "cat,dog,bird" -o names.csv
    """
    file_format = resolve_format(output, file_format)
    check_output_file(output)
    names = parse_labels(labels, labels_file, required=aligner is None)
    paths = list_images(images, quiet)

    import numpy as np

    from ._models import RuntimeOptions, iter_probabilities, report_unreadable

    options = RuntimeOptions(cache, device, n_jobs, quiet)
    classifier = _make_classifier(names, aligner, templates, threshold, options)
    classes = [str(name) for name in classifier.classes_]
    if top_k > len(classes):
        raise typer.BadParameter(
            f"{top_k} is larger than the number of labels, {len(classes)}.", param_hint="--top-k"
        )
    errors: dict[int, str] = {}
    with Table(_columns(classes, top_k, probabilities), output, file_format) as table:
        for rows, batch, batch_errors in iter_probabilities(classifier, paths, options, together):
            errors |= {rows.start + row: problem for row, problem in batch_errors.items()}
            top = np.argsort(-batch, axis=1, kind="stable")[:, :top_k]
            labels, label_probabilities = classifier._choose_labels(batch)
            for row, path in enumerate(paths[rows]):
                if row in batch_errors:
                    empty = [None] * (len(table.columns) - 2)
                    table.write([FileName(path), *empty, batch_errors[row]])
                    continue
                values = [float(f"{value:.6g}") for value in batch[row]]
                label_probability = float(f"{label_probabilities[row]:.6g}")
                cells: list[Any] = [str(labels[row]), label_probability]
                if top_k > 1:
                    cells += [cell for i in top[row] for cell in (classes[i], values[i])]
                if probabilities:
                    cells += values
                table.write([FileName(path), *cells, None])
            table.flush()
    report_unreadable(errors, len(paths))
    n_classified = len(paths) - len(errors)
    if output is not None and n_classified:
        noun = "image" if n_classified == 1 else "images"
        print_message(f"Classified {n_classified:,} {noun} in {str(output)!r}.", quiet)
    if len(errors) == len(paths):
        raise typer.Exit(1)


def _make_classifier(
    names: Any, source: str | None, templates: str, threshold: float | None, options: Any
) -> Any:
    """Return the classifier of a saved model, or one of the names."""
    from ..zero_shot import FewShotClassifier, ZeroShotClassifier
    from ._models import UNUSED_EXAMPLES, extract_aligner, load_model, reject_multi_label

    model = load_model(source, options)
    if isinstance(model, FewShotClassifier) and names is not None:
        print_message(UNUSED_EXAMPLES, options.quiet)
    if isinstance(model, ZeroShotClassifier) and names is None:
        if not hasattr(model, "aligner_"):  # its aligner is a name or the starter model
            model.set_params(aligner=extract_aligner(model, options))
        return model if threshold is None else model.set_params(threshold=threshold)
    if names is None:
        reject_multi_label(model, source)
        raise typer.BadParameter(
            f"{source!r} has no labels, because it is not a classifier. Set --labels 'cat,dog'.",
            param_hint="--aligner",
        )
    aligner = extract_aligner(model, options)
    return ZeroShotClassifier(names, aligner=aligner, templates=templates, threshold=threshold)


def _columns(classes: list[str], top_k: int, probabilities: bool) -> list[str]:
    columns = ["path", "label", "probability"]
    if top_k > 1:
        for rank in range(1, top_k + 1):
            columns += [f"label_{rank}", f"probability_{rank}"]
    if probabilities:
        columns += [f"probability:{name}" for name in classes]
    return [*columns, "error"]
