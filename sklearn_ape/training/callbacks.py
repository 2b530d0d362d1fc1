"""Callbacks used during training, and the training history."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping
from tqdm import tqdm

from ..metrics import retrieval_report
from ..utils.sklearn_compat import FitContext
from ..utils.warnings import warn
from .data import PairDataset
from .distributed import Ranks
from .net import AlignmentNet, embed


class ValidationRecall(Callback):
    """Records the logit scale and the recall on held-out pairs, as ``valid_recall``.

    It is the mean of recall@1, 5 and 10 in both directions over all held-out pairs at once, so it
    does not depend on the batch size as a loss does.

    Parameters
    ----------
    dataset : PairDataset or None
        The held-out pairs; None records the logit scale alone.
    """

    def __init__(self, dataset: PairDataset | None) -> None:
        self.dataset = dataset

    def on_epoch_end(self, net: AlignmentNet, **kwargs: Any) -> None:
        """Evaluate the epoch's weights."""
        net.history.record("logit_scale", net.criterion_.logit_scale.item())
        if self.dataset is None:
            return
        image = embed(net.module_, "image", self.dataset.image, net.device)
        text = embed(net.module_, "text", self.dataset.text, net.device)
        if not (np.isfinite(image).all() and np.isfinite(text).all()):
            raise diverged(net)
        recall = mean_recall(image, text, self.dataset.pairs.numpy())
        if net.ranks is not None:  # one rounding error, and one of them would stop early
            recall = net.ranks.of_first(recall)
        net.history.record("valid_recall", recall)


def mean_recall(image: np.ndarray, text: np.ndarray, pairs: np.ndarray) -> float:
    """Return the mean of recall@1, 5 and 10 in both directions.

    Parameters
    ----------
    image, text : ndarray of shape (n, n_components)
        Embeddings of length 1.
    pairs : ndarray of shape (n_pairs, 2)
        Rows of images and of captions that belong together.

    Returns
    -------
    recall : float
        Between 0 and 1.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.training import mean_recall
    >>> embeddings = np.eye(20, dtype=np.float32)
    >>> mean_recall(embeddings, embeddings, np.column_stack([np.arange(20)] * 2))
    1.0
    """
    report = retrieval_report(image, text, pairs)
    return float(np.mean([recall for way in report.values() for recall in way.values()]))


class BestEpoch(EarlyStopping):
    """Remembers the best epoch, its logit scale included, and says when patience has run out.

    Parameters
    ----------
    monitor, patience, threshold, threshold_mode, lower_is_better, sink, load_best : object
        Those of `skorch.callbacks.EarlyStopping`.
    """

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Compare the epoch with the best one."""
        # skorch would stop here, before later callbacks have seen the epoch: StopWhenPatient does.
        with suppress(KeyboardInterrupt):
            super().on_epoch_end(net, **kwargs)
        if self.best_epoch_ == net.history[-1, "epoch"]:
            self.best_criterion_ = deepcopy(net.criterion_.state_dict())

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Restore weights and logit scale."""
        if self.best_epoch_:
            super().on_train_end(net, **kwargs)
            net.criterion_.load_state_dict(self.best_criterion_)

    def _sink(self, text: str, verbose: int) -> None:
        """Swallow skorch's remarks, which the aligner's ``history_`` holds."""


class StopWhenPatient(Callback):
    """Ends training when a `BestEpoch` has waited long enough.

    Parameters
    ----------
    best : BestEpoch
        A callback of the same net, called before this one.
    """

    def __init__(self, best: BestEpoch) -> None:
        self.best = best

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Stop, as skorch's callbacks do."""
        if self.best.misses_ >= self.best.patience:
            raise KeyboardInterrupt


class DivergenceGuard(Callback):
    """Stops a training whose loss or weights are no longer numbers."""

    def on_batch_end(
        self, net: NeuralNet, batch: Any = None, training: bool = False, **kwargs: Any
    ) -> None:
        """Look at the loss of the batch."""
        if training and not math.isfinite(net.history[-1]["batches"][-1]["train_loss"]):
            raise diverged(net)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Look at the weights after the last batch."""
        if not all(torch.isfinite(p).all() for p in net.module_.parameters()):
            raise diverged(net)


class EpochProgress(Callback):
    """A progress bar over epochs with rate, time left, loss and recall.

    Parameters
    ----------
    n_epochs : int
        The most epochs.
    name : str
        Stands before the bar.
    """

    def __init__(self, n_epochs: int, name: str) -> None:
        self.n_epochs = n_epochs
        self.name = name

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Show an empty bar."""
        self.bar_ = tqdm(total=self.n_epochs, unit="epoch", desc=self.name)

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Begin where a checkpoint lets training go on."""
        n_done = len(net.history) - 1
        if n_done > self.bar_.n:
            self.bar_.initial = self.bar_.n = n_done

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Move on by one epoch."""
        row = net.history[-1]
        shown = {key: f"{row[key]:.3f}" for key in ("train_loss", "valid_recall") if key in row}
        self.bar_.set_postfix(shown, refresh=False)
        self.bar_.update()

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Leave the bar as it stands."""
        self.bar_.close()


def diverged(net: NeuralNet) -> FloatingPointError:
    """Return the error that says what to lower.

    Parameters
    ----------
    net : skorch.NeuralNet
        The one that diverged.

    Returns
    -------
    error : FloatingPointError
        To be raised.
    """
    return FloatingPointError(
        f"Training diverged in epoch {net.history[-1, 'epoch']}: loss, weights or embeddings are "
        f"not finite. Lower learning_rate (now {net.lr:g}) or logit_scale."
    )


def epoch_bridges(
    fit: FitContext, learned_so_far: Callable[[NeuralNet], dict[str, Any]]
) -> list[Callback]:
    """Return what a net needs to report its epochs.

    Parameters
    ----------
    fit : FitContext
        The fit that the epochs are part of.
    learned_so_far : callable
        Takes the net and returns the fitted attributes of the aligner after the epoch, as copies;
        called only for callbacks that ask for a fitted estimator.
    """
    return [] if fit.context is None else [_EpochBridge(fit, learned_so_far)]


class _EpochBridge(Callback):
    def __init__(
        self, fit: FitContext, learned_so_far: Callable[[NeuralNet], dict[str, Any]]
    ) -> None:
        self.fit = fit
        self.learned_so_far = learned_so_far

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        assert self.fit.context is not None
        self.epoch_ = self.fit.context.subcontext(task_name="epoch")
        self.epoch_.call_on_fit_task_begin(estimator=self.fit.estimator, **self.fit.data)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        stop = self.epoch_.call_on_fit_task_end(
            estimator=self.fit.estimator,
            reconstruction_attributes=lambda: self.learned_so_far(net),
            **self.fit.data,
        )
        if stop:
            raise KeyboardInterrupt  # skorch's way of ending a training early


_KEPT = ("epoch", "train_loss", "valid_recall", "logit_scale", "dur")


class TrainingResult(NamedTuple):
    """What a training leaves behind beside its weights."""

    history: list[dict[str, Any]]
    n_epochs: int
    best_epoch: int
    was_stopped: bool = False


def is_first_rank(ranks: Ranks | None) -> bool:
    """Say whether this process is the one that tells of progress."""
    return ranks is None or ranks.rank == 0


def make_callbacks(
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
    if aligner.verbose == 1 and is_first_rank(ranks):
        found.append(("progress", EpochProgress(aligner.max_epochs, name)))
    bridges = epoch_bridges(fit, learned_so_far)
    found += [(f"bridge{i}", bridge) for i, bridge in enumerate(bridges)]
    # Deep copies: skorch writes into its callbacks, and parameters are not ours to change.
    found += deepcopy(list(aligner.callbacks or []))
    found += keeping
    return found if best is None else [*found, ("stop", StopWhenPatient(best))]


def collect_result(net: NeuralNet, aligner: Any) -> TrainingResult:
    """Return the course of a training by `make_callbacks`; warn when it was stopped from outside.

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
    return TrainingResult(history, len(rows), best_epoch, was_stopped)
