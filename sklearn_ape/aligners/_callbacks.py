"""scikit-learn's own callbacks (1.9 and later), told of every training epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skorch import NeuralNet
from skorch.callbacks import Callback

from .._callbacks import FitContext


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
