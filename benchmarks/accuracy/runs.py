"""Runs of a fit: in this process, in a separate process, by epoch, or as a grid search."""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV, GroupKFold
from skorch.callbacks import Callback

from sklearn_ape import APEAligner
from sklearn_ape.training import embed

from .._process import PeakMemory, run_module
from .data import Collections, EvaluationSet, TrainingPairs
from .methods import COSINE, LIT, METHODS, PLAIN_PARAMETERS, compute_recall, fit_and_test
from .plan import BY_DEPTH, BY_EPOCH, Task, load_setting

EPOCHS_OF_CURVE = {LIT: 12}
DEFAULT_EPOCHS_OF_CURVE = 100
DEPTHS = tuple(range(1, 9))
_DEPTH_WIDTH = 256
_DEPTH_EPOCHS = 40
_DEPTH_FOLDS = 3


def run(task: Task, collections: Collections, effort: float) -> list[dict[str, Any]]:
    """Run a task and return its rows."""
    if task.setting == BY_DEPTH:
        rows = _search_depths(task.fit, collections)
    elif task.setting == BY_EPOCH:
        rows = _run_curve(
            task.fit,
            *load_setting(collections, BY_EPOCH, task.seed),
            task.seed,
            collections,
            effort,
        )
    else:
        arguments = (
            task.fit,
            *load_setting(collections, task.setting, task.seed),
            collections.head,
            task.seed,
            effort,
        )
        rows = _run_isolated(arguments) if task.isolated else fit_and_test(*arguments)
    columns = {"table": task.table, "fit": task.fit, "setting": task.setting, "seed": task.seed}
    return [columns | row for row in rows]


def _run_isolated(arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "arguments"), Path(folder, "rows")
        source.write_bytes(pickle.dumps(arguments))
        run_module(__name__, source, target)
        return json.loads(target.read_text(encoding="utf-8"))


def _run_pickled(source: Path, target: Path) -> None:
    """Run a pickled fit in this process, and measure its memory."""
    arguments = pickle.loads(source.read_bytes())
    with PeakMemory() as memory:
        rows = fit_and_test(*arguments)
    megabytes = {
        "peak_mb": round(memory.peak / 1e6),
        "added_mb": round((memory.peak - memory.before) / 1e6),
    }
    target.write_text(json.dumps([row | megabytes for row in rows]), encoding="utf-8")


class Curve(Callback):
    """Callback that measures the recall of test sets after every epoch.

    Parameters
    ----------
    tests : list of EvaluationSet
        Test sets. They should be of equal size, since recall drops with the number of captions.
    takes_captions : bool
        Whether the text head takes captions instead of their features.
    """

    def __init__(self, tests: list[EvaluationSet], takes_captions: bool) -> None:
        self.tests = tests
        self.takes_captions = takes_captions
        self.rows: list[dict[str, Any]] = []

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # aligners copy their callbacks, but `rows` is read from this object

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.seconds = 0.0
        self.start = time.perf_counter()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Measure recall; the time for this is not part of the training time."""
        self.seconds += time.perf_counter() - self.start
        for test in self.tests:
            text = test.text
            if self.takes_captions:
                text = net.module_.text_head.tokenize(test.captions)
            image, text = (
                embed(net.module_, side, torch.from_numpy(features), net.device)
                for side, features in (("image", test.image), ("text", text))
            )
            row = {"test": test.name, "scores": COSINE, "step": len(net.history)}
            row |= compute_recall(image @ text.T, test.pairs) | {"seconds": round(self.seconds, 2)}
            self.rows.append(row)
        self.start = time.perf_counter()


def _run_curve(
    name: str,
    train: TrainingPairs,
    tests: list[EvaluationSet],
    seed: int,
    collections: Collections,
    effort: float,
) -> list[dict[str, Any]]:
    held_out = tests[0]._replace(name="held-out pairs")
    rows = np.random.default_rng(seed).permutation(len(train.captions))[: len(held_out.image)]
    captions = [train.captions[row] for row in rows]  # distinct, as the held-out captions are
    pairs = np.column_stack([np.arange(len(rows))] * 2)
    train_test = EvaluationSet(
        "training pairs", train.image[rows], train.text[rows], captions, pairs
    )
    curve = Curve([train_test, held_out], METHODS[name].takes_captions)
    n_epochs = round(effort * EPOCHS_OF_CURVE.get(name, DEFAULT_EPOCHS_OF_CURVE))
    fit_and_test(
        name, train, [], collections.head, seed, 100 * effort, (curve,),
        early_stopping=False, max_epochs=max(2, n_epochs),
    )  # fmt: skip
    return [row | {"method": name, "n_pairs": len(train.captions)} for row in curve.rows]


def _score_by_image(aligner: Any, X: np.ndarray, y: np.ndarray) -> float:
    """Return the score with equal features as one image, since a few emoji have two names."""
    return aligner.score(X, y, groups=np.unique(X, axis=0, return_inverse=True)[1])


def _search_depths(kind: str, collections: Collections) -> list[dict[str, Any]]:
    """Run a grid search over the depth of one kind of head."""
    aligner = APEAligner(**PLAIN_PARAMETERS).set_params(
        head=kind,
        width=_DEPTH_WIDTH,
        max_epochs=2 if collections.quick else _DEPTH_EPOCHS,
        n_iter_no_change=8,
        refit=False,
        random_state=0,
    )
    depths = DEPTHS[:2] if collections.quick else DEPTHS
    search = GridSearchCV(
        aligner,
        {"depth": depths},
        scoring=_score_by_image,
        cv=GroupKFold(_DEPTH_FOLDS),
        refit=False,
        n_jobs=-1,
    )
    search.fit(collections.emoji.image, collections.emoji.text, groups=collections.emoji.concepts)
    results = search.cv_results_
    return [
        {
            "method": kind,
            "test": "emoji, folds by concept",
            "step": depth,
            "n_pairs": len(collections.emoji.captions),
            "score": round(100 * float(results["mean_test_score"][i]), 3),
            "std": round(100 * float(results["std_test_score"][i]), 3),
            "seconds": round(float(results["mean_fit_time"][i]), 2),
            "note": f"width {_DEPTH_WIDTH}, at most {aligner.max_epochs} epochs",
        }
        for i, depth in enumerate(depths)
    ]


if __name__ == "__main__":
    _run_pickled(*map(Path, sys.argv[1:]))
