"""What estimators that can be shared offer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from sklearn.utils.validation import check_is_fitted

from ._card import Facts, card_of, checked_scores
from ._folder import write_model
from ._format import FORMAT
from ._hub import load_pretrained, temporary, upload
from ._recordable import Recordable
from ._values import Recorder


class Shareable(Recordable):
    """Base of fitted estimators that are saved to a folder, loaded and shared."""

    def _card_facts(self) -> Facts:
        """Return what the model card tells of this estimator."""
        return Facts()

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, scores: Mapping[str, float] | None = None
    ) -> None:
        """Save to a folder: parameters as JSON, numbers as safetensors, and a model card.

        Encoders are recorded by class, parameters and what tells their weights from others, not
        with their weights. Settings of this machine (device, cache, ...) are not saved.

        Parameters
        ----------
        folder : str or path-like
            Made when it does not exist. A model in it is replaced, in one step: a save that is
            killed leaves the old one or the new one. Other files stay.
        scores : mapping of str to float or None, default=None
            What was measured, for the model card: ``{"accuracy on my images": 0.93}``.

        Raises
        ------
        TypeError
            When a parameter has no form that can be read without executing anything; the message
            names it and the remedy. Nothing is written.
        OSError
            When the folder cannot be written, or holds other things than a model.

        See Also
        --------
        sklearn_ape.load_pretrained : Loads whatever class was saved.
        """
        check_is_fitted(self)
        scores = checked_scores(scores)
        recorder = Recorder()
        model = recorder.object(self, type(self).__name__)
        made_with = version("sklearn-ape")
        config = {
            "library": "sklearn-ape",
            "version": made_with,
            "format": FORMAT,
            "model": model,
            "scores": scores,
            "left_out": recorder.left_out,
        }
        facts = self._card_facts()
        card = card_of(model, facts, scores, recorder, made_with)
        write_model(folder, config, recorder.tensors, card)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache: Any = None,
        device: Any = "auto",
    ) -> Self:
        """Load what `save_pretrained` wrote; nothing that a file says is executed.

        Parameters
        ----------
        source : str or path-like
            A folder, or the name of a model on the Hugging Face hub, ``"owner/name"``.
        revision : str or None, default=None
            Branch, tag or commit on the hub.
        token : str, bool or None, default=None
            Of the hub; None takes the one that you are logged in with.
        cache : str, path-like, FeatureCache or None, default=None
            Where the encoders keep features; None is their own default.
        device : {"auto"}, str or torch.device, default="auto"
            Where encoders and heads are computed.

        Returns
        -------
        estimator : object
            Fitted.

        Raises
        ------
        ValueError
            When there is no such model, it is damaged, of a newer format or another class, or
            its encoders have other weights here than it was fitted with.
        ImportError
            When the package with an encoder's weights, or huggingface_hub, is not installed.
        OSError
            When the files cannot be read, or the hub cannot be reached.
        """
        found = load_pretrained(source, revision=revision, token=token, cache=cache, device=device)
        if not isinstance(found, cls):
            name = type(found).__name__
            raise ValueError(
                f"{str(source)!r} holds a {name}: load it with {name}.from_pretrained, or "
                "sklearn_ape.load_pretrained for any class."
            )
        return found

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
        scores: Mapping[str, float] | None = None,
    ) -> str:
        """Upload to the Hugging Face hub, making the repository if need be.

        Parameters
        ----------
        repo_id : str
            ``"owner/name"``.
        token : str, bool or None, default=None
            Of the hub, with the right to write; None takes the one that you are logged in with.
        private : bool or None, default=None
            Whether a new repository is private; None is the owner's default.
        commit_message : str or None, default=None
            Of the upload.
        scores : mapping of str to float or None, default=None
            See `save_pretrained`.

        Returns
        -------
        address : str
            Of the repository.

        Raises
        ------
        ImportError
            When huggingface_hub is not installed.
        OSError
            When the hub refuses or cannot be reached.
        """
        with temporary() as parent:
            folder = Path(parent) / "model"
            self.save_pretrained(folder, scores=scores)
            message = commit_message or f"{type(self).__name__} of sklearn-ape"
            return upload(folder, repo_id, token, private, message)
