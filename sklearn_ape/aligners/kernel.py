"""A kernel ridge regression from texts to whitened images, in closed form."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.utils import check_random_state

from ..devices import resolve_device
from ..heads import ClosedFormHead, KernelMap, TwoTower
from ..training.data import Pairs
from ..utils.sklearn_compat import reports_fit
from ..utils.torch_state import default_state
from ..utils.validation import check_integer, check_number
from ._base import BaseAligner
from ._closed_form import MOST_ANCHORS, RIDGE, WHITENING, held_out_logit_scale, kernel_maps
from ._serialization import SavedHeads
from .similarity import embedded, make_embedders


class KernelAligner(SavedHeads, BaseAligner):
    """Align two frozen encoders in closed form, by kernel ridge regression.

    Image features are whitened, so that what tells few images apart counts as much as what
    tells many. A text is sent to where the images of similar texts lie. Nothing is drawn at
    random and nothing iterates: a few thousand pairs take seconds.

    Parameters
    ----------
    image_encoder : transformer, str or None, default=None
        Turns images into features, such as `TimmImageEncoder`. A str is the name of an encoder
        with default parameters: a name of `sklearn_ape.encoders.list_encoders` such as
        ``"efficientnet_lite0"``, any model of timm, ``"transformers:NAME"`` or
        ``"open_clip:NAME"``. With None, X is features (as in a Pipeline whose first step is the
        encoder).
    text_encoder : transformer, str or None, default=None
        Turns captions into features, such as `TransformersTextEncoder`. A str is the name of an
        encoder with default parameters: ``"all-MiniLM-L6-v2"``, any model of the transformers
        library, or ``"open_clip:NAME"``. With None, y is features.
    head_pairs : image encoder, str, HeadPairs or None, default=None
        Names, synonyms and definitions of the classes that an image encoder can classify, as
        pairs beside those in X and y; see `sklearn_ape.encoders.classifier_head_pairs`. Give the
        encoder that the features of X come from.
    gamma : float or "scale", default="scale"
        How fast the influence of a text falls with the angle between texts:
        ``exp(gamma * (cosine - 1))``. ``"scale"`` is 6.8 divided by one less the mean cosine of
        the captions, about 8 for MiniLM.
    ridge : float, default=0.3
        Above 0; more is smoother.
    whitening : float, default=0.03
        Added to the variance of each direction of the image features, in units of the largest;
        less whitens more.
    n_components : int or None, default=None
        Size of the embeddings: the image directions of largest variance. None keeps all that
        vary, and more than vary are not kept.
    max_anchors : int, default=16384
        With more distinct captions, so many are drawn to stand for all (Nyström), to bound memory
        at 8 bytes times its square, and time.
    device : {"auto"}, str or torch.device, default="auto"
        Where embeddings are computed; the solution is found on the CPU.
    random_state : int, RandomState instance or None, default=0
        Draws the anchors where there are too many captions.

    Attributes
    ----------
    module_ : sklearn_ape.heads.TwoTower
        The maps of both sides, on the CPU.
    gamma_ : float
        The gamma used.
    logit_scale_ : float
        Factor of the cosines that suits pairs not seen in fit.
    n_parameters_ : int
        Numbers stored.
    n_components_ : int
        Size of the embeddings.
    n_features_in_ : int
        Width of the image features.
    n_text_features_in_ : int
        Width of the text features.
    image_encoder_, text_encoder_ : transformer
        The encoders used, where they were given.
    bank_ : Bank
        Embeddings of up to 1,000 training images and captions, which `similarity` and
        `ZeroShotClassifier` standardise by.
    fingerprint_ : str
        Digest of the solution.

    See Also
    --------
    APEAligner : Starts at this solution and trains from there.
    CCAAligner : Linear on both sides.
    ASIFAligner : Solves nothing.

    Notes
    -----
    A text of several images is sent to their mean. To teach titles, synonyms or descriptions as
    well, give lists of captions: each is a row of its own. A fit takes memory of 8 bytes times
    the squared number of distinct captions, and time with its cube: 4,000 captions about 2
    seconds, 12,000 about 15 on two cores.

    A caption like no other in the training set lies far from every anchor; its embedding then
    points where the few nearest do.

    References
    ----------
    .. [1] C. Saunders, A. Gammerman and V. Vovk, "Ridge Regression Learning Algorithm in Dual
       Variables", ICML 1998.
    .. [2] C. Williams and M. Seeger, "Using the Nyström Method to Speed Up Kernel Machines",
       NeurIPS 2000.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape import KernelAligner
    >>> rng = np.random.default_rng(0)
    >>> concepts = rng.standard_normal((300, 8))
    >>> image_features = concepts @ rng.standard_normal((8, 32))
    >>> text_features = concepts @ rng.standard_normal((8, 16))
    >>> aligner = KernelAligner().fit(image_features[:200], text_features[:200])
    >>> aligner.score(image_features[200:], text_features[200:]) > 0.5
    True
    """

    def __init__(
        self,
        *,
        image_encoder: Any = None,
        text_encoder: Any = None,
        head_pairs: Any = None,
        gamma: float | str = "scale",
        ridge: float = RIDGE,
        whitening: float = WHITENING,
        n_components: int | None = None,
        max_anchors: int = MOST_ANCHORS,
        device: str | torch.device | None = "auto",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.head_pairs = head_pairs
        self.gamma = gamma
        self.ridge = ridge
        self.whitening = whitening
        self.n_components = n_components
        self.max_anchors = max_anchors
        self.device = device
        self.random_state = random_state

    @reports_fit
    def fit(self, X: Any, y: Any) -> Self:
        """Solve for the maps of both sides.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            Images if `image_encoder` is set, else features of images.
        y : sequence of length n_samples, or array-like of shape (n_samples, n_text_features)
            With `text_encoder`, a caption or a list of captions for every image. Else features.

        Returns
        -------
        self : object
            The fitted aligner.

        Raises
        ------
        ValueError
            When parameters or data cannot be used; the message names the row and the remedy.
        """
        self._check_parameters()
        with default_state():
            data = self._fit_pairs(X, y)
            seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
            self._keep(self._solved(data, seed))
            self.logit_scale_ = held_out_logit_scale(
                data, lambda some: make_embedders(self._solved(some, seed))
            )
            self._keep_bank(data)
        return self

    def _solved(self, data: Pairs, seed: int) -> TwoTower:
        maps = kernel_maps(
            data,
            gamma=self.gamma,
            ridge=self.ridge,
            whitening=self.whitening,
            n_components=self.n_components,
            max_anchors=self.max_anchors,
            rng=np.random.RandomState(seed),
        )
        return TwoTower(ClosedFormHead(maps.image), ClosedFormHead(maps.text)).eval()

    def _keep(self, module: TwoTower) -> None:
        self.module_ = module
        self.gamma_ = float(module.text_head.base.gamma)
        self.n_parameters_ = sum(buffer.numel() for buffer in module.buffers())
        self.n_components_ = self._n_features_out = module.n_components
        self.fingerprint_ = module.fingerprint()

    def _keep_restored(self, module: TwoTower, logit_scale: float) -> None:
        if not isinstance(getattr(module.text_head, "base", None), KernelMap):
            raise ValueError("The text head must be a kernel's.")
        self._keep(module)

    def _embed_image(self, features: np.ndarray) -> np.ndarray:
        return self._embed("image", features)

    def _embed_text(self, features: np.ndarray) -> np.ndarray:
        return self._embed("text", features)

    def _embed(self, side: str, features: np.ndarray) -> np.ndarray:
        return embedded(self.module_, side, features, self.device)

    def _check_parameters(self) -> None:
        if self.gamma != "scale":
            check_number(self.gamma, "gamma", 0, closed="neither")
        check_number(self.ridge, "ridge", 0, closed="neither")
        check_number(self.whitening, "whitening", 0, closed="neither")
        check_integer(self.n_components, "n_components", 1, optional=True)
        check_integer(self.max_anchors, "max_anchors", 2)
        resolve_device(self.device)
