"""``sklearn-ape demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._options import NJobs, Quiet, RandomState
from ._output import check_folder


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the report.")] = Path(
        "demo_report"
    ),
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the feature cache; by default your own.")
    ] = None,
    random_state: RandomState = 0,
    n_jobs: NJobs = -1,
    quiet: Quiet = False,
) -> None:
    """Align real encoders on 1,900 captioned images and write a report.

    Example: sklearn-ape demo --output demo_report
    """
    check_folder(output)
    output.mkdir(parents=True, exist_ok=True)
    from .._demo import run_demo
    from .._report import print_result, write_report

    result = run_demo(cache, random_state=random_state, n_jobs=n_jobs, verbose=int(not quiet))
    print_result(result)
    page = write_report(result, output)
    print(f"\nReport with images: {page.resolve().as_uri()}")
