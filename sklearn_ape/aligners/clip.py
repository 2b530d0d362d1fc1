"""CLIP: two towers that were trained together, by others."""

from __future__ import annotations

from os import PathLike
from typing import Any, ClassVar, Self

import joblib
import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils import Tags
from sklearn.utils.validation import check_consistent_length

from ..encoders import OpenCLIPImageEncoder, OpenCLIPTextEncoder
from ..features.validation import as_float32
from ..persistence import FittedState
from ..persistence.hub import Facts
from ..utils.escape import escape_markdown
from ..utils.linalg import normalize_rows
from ..utils.sklearn_compat import LazyNamesMixin, reports_fit
from ..utils.validation import as_floats
from ._base import BaseAligner
from .pairs import as_sequence, flatten_captions, holds_texts


class CLIPAligner(LazyNamesMixin, BaseAligner):
    """An OpenCLIP model as an aligner: ready at once, nothing to fit.

    The level that aligned encoders are measured against: CLIP's two towers were trained together
    on hundreds of millions of pairs.

    Parameters
    ----------
    model : str, default="ViT-B-32/openai"
        ``"architecture/weights"`` as `open_clip.list_pretrained` names them, a hub name with
        OpenCLIP weights, or a folder that holds ``open_clip_config.json`` and weights.
    pretrained : str or None, default=None
        Name of the weights, where `model` is the architecture alone:
        ``CLIPAligner("ViT-B-32", pretrained="openai")``.
    revision : str or None, default=None
        Branch, tag or commit of a hub model.
    crop : {"center", "pad"}, default="center"
        ``"center"`` is the network's own preprocessing. ``"pad"`` makes an image square on
        white first.
    batch_size : int, default=16
        Images in one pass of the network; of texts, four times as many.
    device : {"auto"}, str or torch.device, default="auto"
        ``"auto"`` takes a GPU when there is one.
    dtype : {"float32", "bfloat16", "float16"}, default="float32"
        Precision of the network by autocast.
    n_jobs : int or None, default=None
        Workers that read and resize images, by joblib.
    cache : {"memory"}, str, path-like or None, default="memory"
        Where features are kept, by content: in this process, in a folder, or nowhere.
    on_error : {"raise", "nan"}, default="raise"
        What an image that cannot be read does: stop the work, or become a row of NaN.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    logit_scale_ : float
        Factor of the cosines that the model was trained with.
    n_components_ : int
        Size of the embeddings.
    n_features_in_, n_text_features_in_ : int
        The same, which is also the width of features where X or y is features.
    fingerprint_ : str
        Digest of the model's name or files and of the preprocessing.
    image_encoder, text_encoder : transformer
        The two towers as encoders; they share one loaded model.

    See Also
    --------
    APEAligner : Aligns two encoders that were trained apart.
    sklearn_ape.ZeroShotClassifier : ``aligner="open_clip:ViT-B-32/openai"`` stands for this.

    Notes
    -----
    Weights are loaded at the first use and shared in the process; pickles carry none.

    References
    ----------
    .. [1] A. Radford et al., "Learning Transferable Visual Models From Natural Language
       Supervision", ICML 2021.
    .. [2] M. Cherti et al., "Reproducible scaling laws for contrastive language-image learning",
       CVPR 2023.

    Examples
    --------
    >>> from sklearn_ape import CLIPAligner
    >>> aligner = CLIPAligner("ViT-B-32", pretrained="openai")
    >>> aligner.text_encoder.model_name
    'ViT-B-32/openai'
    """

    _of_the_machine: ClassVar = frozenset({"batch_size", "cache", "device", "n_jobs", "verbose"})

    def __init__(
        self,
        model: str = "ViT-B-32/openai",
        pretrained: str | None = None,
        *,
        revision: str | None = None,
        crop: str = "center",
        batch_size: int = 16,
        device: str | torch.device | None = "auto",
        dtype: str = "float32",
        n_jobs: int | None = None,
        cache: str | PathLike[str] | None = "memory",
        on_error: str = "raise",
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.pretrained = pretrained
        self.revision = revision
        self.crop = crop
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.cache = cache
        self.on_error = on_error
        self.verbose = verbose

    @reports_fit
    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the parameters and the form of X and y; there is nothing to learn.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            What `transform` takes.
        y : sequence of length n_samples or None, default=None
            Captions, or features of texts; looked at, then ignored.

        Returns
        -------
        self : object
            The aligner itself.

        Raises
        ------
        ValueError
            When the model's name, X or y cannot be used.
        """
        self._check_parameters()
        if _holds_features(X):
            self._image_features(X, reset=False)
        else:
            self.image_encoder.fit(X)
        if y is not None:
            y = as_sequence(y)
            check_consistent_length(X, y)
            if holds_texts(y):
                flatten_captions(y)
            else:
                self._text_features(y, reset=False)
        return self

    @property
    def image_encoder(self) -> OpenCLIPImageEncoder:
        """The image tower as an encoder."""
        return OpenCLIPImageEncoder(
            self._name(),
            revision=self.revision,
            crop=self.crop,
            batch_size=self.batch_size,
            device=self.device,
            dtype=self.dtype,
            n_jobs=self.n_jobs,
            cache=self.cache,
            on_error=self.on_error,
            verbose=self.verbose,
        )

    @property
    def text_encoder(self) -> OpenCLIPTextEncoder:
        """The text tower as an encoder."""
        return OpenCLIPTextEncoder(
            self._name(),
            revision=self.revision,
            batch_size=4 * self.batch_size,
            device=self.device,
            dtype=self.dtype,
            cache=self.cache,
            verbose=self.verbose,
        )

    @property
    def logit_scale_(self) -> float:
        """Factor of the cosines that the model was trained with."""
        self.text_encoder._check_parameters()
        return float(self.text_encoder._network().model.logit_scale.exp().item())

    @property
    def n_components_(self) -> int:
        """Size of the embeddings."""
        self.text_encoder._check_parameters()
        return self.text_encoder._n_features_out

    @property
    def n_features_in_(self) -> int:
        """Width of features of images."""
        return self.n_components_

    @property
    def n_text_features_in_(self) -> int:
        """Width of features of texts."""
        return self.n_components_

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    @property
    def fingerprint_(self) -> str:
        """Digest of the model's name or files and of the preprocessing."""
        towers = self.image_encoder, self.text_encoder
        for tower in towers:
            tower._check_parameters()
        return joblib.hash([tower._identity_digest() for tower in towers])

    def _fitted_state(self) -> dict[str, Any]:
        return {"weights": self.text_encoder._weights_fingerprint()}

    def _restore_state(self, state: FittedState) -> None:
        self.text_encoder._restore_state(state)

    def _recorded_params(self) -> dict[str, Any]:
        params = super()._recorded_params()
        return {**params, "revision": self.text_encoder._recorded_params()["revision"]}

    def _check_parameters(self) -> None:
        self.text_encoder._check_parameters()

    def _card_facts(self) -> Facts:
        return Facts(
            what=f"The OpenCLIP model {escape_markdown(repr(self._name()))}, by its name, without "
            "its weights.",
            usage="print(model.similarity(['image.jpg'], ['a cat', 'a dog']))",
        )

    def _name(self) -> str:
        return self.model if self.pretrained is None else f"{self.model}/{self.pretrained}"

    def _image_features(self, X: Any, reset: bool, least: int = 1) -> np.ndarray:
        if not _holds_features(X):
            return self.image_encoder.transform(X)
        features = as_floats(X, "X")
        if features.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {features.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input: pass images, or features of "
                f"OpenCLIPImageEncoder({self._name()!r})."
            )
        return as_float32(features, "X", look=False)

    def _encoded_texts(self, texts: list[str], reset: bool) -> np.ndarray:
        return self.text_encoder.transform(texts)

    def _embed_image(self, features: np.ndarray) -> np.ndarray:
        return normalize_rows(features)

    def _embed_text(self, features: np.ndarray) -> np.ndarray:
        return normalize_rows(features)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.target_tags.required = False
        tags.input_tags.two_d_array = False
        return tags


def _holds_features(X: Any) -> bool:
    """Say whether X is rows of numbers; a sequence of images has three dimensions or none."""
    if issparse(X):
        return True
    if isinstance(X, list | tuple):
        return len(X) > 0 and isinstance(X[0], list | tuple | np.ndarray) and np.ndim(X[0]) == 1
    if len(getattr(X, "shape", ())) != 2:
        return False
    values = np.asarray(X)
    if values.dtype.kind != "O":
        return values.dtype.kind in "fiubcmM"
    # Of a table: columns that may lack numbers.
    return not any(isinstance(one, str | bytes | PathLike) for one in values[:1].flat)
