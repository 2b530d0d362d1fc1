"""scikit-learn's own callbacks (1.9 and later), told of every training epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skorch import NeuralNet
from skorch.callbacks import Callback

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn < 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in where scikit-learn has no callbacks."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method as it is."""
        return method


class FitContext:
    """One fit as scikit-learn's callbacks see it; silent where they do not exist.

    Parameters
    ----------
    estimator : estimator
        The one being fitted.
    n_epochs : int
        The most epochs it may take.
    X, y : object
        What it is fitted on.
    """

    def __init__(self, estimator: Any, n_epochs: int, X: Any, y: Any) -> None:
        self.estimator = estimator
        self.data = {"X": X, "y": y}
        self.context = None
        if hasattr(estimator, "_init_callback_context"):
            self.context = estimator._init_callback_context(max_subtasks=n_epochs)
            self.context.call_on_fit_task_begin(estimator=estimator, **self.data)

    def skorch_callbacks(self) -> list[Callback]:
        """Return what the net needs to report its epochs."""
        return [] if self.context is None else [_EpochBridge(self)]

    def end(self) -> None:
        """Report the end of the fit."""
        if self.context is not None:
            self.context.call_on_fit_task_end(estimator=self.estimator, **self.data)


class _EpochBridge(Callback):
    def __init__(self, fit: FitContext) -> None:
        self.fit = fit

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        assert self.fit.context is not None
        self.epoch_ = self.fit.context.subcontext(task_name="epoch")
        self.epoch_.call_on_fit_task_begin(estimator=self.fit.estimator)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        if self.epoch_.call_on_fit_task_end(estimator=self.fit.estimator):
            raise KeyboardInterrupt  # skorch's way of ending a training early
