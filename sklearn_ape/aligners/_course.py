"""The course of a training: who watches it, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet

from .._callbacks import FitContext
from .._warnings import warn
from ..training import (
    BestEpoch,
    EpochProgress,
    PairDataset,
    Ranks,
    StopWhenPatient,
    ValidationRecall,
)
from ._callbacks import epoch_bridges

_KEPT = ("epoch", "train_loss", "valid_recall", "logit_scale", "dur")


class Course(NamedTuple):
    """What a training leaves behind beside its weights."""

    history: list[dict[str, Any]]
    n_epochs: int
    best_epoch: int
    was_stopped: bool = False


def is_first(ranks: Ranks | None) -> bool:
    """Say whether this process is the one that tells of progress."""
    return ranks is None or ranks.rank == 0


def watchers(
    aligner: Any,
    valid: PairDataset | None,
    fit: FitContext,
    learned_so_far: Callable[[NeuralNet], dict[str, Any]],
    name: str,
    keeping: list[Any],
    ranks: Ranks | None = None,
) -> list[Any]:
    """Return the callbacks of a run that finds the best epoch, in their order.

    Parameters
    ----------
    aligner : estimator
        Its ``n_iter_no_change``, ``max_epochs``, ``verbose`` and ``callbacks`` are read.
    valid : PairDataset or None
        The pairs held out; None keeps the last epoch.
    fit : FitContext
        Tells scikit-learn's callbacks.
    learned_so_far : callable
        Takes the net and returns the aligner's fitted attributes, for callbacks that score.
    name : str
        Stands before the progress bar.
    keeping : list of (str, skorch.callbacks.Callback)
        Keep what the others have noted of an epoch.
    ranks : Ranks or None, default=None
        Processes that train together, of which the first shows the bar.

    Returns
    -------
    callbacks : list of (str, skorch.callbacks.Callback)
        For a net that is fitted once.
    """
    found: list[Any] = [("recall", ValidationRecall(valid))]
    best = None
    if valid is not None:
        best = BestEpoch(
            "valid_recall",
            patience=aligner.n_iter_no_change,
            lower_is_better=False,
            threshold=0.0,
            load_best=True,
        )
        found.append(("best", best))
    if aligner.verbose == 1 and is_first(ranks):
        found.append(("progress", EpochProgress(aligner.max_epochs, name)))
    bridges = epoch_bridges(fit, learned_so_far)
    found += [(f"bridge{i}", bridge) for i, bridge in enumerate(bridges)]
    # Deep copies: skorch writes into its callbacks, and parameters are not ours to change.
    found += deepcopy(list(aligner.callbacks or []))
    found += keeping
    return found if best is None else [*found, ("stop", StopWhenPatient(best))]


def course_of(net: NeuralNet, aligner: Any) -> Course:
    """Return the course of a training by `watchers`; warn when it was stopped from outside.

    Raises
    ------
    KeyboardInterrupt
        When the very first epoch was interrupted: there is nothing to keep.
    """
    rows = [row for row in net.history if "train_loss" in row and "logit_scale" in row]
    if not rows:
        raise KeyboardInterrupt
    history = [
        {key: row[key] if key == "epoch" else float(row[key]) for key in _KEPT if key in row}
        for row in rows
    ]
    best = dict(net.callbacks_).get("best")
    best_epoch = (best and best.best_epoch_) or len(rows)
    patience_ran_out = best is not None and best.misses_ >= best.patience
    was_stopped = len(rows) < aligner.max_epochs and not patience_ran_out
    if was_stopped:
        warn(
            f"Training was stopped after {len(rows)} of {aligner.max_epochs} epochs; epoch "
            f"{best_epoch} is taken as the best.",
            ConvergenceWarning,
        )
    return Course(history, len(rows), best_epoch, was_stopped)
