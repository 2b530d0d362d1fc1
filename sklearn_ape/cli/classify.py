"""``sklearn-ape classify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._console import say
from ._inputs import label_names, list_images
from ._options import (
    Aligner,
    Cache,
    Device,
    Format,
    Images,
    Labels,
    LabelsFile,
    NJobs,
    Quiet,
    Templates,
)
from ._output import FileName, Table, check_file, form_of

_UNKNOWN = "unknown"


def classify(
    images: Images,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    aligner: Aligner = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File of the results: .csv, .tsv, .json, .jsonl or .parquet. By default "
            "standard output.",
            show_default=False,
        ),
    ] = None,
    form: Format = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help=f"An image whose best label is less probable than this is called {_UNKNOWN!r}.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many of the best labels to give.")] = 1,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add the probabilities of all labels.")
    ] = False,
    templates: Templates = "simple",
    cache: Cache = None,
    device: Device = "auto",
    n_jobs: NJobs = -1,
    quiet: Quiet = False,
) -> None:
    """Name images by the names of classes alone: one row an image.

    Needs no training: without --aligner, the starter model of the package is used.

    Example: sklearn-ape classify photos/ --labels "cat,dog,bird" --threshold 0.5 -o names.csv
    """
    form = form_of(output, form)
    check_file(output)
    names = label_names(labels, labels_file)
    if names is None and aligner is None:
        raise typer.BadParameter("give --labels 'cat,dog' or --labels-file labels.txt.")
    paths = list_images(images, quiet)

    import numpy as np

    from ._models import Machine, iter_predictions, say_unreadable

    machine = Machine(cache, device, n_jobs, quiet)
    classifier, rejects_below = _classifier(names, aligner, templates, threshold, machine)
    classes = [str(name) for name in classifier.classes_]
    if top_k > len(classes):
        raise typer.BadParameter(f"{top_k} is more than the {len(classes)} labels.")
    errors: dict[int, str] = {}
    with Table(_columns(classes, top_k, probabilities), output, form) as table:
        for rows, answer, bad in iter_predictions(
            classifier, paths, classifier.predict_proba, machine
        ):
            errors |= {rows.start + row: message for row, message in bad.items()}
            best = np.argsort(-answer, axis=1, kind="stable")[:, :top_k]
            for row, path in enumerate(paths[rows]):
                if row in bad:
                    table.write([FileName(path)] + [None] * (len(table.columns) - 2) + [bad[row]])
                    continue
                shares = [_rounded(share) for share in answer[row]]
                first = best[row, 0]
                is_known = rejects_below is None or answer[row, first] >= rejects_below
                label = classes[first] if is_known else _UNKNOWN
                cells: list[Any] = [FileName(path), label, shares[first]]
                if top_k > 1:
                    for code in best[row]:
                        cells += [classes[code], shares[code]]
                table.write(cells + (shares if probabilities else []) + [None])
            table.flush()
    say_unreadable(errors, len(paths))
    if output is not None and len(errors) < len(paths):
        say(f"{len(paths) - len(errors):,} images named in {str(output)!r}.", quiet)
    if len(errors) == len(paths):
        raise typer.Exit(1)


def _classifier(
    names: Any, source: str | None, templates: str, threshold: float | None, machine: Any
) -> tuple[Any, float | None]:
    """Return a classifier and its threshold; one that was saved keeps what is not given."""
    from .. import ZeroShotClassifier
    from ._models import aligner_within, open_saved

    saved = open_saved(source, machine)
    if isinstance(saved, ZeroShotClassifier) and names is None:
        if not hasattr(saved, "aligner_"):  # one by name, or the starter model
            saved.set_params(aligner=aligner_within(saved, machine))
        return saved, saved.threshold if threshold is None else threshold
    if names is None:
        raise typer.BadParameter(
            f"{source!r} is an aligner, which knows no labels: give --labels 'cat,dog'."
        )
    aligner = aligner_within(saved, machine)
    return ZeroShotClassifier(names, aligner=aligner, templates=templates), threshold


def _columns(classes: list[str], top_k: int, probabilities: bool) -> list[str]:
    columns = ["path", "label", "probability"]
    if top_k > 1:
        for rank in range(1, top_k + 1):
            columns += [f"label_{rank}", f"probability_{rank}"]
    if probabilities:
        columns += [f"probability:{name}" for name in classes]
    return [*columns, "error"]


def _rounded(share: Any) -> float:
    return float(f"{share:.6g}")
