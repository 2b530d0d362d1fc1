"""Accuracy of all methods on features of the same two frozen encoders (tables A to H).

    python -m benchmarks.accuracy                    # everything; resumes an interrupted run
    python -m benchmarks.accuracy --tables AB --seeds 1 --time-budget 20
    python -m benchmarks.accuracy --report           # tables and figures only, without fits

A  methods, on other kinds of images and within a collection
B  accuracy by number of pairs and by seconds
C  parameters, seconds and memory of APE and LiT
D  recall of training and held-out pairs by epoch
E  depth × kind of head, by grid search
F  distribution shift
G  curated and random pairs
H  settings in which LiT is better than the default aligner

The rows of each fit are appended to accuracy.csv in the output folder when the fit ends. Fits that
have rows are skipped; --redo METHOD removes the rows of a method. Tables and figures are written
to the same folder. Requires Debian's openclipart-png, openclipart-svg and
tuxpaint-stamps-default, and the starter extra; figures require matplotlib. Parameters of this
benchmark were chosen on training pairs, not on stamps.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
import warnings
from typing import Any

from benchmarks._results import Results, choose_folder, make_results_parser

from . import plan
from .data import Collections
from .figures import draw_figures
from .report import TABLE_MAKERS, write_tables
from .runs import run


def main() -> int:
    parser = make_results_parser("accuracy", __doc__)
    parser.add_argument(
        "--tables",
        default="".join(TABLE_MAKERS),
        help="letters of tables, such as AB (default: all)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument(
        "--cache", default="features-cache", help="feature cache folder (default: features-cache)"
    )
    parser.add_argument(
        "--effort", type=float, default=1.0, help="factor of the limits of epochs and seconds"
    )
    parser.add_argument(
        "--time-budget", type=float, metavar="MINUTES", help="start no fit after this time"
    )
    parser.add_argument(
        "--redo",
        action="append",
        metavar="METHOD",
        help="run the fits of a method again (repeatable)",
    )
    parser.add_argument(
        "--report", action="store_true", help="write tables and figures, fit nothing"
    )
    options = parser.parse_args()
    options.tables = "".join(dict.fromkeys(options.tables.upper().replace(",", "")))
    if unknown := sorted(set(options.tables) - set(TABLE_MAKERS)):
        parser.error(f"unknown tables: {', '.join(unknown)}. Choose from {''.join(TABLE_MAKERS)}.")
    if options.quick:
        options.seeds, options.effort = 1, 0.1
    folder = choose_folder(options)
    results = Results(folder / "accuracy.csv", plan.COLUMNS)
    if options.redo:
        if unknown := sorted(set(options.redo) - {row["fit"] for row in results.rows}):
            parser.error(f"--redo: {results.path} has no rows of {', '.join(unknown)}.")
        results.remove("fit", options.redo)
    n_failed = 0 if options.report else _run_missing_fits(options, results)
    write_tables(results.rows, options.tables, folder)
    draw_figures(results.rows, options.tables, folder)
    return int(n_failed > 0)


def _run_missing_fits(options: argparse.Namespace, results: Results) -> int:
    """Run the fits that have no rows yet; return how many failed."""
    sizes = plan.QUICK_SIZES if options.quick else plan.SIZES
    tasks = plan.plan_tasks(options.tables, options.seeds, sizes)
    completed = plan.find_completed_fits(results.rows)
    missing = [task for task in tasks if task.key not in completed]
    print(f"Running {len(missing)} of {len(tasks)} fits; rows go to {results.path}", flush=True)
    collections = Collections(options.cache, options.quick)
    interrupt = _Interrupt()
    n_failed, start = 0, time.monotonic()
    for number, task in enumerate(missing, 1):
        minutes = (time.monotonic() - start) / 60
        if options.time_budget is not None and minutes > options.time_budget:
            n_left = len(missing) - number + 1
            print(f"Stopped after {minutes:.0f} minutes, {n_left} fits before the end.")
            break
        print(f"[{number}/{len(missing)}, {minutes:.1f} min] ", end="", flush=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("once", UserWarning)
                rows = run(task, collections, options.effort)
        except ImportError:
            raise  # a missing package or collection makes all fits fail
        except KeyboardInterrupt:
            rows = []
        except Exception as error:
            n_failed += 1
            message = traceback.format_exception_only(error)[-1].strip()
            print(f"{task.setting}, {task.fit}, seed {task.seed} FAILED: {message}", flush=True)
            continue
        if interrupt.received:
            print("\nInterrupted: this fit is discarded, the rows of earlier fits are saved.")
            break
        results.append(rows)
        print(_summarize(task, rows), flush=True)
    return n_failed


class _Interrupt:
    """Record of Ctrl-C: skorch ends training on it and returns as if training were complete."""

    def __init__(self) -> None:
        self.received = False
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, *signal_and_frame: Any) -> None:
        self.received = True
        raise KeyboardInterrupt


def _summarize(task: plan.Task, rows: list[dict[str, Any]]) -> str:
    row = rows[-1] if task.setting in (plan.BY_EPOCH, plan.BY_DEPTH) else rows[0]
    scores = [f"{row[key]:.1f}" for key in ("i2t@1", "t2i@1", "score") if row.get(key, "") != ""]
    seconds = f" in {row['seconds']:.1f} s" if "seconds" in row else ""
    note = f"; {row['note']}" if row.get("note") else ""
    return f"{task.setting}, {task.fit}, seed {task.seed}: {' / '.join(scores)}{seconds}{note}"


if __name__ == "__main__":
    sys.exit(main())
