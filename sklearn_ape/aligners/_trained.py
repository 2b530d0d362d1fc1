"""Base classes of aligners that are fitted in closed form, or trained by gradient descent."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from ..devices import default_state, resolve_device
from ..heads import BaseMap, TwoTower
from ..losses import LOSSES
from ..persistence.mixins import FittedState
from ..training.callbacks import (
    BestEpoch,
    EpochBridge,
    EpochProgress,
    StopWhenPatient,
    TrainingResult,
    ValidationRecall,
)
from ..training.data import PairDataset, split_pairs, subset
from ..training.distributed import Ranks, is_first_rank, join_ranks
from ..training.net import AlignmentNet, TrainingConfig, seed_generators
from ..utils.messages import shows_progress
from ..utils.sklearn_compat import FitContext, reports_fit, restored_on_failure, with_callbacks
from ..utils.validation import (
    check_boolean,
    check_choice,
    check_integer,
    check_number,
    check_verbose,
    resolve_random_state,
)
from ._base import BaseAligner
from .checkpoint import Checkpoint, prepare_folder, remove_name
from .pairs import warn_about_equal

# Parameters that may differ between ranks and between a training and its resumption. Encoders and
# head pairs are compared by the features that they return.
_EXCLUDED_PARAMETERS = {
    *("image_encoder", "text_encoder", "head_pairs"),
    *("device", "random_state", "verbose", "callbacks", "checkpoint"),
}


LOSS_DEFAULTS = {"logit_scale": 1 / 0.07, "learn_logit_scale": True, "max_logit_scale": 100.0}
"""Keys of ``loss_params`` that all trained aligners have, with their defaults."""


class ClosedFormAligner(BaseAligner):
    """Base class of aligners that are fitted in closed form."""

    @reports_fit
    def fit(self, X: Any, y: Any) -> Self:
        """Fit the aligner to pairs of images and captions.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            Images if `image_encoder` is set, otherwise features of images.
        y : sequence of length n_samples, or array-like of shape (n_samples, n_text_features)
            A caption or a list of captions per image if `text_encoder` is set, otherwise features.

        Returns
        -------
        self : object
            The fitted aligner.

        Raises
        ------
        ValueError
            If a parameter or the data are invalid. The message names the rows.
        """
        self._check_parameters()
        with default_state(), restored_on_failure(self):
            self._forget_fit()
            data = self._fit_pairs(X, y)
            self._fit_data(data)
            self._set_bank(data)
        return self

    @abstractmethod
    def _fit_data(self, data: PairDataset) -> None:
        """Set the results; all aligners have those that CONTRIBUTING.md lists."""


class TrainingRun(NamedTuple):
    """Parameters of a training run, and the objects that observe it."""

    config: TrainingConfig
    context: FitContext
    checkpoint: Checkpoint
    ranks: Ranks | None = None

    @property
    def seed(self) -> int:
        """Seed of weights, batches and validation pairs."""
        return self.checkpoint.seed

    @property
    def verbose(self) -> int | None:
        """Value of ``verbose`` for progress bars, which only the first rank shows."""
        is_hidden = self.config.shows_table or not is_first_rank(self.ranks)
        return 0 if is_hidden else self.config.verbose

    def split(
        self, data: PairDataset, by_image: bool = False
    ) -> tuple[PairDataset, PairDataset | None]:
        """Return training and validation pairs; None without early stopping or with few pairs."""
        if not self.config.early_stopping:
            return data, None
        rng = np.random.RandomState(self.seed)
        split = split_pairs(data.pairs, self.config.validation_fraction, rng, by_image)
        if split.valid is None:
            return data, None
        # Prototypes are not images: users do not search for their names.
        valid = split.valid[data.pairs[split.valid, 0] < data.n_images]
        if len(valid) < 2:
            return data, None
        return subset(data, split.train), subset(data, valid)

    def make_callbacks(
        self, recall: ValidationRecall, get_module: Callable[[AlignmentNet], TwoTower], phase: str
    ) -> list[Any]:
        """Return the callbacks of the phase that searches for the best epoch, in order.

        Without validation pairs in `recall` the last epoch is the best one. The callbacks of the
        checkpoint save the state of the preceding ones.
        """
        callbacks: list[Any] = [("recall", recall)]
        best = None
        if recall.dataset is not None:
            best = BestEpoch(
                "valid_recall",
                patience=self.config.n_iter_no_change,
                baseline=recall.baseline,
                lower_is_better=False,
                threshold=0.0,
                load_best=True,
            )
            callbacks.append(("best", best))
        if shows_progress(self.verbose):
            progress = EpochProgress(self.config.max_epochs, phase, self.verbose)
            callbacks.append(("progress", progress))
        if self.context.callback_context is not None:
            bridge = EpochBridge(
                self.context,
                lambda net: get_fitted_attributes(deepcopy(get_module(net)), net.logit_scale),
            )
            callbacks.append(("bridge", bridge))
        # Copies, because skorch sets attributes of its callbacks, and parameters must not change.
        callbacks += deepcopy(list(self.config.callbacks or []))
        callbacks += self.checkpoint.make_callbacks(phase)
        return callbacks if best is None else [*callbacks, ("stop", StopWhenPatient(best))]


TrainedModule = tuple[TwoTower, float, TrainingResult]
"""A trained module, its logit scale, and the history of the training."""


class TrainedAligner(BaseAligner):
    """Base class of aligners that are trained by gradient descent.

    A subclass defines `_train`.
    """

    # The keys of parameters that are dicts, with their defaults.
    _dict_defaults: ClassVar[dict[str, dict[str, Any]]]

    @abstractmethod
    def _train(self, data: PairDataset, run: TrainingRun) -> TrainedModule:
        """Return a trained module, its logit scale, and the history of the training."""

    @with_callbacks
    def fit(self, X: Any, y: Any) -> Self:
        """Train the aligner on pairs of images and captions.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            Images if `image_encoder` is set, otherwise features of images.
        y : sequence of length n_samples, or array-like of shape (n_samples, n_text_features)
            A caption or a list of captions per image if `text_encoder` is set, otherwise features.

        Returns
        -------
        self : object
            The fitted aligner.

        Raises
        ------
        ValueError
            If a parameter or the data are invalid, or if this is the starter model, which all
            estimators share. The message names the rows.
        FloatingPointError
            If training diverges.
        OSError
            If the folder `checkpoint` cannot be written to, or contains unrelated files.

        Warns
        -----
        ConvergenceWarning
            If training was stopped by a callback or by Ctrl-C.
        UserWarning
            If pairs are held out, and many rows of features in X or y are equal.
        """
        return self._fit(X, y)

    def _fit(self, X: Any, y: Any) -> Self:
        """Fit as `fit`, whose docstring and decorator subclasses need not repeat."""
        self._check_parameters()
        prepare_folder(self.checkpoint)
        context = FitContext(self, self._count_epochs(None), X, y)
        with default_state(), restored_on_failure(self):
            self._forget_fit()
            data = self._fit_pairs(X, y)
            rng = resolve_random_state(self.random_state)
            seed = int(rng.randint(np.iinfo(np.int32).max))
            ranks, seed = join_ranks(self._get_compared_parameters(), data, seed)
            self.device_ = resolve_device(self.device)
            with Checkpoint(self, data, seed, ranks) as checkpoint:
                if not checkpoint.restore():
                    with seed_generators(checkpoint.seed, self.device_):
                        run = TrainingRun(
                            self._make_training_config(len(data)), context, checkpoint, ranks
                        )
                        module, logit_scale, result = self._train(data, run)
                    self._set_module(module, logit_scale)
                    self.history_, self.n_epochs_ = result.history, result.n_epochs
                    self.best_epoch_ = result.best_epoch
                    checkpoint.finish()
            self._set_bank(data)
        context.end()
        # Last, so that the aligner is fitted even where warnings are errors.
        self._warn_about_repeated_rows(data)
        return self

    def _warn_about_repeated_rows(self, data: PairDataset) -> None:
        """Warn if rows of features are repeated, which lowers the recall on held-out pairs."""
        if data.items is None or not any("valid_recall" in row for row in self.history_):
            return
        images, image_rows, texts, text_rows = data.items.T
        for name, side, items, rows, advice in (
            ("X", "image", images, image_rows, "one row per image and a list of its captions"),
            ("y", "text", texts, text_rows, "captions, which are identified by their text"),
        ):
            if not hasattr(self, f"{side}_encoder_"):
                row_of_item = rows[np.unique(items, return_index=True)[1]]
                consequence = (
                    "Every row counts as a separate item, and ties count against the recall in "
                    f"history_. Pass {advice}."
                )
                warn_about_equal("row", name, row_of_item, consequence)

    def _set_module(self, module: TwoTower, logit_scale: float) -> None:
        self.__dict__.update(get_fitted_attributes(module, logit_scale))
        self.module_.zero_grad()  # frees the gradients of the last step

    def _check_parameters(self) -> None:
        check_choice(self.loss, "loss", tuple(LOSSES))
        check_integer(self.n_components, "n_components", 1, optional=True)
        check_integer(self.batch_size, "batch_size", 2)
        check_integer(self.n_iter_no_change, "n_iter_no_change", 1)
        check_number(self.validation_fraction, "validation_fraction", 0, 1, closed="neither")
        check_number(self.learning_rate, "learning_rate", 0, closed="neither")
        check_number(self.weight_decay, "weight_decay", 0)
        check_boolean(self.early_stopping, "early_stopping")
        check_callbacks(self.callbacks)
        check_verbose(self.verbose)
        resolve_random_state(self.random_state)
        resolve_device(self.device)
        values = self._resolve_dicts("loss_params")
        scale = values["logit_scale"]
        check_number(scale, "loss_params['logit_scale']", 0, closed="neither")
        check_number(values["max_logit_scale"], "loss_params['max_logit_scale']", scale)
        check_boolean(values["learn_logit_scale"], "loss_params['learn_logit_scale']")

    def _resolve_dicts(self, name: str) -> dict[str, Any]:
        """Return a parameter that is a dict or None, with the defaults of missing keys."""
        values, defaults = getattr(self, name), self._dict_defaults[name]
        if values is None:
            return dict(defaults)
        if not isinstance(values, Mapping):
            raise ValueError(f"{name} must be None or a dict, not {values!r}.")
        for key in values:
            if key not in defaults:
                raise ValueError(
                    f"{name} has the unknown key {key!r}. Valid keys are {', '.join(defaults)}."
                )
        return {**defaults, **values}

    def _get_flat_parameters(self) -> dict[str, Any]:
        """Return all parameters, with the keys of dicts as separate parameters."""
        # The constructor of a user's subclass may have other parameters than the fields.
        parameters = {field.name: getattr(self, field.name) for field in fields(self)}
        parameters |= self.get_params(deep=False)
        for name in self._dict_defaults:
            del parameters[name]
            parameters |= self._resolve_dicts(name)
        return parameters

    def _count_epochs(self, n_pairs: int | None) -> int:
        """Return the maximum number of epochs, for any number of pairs if it is None."""
        return self.max_epochs

    def _make_training_config(self, n_pairs: int) -> TrainingConfig:
        """Return the parameters that have the name of a field of `TrainingConfig`."""
        resolved = {"device": self.device_, "max_epochs": self._count_epochs(n_pairs)}
        parameters = self._get_flat_parameters() | resolved
        names = {field.name for field in fields(TrainingConfig)} & parameters.keys()
        return TrainingConfig(**{name: parameters[name] for name in names})

    def _get_compared_parameters(self) -> dict[str, Any]:
        """Return the parameters that must be equal on all ranks, and to resume a training."""
        parameters = self._get_flat_parameters()
        return {name: parameters[name] for name in parameters.keys() - _EXCLUDED_PARAMETERS}

    def _get_compared_weights(self) -> dict[str, str]:
        """Return digests, by name, of weights that must be equal to resume a training."""
        return {}

    def _get_result(self) -> dict[str, Any]:
        """Return the learned state for the checkpoint of a finished training."""
        return self._get_learned_state()

    def _set_result(self, learned: dict[str, Any], logit_scale: float) -> None:
        """Restore what `_get_result` returned."""
        state = FittedState(learned, "the finished training")
        self.logit_scale_ = logit_scale
        self._restore_learned(state)
        state.close()

    def _get_history_state(self) -> dict[str, Any]:
        return {
            "history": self.history_,
            "best_epoch": int(self.best_epoch_),
            "n_epochs": int(self.n_epochs_),
        }

    def _restore_history(self, state: FittedState) -> None:
        """Set the attributes that `_get_history_state` returned, and `device_`."""
        history = state.value("history")
        is_list = isinstance(history, list) and all(isinstance(row, dict) for row in history)
        values = [value for row in history for value in row.values()] if is_list else []
        if not is_list or not all(isinstance(value, int | float) for value in values):
            raise ValueError("history must be a list of epochs, each with numbers only.")
        self.history_ = history
        self.best_epoch_ = state.integer("best_epoch")
        self.n_epochs_ = state.integer("n_epochs")
        self.device_ = resolve_device(self.device)

    @classmethod
    def _from_record(
        cls, params: dict[str, Any], state: Mapping[str, Any] | None, settings: Mapping[str, Any]
    ) -> Self:
        # Models saved before version 0.1.0 have the keys of these dicts as parameters.
        params = dict(params)
        for name, defaults in cls._dict_defaults.items():
            if name not in params:
                values = {key: params.pop(key) for key in defaults if key in params}
                changed = {key: value for key, value in values.items() if value != defaults[key]}
                params[name] = changed or None
        return super()._from_record(params, state, settings)


def get_fitted_attributes(module: TwoTower, logit_scale: float) -> dict[str, Any]:
    """Return the fitted attributes that follow from a trained module.

    The module is moved to the CPU, so that a pickle can be loaded on a machine without the
    training device.
    """
    trained_parameters = [p for p in module.parameters() if p.requires_grad]
    maps = [submodule for submodule in module.modules() if isinstance(submodule, BaseMap)]
    map_buffers = [buffer for base_map in maps for buffer in base_map.buffers()]
    return {
        "module_": module.to("cpu").eval(),
        "logit_scale_": float(logit_scale),
        "n_parameters_": sum(tensor.numel() for tensor in (*trained_parameters, *map_buffers)),
        "n_components_": module.n_components,
        "fingerprint_": module.fingerprint(),
    }


def check_callbacks(callbacks: Any) -> None:
    """Raise TypeError unless ``callbacks`` is None or a list of skorch callbacks to be copied."""
    if callbacks is not None and not isinstance(callbacks, list | tuple):
        raise TypeError(f"callbacks must be None or a list, not {callbacks!r}.")
    for item in callbacks or []:
        callback = remove_name(item)
        # As in skorch, a callback may be a class, and None is skipped.
        if callback is not None and not hasattr(callback, "on_train_begin"):
            raise TypeError(
                f"callbacks contains {item!r}, which is not a callback of skorch. Callbacks of "
                "scikit-learn are set by set_callbacks."
            )
        try:
            deepcopy(callback)
        except Exception as error:  # copying may raise anything
            raise TypeError(
                f"callbacks contains {item!r}, which cannot be copied ({error}). Open files and "
                "connections in its method on_train_begin, because fit calls a copy of it."
            ) from error
