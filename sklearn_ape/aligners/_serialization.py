"""Saved state of aligners."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csr_array

from ..devices import resolve_device
from ..heads import TwoTower, head_state, restored_head
from ..persistence import FittedState, PretrainedMixin
from ..persistence.hub import Facts
from .fitted_images import FittedImages
from .similarity import Bank, SparseRows

_RECALL = "recall on the pairs held out, mean of @1, @5 and @10 both ways"


_TAGS = ["zero-shot-classification", "feature-extraction", "image-text-alignment"]


_FEATURES = "print(model.transform(image_features) @ model.transform_text(text_features).T)"


_IMAGES = "print(model.similarity(['image.jpg'], ['a cat', 'a dog']))"


class SavedAligner(PretrainedMixin):
    """The part of an aligner that is saved and loaded.

    Subclasses say what they learned and how it is put back.
    """

    _runtime_params: ClassVar = frozenset({"checkpoint", "device", "verbose"})
    _unsaved_params: ClassVar = frozenset({"callbacks"})

    @abstractmethod
    def _learned_state(self) -> dict[str, Any]:
        """Return what `fit` learned, besides what all aligners keep."""

    @abstractmethod
    def _restore_learned(self, state: FittedState, logit_scale: float) -> tuple[int, int | None]:
        """Put it back; return the widths of image features and, where they are known, of texts."""

    def _check_restored(self) -> None:
        check = getattr(self, "_check_parameters", None)
        if check is not None:
            check()

    def _fitted_state(self) -> dict[str, Any]:
        names = getattr(self, "feature_names_in_", None)
        return {
            **self._learned_state(),
            "logit_scale": float(self.logit_scale_),  # type: ignore[attr-defined]
            "fingerprint": self.fingerprint_,  # type: ignore[attr-defined]
            "feature_names_in": None if names is None else [str(name) for name in names],
            "n_pairs": getattr(self, "_n_pairs", None),
            "image_encoder": getattr(self, "image_encoder_", None),
            "text_encoder": getattr(self, "text_encoder_", None),
            "bank": _bank_state(getattr(self, "bank_", None)),
            "fitted_images": _images_state(getattr(self, "_fitted_images", None)),
        }

    def _restore_state(self, state: FittedState) -> None:
        known: Any = self
        scale = state.number("logit_scale", above=0)
        known.logit_scale_ = scale
        n_image, n_text = self._restore_learned(state, scale)
        known.n_features_in_ = n_image
        if n_text is not None:
            known.n_text_features_in_ = n_text
        if state.value("fingerprint") != known.fingerprint_:
            raise ValueError(
                "The model is damaged, or its text encoder is another: what it has learned is not "
                "what was saved."
            )
        if "feature_names_in" in state:
            known.feature_names_in_ = np.array(state.texts("feature_names_in"), dtype=object)
            if len(known.feature_names_in_) != n_image:
                raise ValueError(f"feature_names_in must hold {n_image} names.")
        if "n_pairs" in state:
            known._n_pairs = state.integer("n_pairs")
        for name in ("image_encoder", "text_encoder"):
            encoder = state.optional(name)
            if encoder is not None:
                if not hasattr(encoder, "transform"):
                    raise ValueError(f"{name} must be an encoder.")
                setattr(self, f"{name}_", encoder)
        if "bank" in state:
            known.bank_ = _restored_bank(state.part("bank"), known.n_components_)
        if "fitted_images" in state:
            part = state.part("fitted_images")
            keys, are_contents = part.array("keys", (None,), "i"), part.value("are_contents")
            if not isinstance(are_contents, bool):
                raise ValueError(f"{part.where}.are_contents must be true or false.")
            width = (known.n_features_in_,)
            mean = part.array("mean", width) if "mean" in part else part.optional("mean")
            known._fitted_images = FittedImages(np.unique(keys), are_contents, mean)
        for nothing in ("feature_names_in", "n_pairs", "bank", "fitted_images"):
            state.optional(nothing)

    def _card_facts(self) -> Facts:
        known: Any = self
        takes_images = getattr(self, "image_encoder_", None) is not None
        facts: dict[str, Any] = {
            "image features": getattr(self, "n_features_in_", "unknown"),
            "text features": getattr(self, "n_text_features_in_", "tokens"),
            "embeddings": known.n_components_,
            "logit scale": f"{known.logit_scale_:.4g}",
        }
        for name, value in (
            ("pairs fitted on", getattr(self, "_n_pairs", None)),
            ("numbers learned", getattr(self, "n_parameters_", None)),
            ("best epoch", getattr(self, "best_epoch_", None)),
        ):
            if value is not None:
                facts[name] = f"{value:,}"
        # Of the epoch that was kept: the best one may have been luck.
        scores = {}
        for row in getattr(self, "history_", []):
            if row["epoch"] == known.best_epoch_ and "valid_recall" in row:
                scores[_RECALL] = row["valid_recall"]
        return Facts(
            what="Brings images and texts into one space: features of two frozen encoders are "
            "mapped to where an image and its caption have a high cosine.",
            facts=facts,
            scores=scores,
            usage=_IMAGES if takes_images else _FEATURES,
            tags=_TAGS,
        )


class SavedHeads(SavedAligner):
    """The same of aligners whose `module_` is two heads on features."""

    module_: TwoTower

    def _learned_state(self) -> dict[str, Any]:
        return {
            "image_head": head_state(self.module_.image_head),
            "text_head": head_state(self.module_.text_head),
        }

    def _restore_learned(self, state: FittedState, logit_scale: float) -> tuple[int, int | None]:
        image, text = (restored_head(state.part(f"{side}_head")) for side in ("image", "text"))
        module = TwoTower(image, text).eval()
        self._keep_restored(module, logit_scale)
        return image.n_in, text.n_in

    @abstractmethod
    def _keep_restored(self, module: TwoTower, logit_scale: float) -> None:
        """Take the module as `fit` does."""


def course_state(aligner: Any) -> dict[str, Any]:
    """Return the course of a training that an aligner remembers."""
    return {
        "history": aligner.history_,
        "best_epoch": int(aligner.best_epoch_),
        "n_epochs": int(aligner.n_epochs_),
    }


def restore_course(aligner: Any, state: FittedState) -> None:
    """Put back what `course_state` returned, and where the aligner is computed."""
    history = state.value("history")
    is_list = isinstance(history, list) and all(isinstance(row, dict) for row in history)
    if not is_list or not all(isinstance(v, int | float) for row in history for v in row.values()):
        raise ValueError("history must be a list of epochs, with numbers.")
    aligner.history_ = history
    aligner.best_epoch_ = state.integer("best_epoch")
    aligner.n_epochs_ = state.integer("n_epochs")
    aligner.device_ = resolve_device(aligner.device)


def _images_state(fitted: FittedImages | None) -> dict[str, Any] | None:
    return None if fitted is None else dict(fitted._asdict())


def _bank_state(bank: Bank | None) -> dict[str, Any] | None:
    if bank is None:
        return None
    return {
        "image": _rows_state(bank.image),
        "text": None if bank.text is None else _rows_state(bank.text),
        "spread": float(bank.spread),
    }


def _rows_state(rows: Any) -> dict[str, Any]:
    if isinstance(rows, SparseRows):
        csr = rows.rows
        return {"data": csr.data, "indices": csr.indices, "indptr": csr.indptr}
    return {"dense": np.asarray(rows)}


def _restored_bank(state: FittedState, n_components: int) -> Bank:
    image = _restored_rows(state.part("image"), n_components)
    text = _restored_rows(state.part("text"), n_components) if "text" in state else None
    state.optional("text")
    return Bank(image, text, np.nan if text is None else state.number("spread", above=-1e-9))


def _restored_rows(state: FittedState, n_components: int) -> Any:
    if "dense" in state:
        return state.array("dense", (None, n_components))
    data = state.array("data", (None,))
    indices, indptr = (state.array(name, (None,), "i") for name in ("indices", "indptr"))
    shape = (len(indptr) - 1, n_components)
    rows = csr_array((data, indices, indptr), shape=shape)
    rows.check_format(full_check=True)
    return SparseRows(rows)
