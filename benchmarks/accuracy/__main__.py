"""Measure all methods on the features of the same two frozen encoders (tables A to H).

    python benchmarks/accuracy.py                    # everything; goes on where it stopped
    python benchmarks/accuracy.py --tables AB --seeds 1 --time-budget 20
    python benchmarks/accuracy.py --report           # the tables again, without a fit

A  methods, on unseen kinds of images and within a collection
B  accuracy by number of pairs and by seconds
C  parameters, seconds and memory of APE against LiT
D  recall of training and held-out pairs by epoch
E  depth × kind of head, by grid search
F  distribution shift
G  curated against random pairs
H  where LiT overtakes

Every fit is a row, or some, of accuracy.csv in the output folder, written when it is done; what
is there is not run again (--redo takes a method's rows out). The tables and figures are written
next to it. Needs Debian's openclipart-png, openclipart-svg and tuxpaint-stamps-default, and the
starter extra; figures need matplotlib. Choices in here were made on training pairs, not on stamps.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from benchmarks.accuracy import plan
from benchmarks.accuracy.data import World
from benchmarks.accuracy.figures import draw
from benchmarks.accuracy.report import MAKERS, report
from benchmarks.accuracy.results import Results
from benchmarks.accuracy.runs import one_fit, run


def main() -> int:
    options = _options()
    results = Results(options.output / "accuracy.csv")
    if options.redo:
        results.forget(options.redo)
    failed = 0 if options.report else _run_all(options, results)
    report(results.rows, options.tables, options.output)
    draw(results.rows, options.tables, options.output)
    return int(failed > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", default="".join(MAKERS), help="such as AB or A,B")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", default="features-cache", help="folder of the feature cache")
    parser.add_argument("--output", type=Path, help="folder of results (default: docs/results)")
    parser.add_argument("--effort", type=float, default=1.0, help="factor of epochs and seconds")
    parser.add_argument("--time-budget", type=float, help="minutes after which no fit is begun")
    parser.add_argument("--redo", action="append", metavar="METHOD", help="run its fits again")
    parser.add_argument("--report", action="store_true", help="print what is there, fit nothing")
    parser.add_argument("--quick", action="store_true", help="a few pairs and epochs, to try it")
    options = parser.parse_args()
    options.tables = "".join(dict.fromkeys(options.tables.upper().replace(",", "")))
    if unknown := set(options.tables) - set(MAKERS):
        parser.error(
            f"there is no table {', '.join(sorted(unknown))}; there are {''.join(MAKERS)}"
        )
    if options.quick:
        options.seeds, options.effort = 1, 0.1
    if options.output is None:
        # Trial runs must not mix with the real rows.
        trial = Path(tempfile.gettempdir(), "accuracy-quick")
        real = Path(__file__).resolve().parents[2] / "docs" / "results"
        options.output = trial if options.quick else real
    return options


def _run_all(options: argparse.Namespace, results: Results) -> int:
    """Run what is not there yet; return how many fits failed."""
    sizes = plan.QUICK_SIZES if options.quick else plan.SIZES
    wanted = plan.tasks(options.tables, options.seeds, sizes)
    done = results.done()
    todo = [task for task in wanted if task.key not in done]
    print(f"{len(todo)} of {len(wanted)} fits to run; rows go to {results.file}", flush=True)
    world = World(options.cache, options.quick)
    interrupt = _Interrupt()
    failed, start = 0, time.monotonic()
    for number, task in enumerate(todo, 1):
        minutes = (time.monotonic() - start) / 60
        if options.time_budget is not None and minutes > options.time_budget:
            print(f"{minutes:.0f} minutes are over: {len(todo) - number + 1} fits are left.")
            break
        print(f"[{number}/{len(todo)}, {minutes:.1f} min] ", end="", flush=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("once", UserWarning)
                rows = run(task, world, options.effort)
        except ImportError:
            raise  # a collection or package is not installed: it fails all
        except KeyboardInterrupt:
            rows = []
        except Exception as error:
            failed += 1
            what = traceback.format_exception_only(error)[-1].strip()
            print(f"{task.setting}, {task.fit}, seed {task.seed} FAILED: {what}", flush=True)
            continue
        if interrupt.came:
            print("\nInterrupted: this fit is lost, the others are kept.")
            break
        results.append(rows)
        print(_line(task, rows), flush=True)
    return failed


class _Interrupt:
    """Remembers Ctrl-C: a training takes it as its own end and returns as if it were whole."""

    def __init__(self) -> None:
        self.came = False
        signal.signal(signal.SIGINT, self._remember)

    def _remember(self, *signal_and_frame: Any) -> None:
        self.came = True
        raise KeyboardInterrupt


def _line(task: plan.Task, rows: list[dict[str, Any]]) -> str:
    row = rows[-1] if task.setting in (plan.BY_EPOCH, plan.BY_DEPTH) else rows[0]
    shown = [f"{row[key]:.1f}" for key in ("i2t@1", "t2i@1", "score") if row.get(key, "") != ""]
    seconds = f" in {row['seconds']:.1f} s" if "seconds" in row else ""
    note = f"; {row['note']}" if row.get("note") else ""
    return f"{task.setting}, {task.fit}, seed {task.seed}: {' / '.join(shown)}{seconds}{note}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one-fit"]:
        one_fit(*map(Path, sys.argv[2:]))
    else:
        sys.exit(main())
