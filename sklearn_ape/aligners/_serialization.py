"""Mixins for aligners: saved state and model cards, and aligners with two heads."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn

from ..devices import resolve_device
from ..heads import TwoTower, get_head_state, restore_head
from ..persistence.hub import Facts
from ..persistence.mixins import FittedState, PretrainedMixin
from ..training.net import embed
from ..utils.linalg import l2_normalize
from .fitted_images import FittedImages
from .similarity import Bank

_VALIDATION_SCORE = "validation recall, mean of recall@1, @5 and @10 in both directions"

_TAGS = ["zero-shot-classification", "feature-extraction", "image-text-alignment"]

# Examples of model cards.
IMAGES_USAGE = "print(model.similarity(['image.jpg'], ['a cat', 'a dog']))"
_FEATURES_USAGE = "print(model.transform(image_features) @ model.transform_text(text_features).T)"


class SavedAlignerMixin(PretrainedMixin):
    """Clones, saved state and model cards of aligners."""

    def __sklearn_clone__(self: Any) -> Any:
        """Return an unfitted aligner with the same parameters.

        If the fit is lost, `_lost_fit` is "aligner", or "starter" for the starter model.
        Classifiers warn before they train the former on labels, and the latter warns in its `fit`.
        """
        cloned = BaseEstimator.__sklearn_clone__(self)
        is_lost = self.__sklearn_is_fitted__() and not cloned.__sklearn_is_fitted__()
        if is_lost or hasattr(self, "_lost_fit"):
            cloned._lost_fit = getattr(self, "_lost_fit", "aligner")
        return cloned

    def _get_state(self: Any) -> dict[str, Any]:
        names = getattr(self, "feature_names_in_", None)
        fitted = getattr(self, "_fitted_images", None)
        return {
            **self._get_learned_state(),
            "logit_scale": float(self.logit_scale_),
            "fingerprint": self.fingerprint_,
            "feature_names_in": None if names is None else [str(name) for name in names],
            "text_feature_names": self._text_feature_names or None,
            "n_pairs": self._n_pairs,
            "image_encoder": getattr(self, "image_encoder_", None),
            "text_encoder": getattr(self, "text_encoder_", None),
            "bank": self.bank_.get_state(),
            "fitted_images": None if fitted is None else fitted._asdict(),
        }

    def _set_state(self: Any, state: FittedState) -> None:
        self.logit_scale_ = state.number("logit_scale", above=0)
        self._restore_learned(state)
        if state.value("fingerprint") != self.fingerprint_:
            raise ValueError(
                "fingerprint does not match the parameters in the file. The model is damaged, or "
                "the weights of its text encoder have changed."
            )
        self._set_feature_names(state)
        self._n_pairs = state.integer("n_pairs")
        for name in ("image_encoder", "text_encoder"):
            encoder = state.optional(name)
            if encoder is None:
                continue
            if not hasattr(encoder, "transform"):
                raise ValueError(f"{name} must be an encoder.")
            setattr(self, f"{name}_", encoder)
        self.bank_ = Bank.from_state(state.part("bank"), self.n_components_)
        if "fitted_images" in state:
            fitted_images = state.part("fitted_images")
            self._fitted_images = FittedImages.from_state(fitted_images, self.n_features_in_)

    def _set_feature_names(self: Any, state: FittedState) -> None:
        """Set the names of the columns of X and y, if `fit` was given tables."""
        if "feature_names_in" in state:
            self.feature_names_in_ = np.array(state.texts("feature_names_in"), dtype=object)
            if len(self.feature_names_in_) != self.n_features_in_:
                raise ValueError(f"feature_names_in must hold {self.n_features_in_} names.")
        has_names = "text_feature_names" in state
        self._text_feature_names = state.texts("text_feature_names") if has_names else []

    def _get_card_facts(self: Any) -> Facts:
        takes_images = getattr(self, "image_encoder_", None) is not None
        rows: dict[str, Any] = {
            "image features": self.n_features_in_,
            "text features": getattr(self, "n_text_features_in_", "tokens"),
            "embeddings": self.n_components_,
            "logit scale": f"{self.logit_scale_:.4g}",
            "training pairs": f"{self._n_pairs:,}",
            "parameters": f"{self.n_parameters_:,}",
        }
        if hasattr(self, "best_epoch_"):
            rows["best epoch"] = f"{self.best_epoch_:,}"
        # The score of the epoch that was kept; the highest score of all epochs would be biased.
        scores = {}
        for row in getattr(self, "history_", []):
            if row["epoch"] == self.best_epoch_ and "valid_recall" in row:
                scores[_VALIDATION_SCORE] = row["valid_recall"]
        return Facts(
            what="Embeds images and texts in a shared space: features of two frozen encoders are "
            "mapped so that an image and its caption have a high cosine similarity.",
            rows=rows,
            scores=scores,
            usage=IMAGES_USAGE if takes_images else _FEATURES_USAGE,
            tags=_TAGS,
        )


class _HeadNetwork(nn.Module):
    """A head and the normalization of its output, for ONNX."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return l2_normalize(self.head(features))


class HeadsMixin:
    """Mixin for aligners whose `module_` is a pair of heads on features, on the CPU."""

    module_: TwoTower
    logit_scale_: float
    device: str | torch.device | None

    # Function of the aligner that sets the attributes that `fit` derives from the module.
    _set_module: Callable[[TwoTower, float], None]

    def _get_learned_state(self) -> dict[str, Any]:
        return {
            "image_head": get_head_state(self.module_.image_head),
            "text_head": get_head_state(self.module_.text_head),
        }

    def _restore_learned(self, state: FittedState) -> None:
        image, text = (restore_head(state.part(f"{side}_head")) for side in ("image", "text"))
        self._set_module(TwoTower(image, text), self.logit_scale_)
        self.n_features_in_, self.n_text_features_in_ = image.n_in, text.n_in

    def _embed(self, side: str, features: np.ndarray) -> np.ndarray:
        device = resolve_device(self.device)
        # A copy is moved to the device: other threads may be using the module on the CPU.
        module = self.module_ if device.type == "cpu" else deepcopy(self.module_).to(device)
        return embed(module, side, features, device)

    def _make_network(self, side: str) -> nn.Module:
        """Return the network of one side that `export_onnx` writes."""
        return _HeadNetwork(getattr(self.module_, f"{side}_head")).eval()
