"""The command ``sklearn-ape classify``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import _inputs as option
from ._inputs import check_replaces_no_input, list_images, parse_labels
from ._output import (
    FileName,
    Table,
    check_output_file,
    print_loading,
    print_message,
    resolve_format,
)

_UNKNOWN = "unknown"


def classify(
    images: option.Images,
    labels: option.Labels = None,
    labels_file: option.LabelsFile = None,
    aligner: option.Aligner = None,
    output: option.Output = None,
    file_format: option.Format = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help=f"Minimum probability: images below it get the label {_UNKNOWN!r}."
        ),
    ] = None,
    top_k: Annotated[
        int,
        typer.Option("--top-k", "-k", min=1, help="Number of most probable labels per image."),
    ] = 1,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add the probability of each label.")
    ] = False,
    together: Annotated[
        bool,
        typer.Option(
            "--together", help="Take all images into account; for a few hundred images or more."
        ),
    ] = False,
    templates: option.Templates = option.DEFAULT_TEMPLATES,
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
    check_replaces_no_input(output, labels_file, *images)
    check_output_file(output)
    names = parse_labels(labels, labels_file, required=aligner is None)
    paths = list_images(images, quiet)

    print_loading(quiet)
    from ._models import RuntimeOptions, iter_probabilities, report_unreadable

    options = RuntimeOptions(cache, device, n_jobs, quiet)
    classifier = _make_classifier(names, aligner, templates, threshold, options)
    classes = [str(name) for name in classifier.classes_]
    if top_k > len(classes):
        raise typer.BadParameter(
            f"{top_k} is larger than the number of labels, {len(classes)}.", param_hint="--top-k"
        )
    n_ranks = top_k if top_k > 1 else 0  # --top-k 1 is the label itself
    errors: dict[int, str] = {}
    columns = _make_columns(classes, n_ranks, probabilities)
    with Table(columns, output, file_format) as table:
        for rows, batch, batch_errors in iter_probabilities(classifier, paths, options, together):
            errors |= {rows.start + row: problem for row, problem in batch_errors.items()}
            names, name_probabilities = classifier._choose_labels(batch)
            for row, path in enumerate(paths[rows]):
                if row in batch_errors:
                    cells: list[Any] = [None] * (len(columns) - 2)
                else:
                    cells = [str(names[row]), _round(name_probabilities[row])]
                    cells += _make_cells(classes, batch[row], n_ranks, probabilities)
                table.write([FileName(path), *cells, batch_errors.get(row)])
            table.flush()
        if table.file_format == "table" and table.output is None:
            table.drop_columns(_find_repeated_columns(table.rows, n_ranks, len(errors)))
    report_unreadable(errors, len(paths))
    n_classified = len(paths) - len(errors)
    if table.output is not None and n_classified:
        noun = "image" if n_classified == 1 else "images"
        print_message(f"Classified {n_classified:,} {noun}. Saved in {str(output)!r}.", quiet)
    if len(errors) == len(paths):
        raise typer.Exit(1)


def _make_classifier(
    names: Any, source: str | None, templates: str, threshold: float | None, options: Any
) -> Any:
    """Return the classifier of a saved model, or one of the names."""
    from ..zero_shot import ZeroShotClassifier
    from ._models import extract_aligner, load_model, select_classifier

    model = load_model(source, options)
    classifier = select_classifier(model, names, templates, source, options.quiet)
    if classifier is not None:
        return classifier if threshold is None else classifier.set_params(threshold=threshold)
    if names is None:
        raise typer.BadParameter(
            f"{source!r} has no labels, because it is not a classifier. Set --labels 'cat,dog'.",
            param_hint="--aligner",
        )
    aligner = extract_aligner(model)
    return ZeroShotClassifier(names, aligner=aligner, templates=templates, threshold=threshold)


def _make_columns(classes: list[str], n_ranks: int, probabilities: bool) -> list[str]:
    columns = ["path", "label", "probability"]
    for rank in range(1, n_ranks + 1):
        columns += [f"label_{rank}", f"probability_{rank}"]
    if probabilities:
        columns += [f"probability:{name}" for name in classes]
    return [*columns, "error"]


def _find_repeated_columns(rows: list[Any], n_ranks: int, n_errors: int) -> list[str]:
    """Return the columns that a table on a terminal does not need, where space is scarce.

    `report_unreadable` prints the errors, and the first of the most probable labels is usually
    the label itself.
    """
    from ._models import N_ERRORS_SHOWN

    repeated = ["error"] if n_errors <= N_ERRORS_SHOWN else []
    if n_ranks and all(row[1:3] == row[3:5] for row in rows):
        repeated += ["label_1", "probability_1"]
    return repeated


def _make_cells(classes: list[str], row: Any, n_ranks: int, probabilities: bool) -> list[Any]:
    """Return the cells of an image's row of probabilities for --top-k and --probabilities."""
    cells: list[Any] = []
    for code in (-row).argsort(kind="stable")[:n_ranks]:
        cells += [classes[code], _round(row[code])]
    if probabilities:
        cells += map(_round, row)
    return cells


def _round(probability: float) -> float:
    return float(f"{probability:.6g}")
