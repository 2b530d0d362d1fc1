"""Callbacks used during training, and the training history."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, GradientNormClipping

from ..metrics import retrieval_report
from ..utils.linalg import normalize_rows
from ..utils.messages import make_progress_bar, warn
from ..utils.sklearn_compat import FitContext
from .data import PairDataset, count_batches
from .distributed import broadcast
from .net import AlignmentNet, TrainingConfig, cosine_schedule, embed_pairs

_RECALL_KEYS = ("valid_recall", "head_recall", "blend_weight")
_HISTORY_KEYS = ("epoch", "train_loss", *_RECALL_KEYS, "logit_scale", "dur")


class ValidationRecall(Callback):
    """Record the logit scale and the recall on validation pairs, as ``valid_recall``.

    The recall is the mean of recall@1, 5 and 10 in both directions over all validation pairs at
    once. Unlike a loss it does not depend on the batch size.

    Parameters
    ----------
    dataset : PairDataset or None
        Validation pairs. With None only the logit scale is recorded.
    """

    # Recall that an epoch must exceed to become the best one.
    baseline: float | None = None

    def __init__(self, dataset: PairDataset | None) -> None:
        self.dataset = dataset

    def on_epoch_end(self, net: AlignmentNet, **kwargs: Any) -> None:
        """Evaluate the weights after the epoch."""
        if self.dataset is not None:
            image, text = embed_pairs(net.module_, self.dataset, net.device)
            if not (np.isfinite(image).all() and np.isfinite(text).all()):
                raise make_divergence_error(net)
            # Rounding may differ between ranks, and all must stop after the same epoch.
            scores = broadcast(net.ranks, self.score(image, text))
            for name, value in scores.items():
                net.history.record(name, value)
        # Last, because an epoch without it does not count: it was interrupted.
        net.history.record("logit_scale", net.logit_scale)

    def score(self, image: np.ndarray, text: np.ndarray) -> dict[str, float]:
        """Return the values to record for L2-normalized embeddings of the validation pairs."""
        assert self.dataset is not None
        return {"valid_recall": mean_recall(image, text, self.dataset.pairs)}


class BlendRecall(ValidationRecall):
    """Record the recall of blends of a closed-form solution and the head that is trained.

    ``blend_weight`` is the chosen share of the head, ``valid_recall`` the recall of this blend,
    and ``head_recall`` the recall of the head alone.

    Parameters
    ----------
    dataset : PairDataset
        Validation pairs.
    text : ndarray of shape (n_captions, n_features)
        L2-normalized embeddings of their captions by the closed-form solution.
    baseline : float
        Recall of the closed-form solution.
    min_recall : float
        Recall that the best blend must exceed; otherwise the weight is 0.
    """

    # Between 0.3 and 0.7 the weight makes little difference, so that few values are enough.
    weights = (0.2, 0.4, 0.6, 0.8, 1.0)

    # Held-out images are of the same kind as the training images, on which the head is better than
    # on other kinds. The best weight for them is therefore too large for others, for which 0.3 to
    # 0.6 were best with 4,000 to 80,000 icons. Of the weights whose blends are better than both
    # parts, with at least this share of the best recall, the one nearest to 0.4 is chosen.
    preferred_weight, _min_relative_recall = 0.4, 0.98
    baseline: float

    def __init__(
        self, dataset: PairDataset, text: np.ndarray, baseline: float, min_recall: float
    ) -> None:
        super().__init__(dataset)
        self.text = text
        self.baseline = baseline
        self.min_recall = min_recall

    def score(self, image: np.ndarray, text: np.ndarray) -> dict[str, float]:
        """Return the recalls of the chosen blend and of the head, and the weight of the blend."""
        assert self.dataset is not None
        recalls = {}
        for weight in self.weights:
            blend = normalize_rows((1 - weight) * self.text + weight * text)
            recalls[weight] = mean_recall(image, blend, self.dataset.pairs)
        weight = self.choose_weight(recalls)
        return {
            "valid_recall": recalls[weight] if weight > 0 else self.baseline,
            "head_recall": recalls[1.0],
            "blend_weight": weight,
        }

    def choose_weight(self, recalls: dict[float, float]) -> float:
        """Return the weight of the blend that is used, given the recall of every weight."""
        best = max(recalls, key=recalls.__getitem__)
        if recalls[best] <= self.min_recall:
            return 0.0
        least = max(self._min_relative_recall * recalls[best], self.baseline, recalls[1.0])
        good = [weight for weight, recall in recalls.items() if recall > least]
        return min(good or [best], key=lambda weight: abs(weight - self.preferred_weight))


def mean_recall(image: np.ndarray, text: np.ndarray, pairs: np.ndarray) -> float:
    """Return the mean of recall@1, 5 and 10 in both directions.

    `pairs` are rows of L2-normalized embeddings of images and of captions that belong together.

    >>> embeddings = np.eye(20, dtype=np.float32)
    >>> mean_recall(embeddings, embeddings, np.column_stack([np.arange(20)] * 2))
    1.0
    """
    report = retrieval_report(image, text, pairs)
    return float(np.mean([recall for ks in report.values() for recall in ks.values()]))


class BestEpoch(EarlyStopping):
    """Remember weights and logit scale of the best epoch, and count the epochs since.

    Parameters
    ----------
    *args : object
        Positional parameters of `skorch.callbacks.EarlyStopping`.
    baseline : float or None, default=None
        Value that the first best epoch must exceed.
    **kwargs : object
        Other parameters of `skorch.callbacks.EarlyStopping`.
    """

    def __init__(self, *args: Any, baseline: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.baseline = baseline

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Begin with the baseline as the best value."""
        super().on_train_begin(net, **kwargs)
        if self.baseline is not None:
            self.dynamic_threshold_ = self.baseline

    @property
    def is_patience_exhausted(self) -> bool:
        """Whether the last `patience` epochs were no better than the best one."""
        return self.misses_ >= self.patience

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Compare the epoch with the best one."""
        try:
            super().on_epoch_end(net, **kwargs)
        except KeyboardInterrupt:
            # skorch stops here, before later callbacks have seen the epoch. StopWhenPatient stops
            # after them. Otherwise it was Ctrl-C, perhaps before the best weights were copied.
            if not self.is_patience_exhausted:
                raise
        finally:
            if self.best_epoch_ == net.history[-1, "epoch"]:
                self.best_criterion_ = deepcopy(net.criterion_.state_dict())

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Restore weights and logit scale of the best epoch."""
        if self.best_epoch_:
            super().on_train_end(net, **kwargs)
            net.criterion_.load_state_dict(self.best_criterion_)

    def _sink(self, text: str, verbose: int) -> None:
        """Do not print what the aligner's ``history_`` contains."""


def find_best_epoch(net: NeuralNet) -> BestEpoch | None:
    """Return the callback that remembers the best epoch; None without held-out pairs.

    Then a callback of the user may have its name.
    """
    best = dict(net.callbacks_).get("best")
    return best if isinstance(best, BestEpoch) else None


class StopWhenPatient(Callback):
    """Stop training when the patience of a `BestEpoch` is exhausted.

    Parameters
    ----------
    best : BestEpoch
        Callback of the same net that is called before this one.
    """

    def __init__(self, best: BestEpoch) -> None:
        self.best = best

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Stop as skorch's callbacks do."""
        if self.best.is_patience_exhausted:
            raise KeyboardInterrupt


class DivergenceGuard(Callback):
    """Raise an error when loss or weights become NaN or infinite, or the logit scale almost 0."""

    def on_batch_end(self, net: NeuralNet, training: bool = False, **kwargs: Any) -> None:
        """Check the loss of the batch."""
        if training and not math.isfinite(net.history[-1]["batches"][-1]["train_loss"]):
            raise make_divergence_error(net)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Check the weights and the logit scale after the last batch."""
        if not all(torch.isfinite(p).all() for p in net.module_.parameters()):
            raise make_divergence_error(net)
        # With a lower scale, the probabilities of all pairs are equal up to rounding.
        if not net.logit_scale > torch.finfo(torch.float32).eps:
            raise make_divergence_error(net)


class EpochProgress(Callback):
    """Show a progress bar over epochs with rate, remaining time, loss and recall.

    Parameters
    ----------
    n_epochs : int
        Maximum number of epochs.
    name : str
        Text before the bar.
    verbose : int or None
        None shows the bar only if training takes more than two seconds.
    """

    def __init__(self, n_epochs: int, name: str, verbose: int | None) -> None:
        self.n_epochs = n_epochs
        self.name = name
        self.verbose = verbose

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Show an empty bar."""
        delay = None if self.verbose is None else 0
        options = {"unit": "epoch", "desc": self.name}
        self.bar_ = make_progress_bar(self.n_epochs, self.verbose, delay, **options)

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Advance to the epoch at which a checkpoint resumes."""
        n_done = len(net.history) - 1
        if n_done > self.bar_.n:
            self.bar_.initial = self.bar_.n = n_done

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Advance by one epoch."""
        row = net.history[-1]
        values = {key: f"{row[key]:.3f}" for key in ("train_loss", "valid_recall") if key in row}
        self.bar_.set_postfix(values, refresh=False)
        self.bar_.update()

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar_.close()


def make_divergence_error(net: NeuralNet) -> FloatingPointError:
    """Return the error that is raised when training diverges."""
    return FloatingPointError(
        f"Training diverged in epoch {net.history[-1, 'epoch']}: loss, weights or embeddings are "
        "not finite, or the logit scale is almost 0. Lower learning_rate (now "
        f"{net.lr:g}) or logit_scale."
    )


class EpochBridge(Callback):
    """Report the epochs of a net to the scikit-learn callbacks of an aligner.

    `get_attributes` is a function of the net that returns copies of the aligner's fitted
    attributes. It is called only for callbacks that request a fitted estimator.
    """

    def __init__(
        self, context: FitContext, get_attributes: Callable[[AlignmentNet], dict[str, Any]]
    ) -> None:
        self.context = context
        self.get_attributes = get_attributes

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Report the beginning of an epoch."""
        assert self.context.callback_context is not None
        self.epoch_ = self.context.callback_context.subcontext(task_name="epoch")
        self.epoch_.call_on_fit_task_begin(estimator=self.context.estimator, **self.context.data)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Report the end of an epoch, and stop training if a callback requests it."""
        stop = self.epoch_.call_on_fit_task_end(
            estimator=self.context.estimator,
            reconstruction_attributes=lambda: self.get_attributes(net),
            **self.context.data,
        )
        if stop:
            raise KeyboardInterrupt  # skorch stops training on it


class TrainingResult(NamedTuple):
    """History of a training run, its number of epochs and its best epoch."""

    history: list[dict[str, Any]]
    n_epochs: int
    best_epoch: int
    was_stopped: bool = False


def make_standard_callbacks(config: TrainingConfig, n_pairs: int) -> list[Any]:
    """Return the callbacks of every training run on a number of pairs."""
    n_steps = config.max_epochs * count_batches(n_pairs, config.batch_size)
    callbacks: list[Any] = [
        ("divergence", DivergenceGuard()),
        ("schedule", cosine_schedule(n_steps, config.warmup)),
    ]
    if config.clip_norm is not None:
        callbacks.append(("clip", GradientNormClipping(config.clip_norm)))
    return callbacks


def collect_result(net: AlignmentNet, n_epochs: int) -> TrainingResult:
    """Return the result of a search for the best epoch; warn if it was stopped early.

    `n_epochs` is the maximum number of epochs. ``net.max_epochs`` is smaller after a checkpoint
    was resumed. KeyboardInterrupt is raised if the first epoch was interrupted, so that there is
    no result.
    """
    rows = [row for row in net.history if "train_loss" in row and "logit_scale" in row]
    if not rows:
        raise KeyboardInterrupt
    history = [
        {
            key: row[key] if key == "epoch" else float(row[key])
            for key in _HISTORY_KEYS
            if key in row
        }
        for row in rows
    ]
    best = find_best_epoch(net)
    # If no epoch exceeds the baseline, `best.best_epoch_` is 0, and the last epoch counts.
    best_epoch = (best and best.best_epoch_) or len(rows)
    was_stopped = len(rows) < n_epochs and not (best and best.is_patience_exhausted)
    if was_stopped:
        warn(
            f"Training was stopped after {len(rows)} of {n_epochs} epochs. The best result so far "
            "is used; see best_epoch_.",
            ConvergenceWarning,
        )
    return TrainingResult(history, len(rows), best_epoch, was_stopped)
