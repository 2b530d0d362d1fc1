"""How a fit is run: here, in a process of its own, by epoch, or as a grid search."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV, GroupKFold
from skorch.callbacks import Callback

from sklearn_ape import APEAligner
from sklearn_ape.training import embed

from .data import Train, Trial, World
from .methods import COSINE, LIT, METHODS, fit_and_test, recalls
from .plan import BY_DEPTH, BY_EPOCH, Task, data_of

_EVERY = 0.02
EPOCHS_OF_CURVE = {LIT: 12}
EPOCHS_OF_OTHER_CURVES = 100
DEPTHS = tuple(range(1, 9))
_DEPTH_WIDTH = 256
_DEPTH_EPOCHS = 40
_DEPTH_FOLDS = 3


def run(task: Task, world: World, effort: float) -> list[dict[str, Any]]:
    """Run a task and return its rows."""
    if task.setting == BY_DEPTH:
        rows = _depths(task.fit, world)
    elif task.setting == BY_EPOCH:
        rows = _curve(task.fit, *data_of(world, BY_EPOCH, task.seed), task.seed, world, effort)
    else:
        given = (task.fit, *data_of(world, task.setting, task.seed), world.head, task.seed, effort)
        rows = _in_own_process(given) if task.isolated else fit_and_test(*given)
    known = {"table": task.table, "fit": task.fit, "setting": task.setting, "seed": task.seed}
    return [known | row for row in rows]


def _in_own_process(given: tuple[Any, ...]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "given"), Path(folder, "rows")
        source.write_bytes(pickle.dumps(given))
        script = Path(sys.argv[0]).resolve()
        command = [sys.executable, str(script), "--one-fit", str(source), str(target)]
        subprocess.run(command, check=True)
        return json.loads(target.read_text(encoding="utf-8"))


def one_fit(source: Path, target: Path) -> None:
    """Run a pickled fit in this process, and measure the memory that it takes."""
    given = pickle.loads(source.read_bytes())
    with PeakMemory() as memory:
        rows = fit_and_test(*given)
    measured = {"peak_mb": round(memory.peak), "added_mb": round(memory.peak - memory.before)}
    target.write_text(json.dumps([row | measured for row in rows]), encoding="utf-8")


class PeakMemory:
    """The most resident memory of this process inside a with block, in MB, by looking often."""

    def __enter__(self) -> Self:
        import psutil

        self._process = psutil.Process()
        self.before = self.peak = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _now(self) -> float:
        return self._process.memory_info().rss / 1e6

    def _watch(self) -> None:
        while not self._over.wait(_EVERY):
            self.peak = max(self.peak, self._now())


class Curve(Callback):
    """Recall of training pairs and of held-out pairs after every epoch.

    As many training pairs are taken as there are held-out ones, since recall gets harder with the
    number of captions.
    """

    def __init__(self, tests: list[Trial], words: bool) -> None:
        self.tests = tests
        self.words = words
        self.rows: list[dict[str, Any]] = []

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # aligners copy their callbacks; this one is read afterwards

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.seconds = 0.0
        self.start = time.perf_counter()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Measure; the time that this takes is not the training's."""
        self.seconds += time.perf_counter() - self.start
        for test in self.tests:
            text = test.text
            if self.words:
                text = net.module_.text_head.tokenize(test.captions)
            image, text = (
                embed(net.module_, side, torch.from_numpy(features), net.device)
                for side, features in (("image", test.image), ("text", text))
            )
            measured = {"test": test.name, "scores": COSINE, "step": len(net.history)}
            measured |= recalls(image @ text.T, test.pairs) | {"seconds": round(self.seconds, 2)}
            self.rows.append(measured)
        self.start = time.perf_counter()


def _curve(
    name: str, train: Train, tests: list[Trial], seed: int, world: World, effort: float
) -> list[dict[str, Any]]:
    held_out = tests[0]._replace(name="held-out pairs")
    rows = np.random.default_rng(seed).permutation(len(train.captions))[: len(held_out.image)]
    captions = [train.captions[row] for row in rows]  # all different, as those held out
    pairs = np.column_stack([np.arange(len(rows))] * 2)
    seen = Trial("training pairs", train.image[rows], train.text[rows], captions, pairs)
    curve = Curve([seen, held_out], METHODS[name].words)
    n_epochs = round(effort * EPOCHS_OF_CURVE.get(name, EPOCHS_OF_OTHER_CURVES))
    fit_and_test(
        name, train, [], world.head, seed, 100 * effort, (curve,),
        early_stopping=False, max_epochs=max(2, n_epochs),
    )  # fmt: skip
    return [row | {"method": name, "n_pairs": len(train.captions)} for row in curve.rows]


def _score_by_image(aligner: Any, X: np.ndarray, y: np.ndarray) -> float:
    """Return the score where equal features are one image: a few emoji have two names."""
    return aligner.score(X, y, groups=np.unique(X, axis=0, return_inverse=True)[1])


def _depths(kind: str, world: World) -> list[dict[str, Any]]:
    """Search over the depth of one kind of head."""
    aligner = APEAligner(
        init=None,
        head=kind,
        width=_DEPTH_WIDTH,
        max_epochs=2 if world.quick else _DEPTH_EPOCHS,
        n_iter_no_change=8,
        refit=False,
        random_state=0,
    )
    depths = DEPTHS[:2] if world.quick else DEPTHS
    search = GridSearchCV(
        aligner,
        {"depth": depths},
        scoring=_score_by_image,
        cv=GroupKFold(_DEPTH_FOLDS),
        refit=False,
        n_jobs=-1,
    )
    search.fit(world.emoji.image, world.emoji.text, groups=world.emoji.concepts)
    found = search.cv_results_
    return [
        {
            "method": kind,
            "test": "emoji, folds by concept",
            "step": depth,
            "n_pairs": len(world.emoji.captions),
            "score": round(100 * float(found["mean_test_score"][i]), 3),
            "spread": round(100 * float(found["std_test_score"][i]), 3),
            "seconds": round(float(found["mean_fit_time"][i]), 2),
            "note": f"width {_DEPTH_WIDTH}, at most {aligner.max_epochs} epochs",
        }
        for i, depth in enumerate(depths)
    ]
