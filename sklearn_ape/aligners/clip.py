"""OpenCLIP models as aligners."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from os import PathLike
from typing import Any, ClassVar, Self

import joblib
import numpy as np
import torch
from sklearn.utils import Tags

from ..encoders import OpenCLIPImageEncoder, OpenCLIPTextEncoder
from ..features.matrix import as_float32
from ..persistence.hub import Facts
from ..persistence.mixins import FittedState
from ..utils.linalg import normalize_rows
from ..utils.messages import escape_markdown
from ..utils.sklearn_compat import LazyNamesMixin, reports_fit
from ..utils.validation import as_floats, check_same_length, check_sequence
from ._base import BaseAligner
from ._serialization import IMAGES_USAGE
from .pairs import as_sequence, flatten_captions, holds_images, holds_texts


@dataclass(eq=False, repr=False)
class CLIPAligner(LazyNamesMixin, BaseAligner):
    """An OpenCLIP model as an aligner, which needs no fit.

    The two encoders of CLIP [1]_ were trained jointly on hundreds of millions of pairs. This is
    the reference that aligned encoders are compared with.

    Parameters
    ----------
    model : str, default="ViT-B-32/openai"
        ``"architecture/weights"`` as in `open_clip.list_pretrained` [2]_, the name of a model
        with OpenCLIP weights on the hub, or a folder with ``open_clip_config.json`` and weights.
    pretrained : str or None, default=None
        Name of the weights, if `model` is the architecture only:
        ``CLIPAligner("ViT-B-32", pretrained="openai")``.
    revision : str or None, default=None
        Branch, tag or commit of a model on the hub. It must be None if `model` or
        `pretrained` names weights of OpenCLIP.
    crop : {"center", "pad"}, default="center"
        Preprocessing of images. ``"center"`` is the network's own preprocessing. ``"pad"``
        first pads images to squares with white.
    batch_size : {"auto"} or int, default="auto"
        Number of images per batch. Batches of texts are four times larger. ``"auto"`` uses the
        fastest sizes. On a CPU, each of the `n_jobs` threads computes a batch, so that large
        batches take much memory.
    device : {"auto"}, str or torch.device, default="auto"
        Device of the network. ``"auto"`` uses a GPU if available.
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="float32"
        Precision in which the network is computed; see `OpenCLIPImageEncoder`.
    n_jobs : int or None, default=None
        Number of threads that read and resize images. None means the number of threads that torch
        uses, -1 one per core.
    cache : {"memory"}, str, path-like, FeatureCache or None, default="memory"
        Cache of features by content. ``"memory"`` keeps features in this process, a path or a
        `DiskFeatureCache` keeps them on disk, and None disables the cache.
    on_error : {"raise", "nan"}, default="raise"
        Whether an unreadable image raises an error or gives a row of NaN.
    verbose : int or None, default=None
        1 shows a progress bar, 0 does not. None shows one in terminals and
        notebooks if the work takes more than two seconds.

    Attributes
    ----------
    logit_scale_ : float
        Logit scale (factor of the cosines) of the trained model.
    n_components_ : int
        Size of the embeddings.
    n_features_in_, n_text_features_in_ : int
        Number of features if X or y holds features, equal to `n_components_`.
    fingerprint_ : str
        Digest of the model's name or files and of the preprocessing.
    image_encoder, text_encoder : transformer
        The two encoders of the model, which share one loaded network.

    See Also
    --------
    APEAligner : Aligns two encoders that were trained separately.
    sklearn_ape.ZeroShotClassifier : ``aligner="open_clip:ViT-B-32/openai"`` selects this aligner.

    Notes
    -----
    Weights are loaded on first use and shared in the process. Pickles do not contain them.

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

    model: str = "ViT-B-32/openai"
    pretrained: str | None = None
    _: KW_ONLY
    revision: str | None = None
    crop: str = "center"
    batch_size: int | str = "auto"
    device: str | torch.device | None = "auto"
    dtype: str = "float32"
    n_jobs: int | None = None
    cache: str | PathLike[str] | None = "memory"
    on_error: str = "raise"
    verbose: int | None = None

    _runtime_params: ClassVar = frozenset({"batch_size", "cache", "device", "n_jobs", "verbose"})

    @reports_fit
    def fit(self, X: Any, y: Any = None) -> Self:
        """Validate the parameters, X and y; nothing is learned.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images or features, as in `transform`.
        y : sequence of length n_samples or None, default=None
            Captions, or features of texts. They are validated and not used.

        Returns
        -------
        self : object
            The aligner.

        Raises
        ------
        ValueError
            If the name of the model, X or y is invalid.
        """
        self._check_parameters()
        check_sequence(X, "X", "image", "images or features")
        if not holds_images(X):
            self._get_image_features(X, reset=False)
        else:
            self.image_encoder.fit(X)
        if y is not None:
            y = as_sequence(y)
            check_same_length(X=X, y=y)
            if holds_texts(y):
                flatten_captions(y)
            else:
                self._get_text_features(y, reset=False)
        return self

    @property
    def image_encoder(self) -> OpenCLIPImageEncoder:
        """Encoder of images."""
        names = ("crop", "batch_size", "n_jobs", "on_error")
        options = {name: getattr(self, name) for name in names} | self._get_shared_options()
        return OpenCLIPImageEncoder(self._get_model_name(), **options)

    @property
    def text_encoder(self) -> OpenCLIPTextEncoder:
        """Encoder of texts."""
        size = self.batch_size if isinstance(self.batch_size, str) else 4 * self.batch_size
        options = {"batch_size": size, **self._get_shared_options()}
        return OpenCLIPTextEncoder(self._get_model_name(), **options)

    def _get_shared_options(self) -> dict[str, Any]:
        """Return the parameters that both encoders have."""
        names = ("revision", "device", "dtype", "cache", "verbose")
        return {name: getattr(self, name) for name in names}

    @property
    def logit_scale_(self) -> float:  # type: ignore[override]
        """Logit scale of the trained model."""
        self._check_parameters()
        return float(self.text_encoder._get_network().model.logit_scale.exp().item())

    @property
    def n_components_(self) -> int:
        """Size of the embeddings."""
        self._check_parameters()
        return self.text_encoder._n_features_out

    # Embeddings of either encoder are also accepted as features.
    n_features_in_ = n_text_features_in_ = n_components_

    @property
    def fingerprint_(self) -> str:
        """Digest of the model's name or files and of the preprocessing."""
        self._check_parameters()
        encoders = self.image_encoder, self.text_encoder
        return joblib.hash([encoder._digest_identity() for encoder in encoders])

    @property
    def _weights_fingerprint(self) -> str | None:
        """Fingerprint of the weights, or None if they have not been downloaded."""
        return self.text_encoder._compute_weights_fingerprint()

    def _get_state(self) -> dict[str, Any]:
        return {"weights": self._weights_fingerprint}

    def _set_state(self, state: FittedState) -> None:
        self.text_encoder._set_state(state)

    def _get_recorded_params(self) -> dict[str, Any]:
        params = super()._get_recorded_params()
        return {**params, "revision": self.text_encoder._get_recorded_params()["revision"]}

    def _check_parameters(self) -> None:
        self.image_encoder._check_parameters()  # it has all parameters

    def _get_card_facts(self) -> Facts:
        name = escape_markdown(repr(self._get_model_name()))
        return Facts(
            what=f"The name of the OpenCLIP model {name}, without its weights.",
            usage=IMAGES_USAGE,
        )

    def _get_model_name(self) -> str:
        return self.model if self.pretrained is None else f"{self.model}/{self.pretrained}"

    def _get_image_features(self, X: Any, reset: bool, n_min: int = 1) -> np.ndarray:
        check_sequence(X, "X", "image", "images or features")
        if holds_images(X):
            return self.image_encoder.transform(X)
        features = as_floats(X, "X")
        if features.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {features.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input. Pass images, or features of "
                f"OpenCLIPImageEncoder({self._get_model_name()!r})."
            )
        return as_float32(features, "X", check_conditioning=False)

    def _encode_texts(self, texts: list[str], reset: bool) -> np.ndarray:
        self._check_parameters()
        return self.text_encoder.transform(texts)

    def _embed(self, side: str, features: np.ndarray) -> np.ndarray:
        return normalize_rows(features)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.target_tags.required = False
        tags.input_tags.two_d_array = False
        return tags
