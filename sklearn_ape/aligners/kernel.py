"""Kernel ridge regression from texts to whitened images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..devices import resolve_device
from ..heads import KernelMap, TwoTower, WhitenedMap
from ..training.data import PairDataset, subset
from ..training.net import embed
from ..utils.validation import check_integer, check_number, check_verbose, resolve_random_state
from ._closed_form import (
    RIDGE,
    WHITENING,
    Targets,
    choose_scale_pairs,
    fit_held_out_logit_scale,
    fit_logit_scale,
    has_stable_whitening,
    hold_out_pairs,
    make_embedders,
    whiten_images,
)
from ._kernel_maps import choose_smoothness, make_kernel_maps
from ._kernel_ridge import count_fitting_anchors
from ._serialization import HeadsMixin
from ._trained import ClosedFormAligner, get_fitted_attributes

# If the solution is an approximation, a second one is computed for the logit scale. With this
# number of anchors, the scale of 16,384 icons was 17.0 instead of 17.6.
_MAX_SCALE_ANCHORS = 4096


@dataclass(eq=False, repr=False, kw_only=True)
class KernelAligner(HeadsMixin, ClosedFormAligner):
    """Align two frozen encoders in closed form, by kernel ridge regression.

    Image features are whitened, so that directions of small and of large variance have similar
    weight. A text is mapped to the images of similar texts [1]_. The solution needs no
    iterations, and a few thousand pairs take seconds.

    Parameters
    ----------
    image_encoder : transformer, str or None, default=None
        Encoder of images. A str is the name of an encoder with default parameters, such as
        ``"efficientnet_lite0"``; see `APEAligner`. If None, X holds features.
    text_encoder : transformer, str or None, default=None
        Encoder of captions. A str is the name of an encoder with default parameters, such as
        ``"all-MiniLM-L6-v2"``; see `APEAligner`. If None, y holds features.
    head_pairs : image encoder, str, HeadPairs or None, default=None
        Additional training pairs from the classification head of an image encoder: names,
        synonyms and definitions of its classes; see
        `sklearn_ape.encoders.classifier_head_pairs`. Pass the encoder that the features of X
        come from.
    gamma : float, "scale" or "auto", default="auto"
        Coefficient of the kernel ``exp(gamma * (cosine - 1))`` between texts. ``"scale"`` is
        6.8 divided by one minus the mean cosine of the captions, about 8 for MiniLM. ``"auto"``
        is a quarter of it, with twice the `ridge`, if there are at least 5,000 pairs and this
        increases the recall of held-out pairs by more than 2 %, and ``"scale"`` otherwise.
    ridge : float, default=0.3
        Strength of the regularization, above 0. Larger values give a smoother map.
    whitening : float, default=0.03
        Constant added to the variance of each direction of the image features, relative to the
        largest variance. Smaller values whiten more. The more captions are repeated, the smaller
        the constant is, down to a third.
    n_components : int or None, default=None
        Size of the embeddings: the number of image directions kept, by decreasing variance after
        whitening. None keeps all directions with variance. Directions without variance are never
        kept.
    max_anchors : int or "auto", default="auto"
        Largest number of distinct captions that are anchors of the kernel. If there are more, the
        captions of the most images are the anchors, and all captions are fitted (Nyström
        approximation [2]_). It takes 4 bytes of memory times the square of the number. With
        ``"auto"``, there are as many anchors as fit in 30 % of the available memory (2 bytes times
        the square of the number, 7 GB for 60,000 captions), and each other caption is fitted like
        a copy of the most similar anchor, with less weight. To use all captions as anchors if
        their matrix does not fit in memory, pass at least their number: conjugate gradients are
        used, which take longer.
    device : {"auto"}, str or torch.device, default="auto"
        Device on which the solution and embeddings are computed. ``"auto"`` is a GPU if available.
    random_state : int, RandomState instance or None, default=0
        Seed of the choice of anchors, and of the pairs by which ``gamma="auto"`` is chosen.
    verbose : int or None, default=None
        1 shows a progress bar while the equations are solved, 0 does not. None shows one in
        terminals and notebooks if the work takes more than two seconds.

    Attributes
    ----------
    module_ : sklearn_ape.heads.TwoTower
        The maps of both sides, on the CPU.
    gamma_ : float
        The gamma used.
    logit_scale_ : float
        Logit scale (factor of the cosines), fitted on held-out pairs. With fewer than 50 groups of
        pairs that share no image or caption, new images of known captions are held out. With
        fewer than four images it is 1.
    n_parameters_ : int
        Number of stored parameters.
    n_components_ : int
        Size of the embeddings: `n_components`, or fewer if the images vary in fewer directions.
    n_features_in_, n_text_features_in_ : int
        Numbers of image features and of text features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the image features, if X is a table with column names.
    image_encoder_, text_encoder_ : transformer
        The fitted encoders, if `image_encoder` or `text_encoder` is set.
    bank_ : Bank
        Embeddings of up to 1,000 training images and captions, by which cosines are standardized.
    fingerprint_ : str
        Digest of the solution.

    See Also
    --------
    APEAligner : Tunes this solution, and blends it with a trained head.
    CCAAligner : Uses linear maps on both sides.
    ASIFAligner : Compares with the training pairs and solves no equations.

    Notes
    -----
    If several images have the same caption, they are whitened by the variance within captions
    more than by that of all images, the more so the more captions are repeated. Embeddings then
    depend less on the style of an image.

    A text of several images is mapped to their mean. To train on titles, synonyms or
    descriptions as well, pass a list of captions per image; each caption is a separate row. The
    time of a fit is proportional to the cube of the number of anchors.

    A caption that is unlike all training captions is far from every anchor. Its embedding is
    then determined by the few nearest anchors.

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

    image_encoder: Any = None
    text_encoder: Any = None
    head_pairs: Any = None
    gamma: float | str = "auto"
    ridge: float = RIDGE
    whitening: float = WHITENING
    n_components: int | None = None
    max_anchors: int | str = "auto"
    device: str | torch.device | None = "auto"
    random_state: int | np.random.RandomState | None = 0
    verbose: int | None = None

    def _fit_data(self, data: PairDataset) -> None:
        image_map = self._whiten(data)
        options = self._choose_options(data, image_map)
        held_out = _choose_held_out_pairs(data)
        held_out_texts = np.unique(data.pairs[held_out, 1])
        targets = Targets(data, image_map)
        maps = make_kernel_maps(targets, **options, held_out_texts=held_out_texts)
        module = maps.make_module()
        if maps.held_out_text is not None:
            rows = choose_scale_pairs(data, held_out)
            part, texts = subset(data, rows), np.unique(data.pairs[rows, 1])
            image = embed(module, "image", part.image, "cpu")
            text = maps.held_out_text[np.searchsorted(held_out_texts, texts)]
            self._set_module(module, fit_logit_scale(image, text, part.pairs))
            return
        # Otherwise, solutions of training pairs are computed to fit the scale on held-out pairs.
        options["max_anchors"] = min(_MAX_SCALE_ANCHORS, len(module.text_head.base.anchors))

        def fit(pairs: PairDataset) -> tuple[Callable, Callable]:
            maps = make_kernel_maps(Targets(pairs, self._whiten(pairs)), **options)
            return make_embedders(maps.make_module())

        self._set_module(module, fit_held_out_logit_scale(data, fit))

    def _whiten(self, data: PairDataset) -> WhitenedMap:
        return whiten_images(data, self.whitening, self.n_components)

    def _choose_options(self, data: PairDataset, image_map: WhitenedMap) -> dict[str, Any]:
        """Return the options of `make_kernel_maps`, in which "auto" is resolved."""
        device = resolve_device(self.device)
        is_auto = self.max_anchors == "auto"
        options: dict[str, Any] = {
            "seed": resolve_random_state(self.random_state).randint(np.iinfo(np.int32).max),
            "device": device,
            "max_texts": count_fitting_anchors(device) if is_auto else None,
            "max_anchors": None if is_auto else int(self.max_anchors),
            "verbose": self.verbose,
        }
        if self.gamma == "auto":
            return options | choose_smoothness(data, image_map, self.ridge, **options)
        return options | {"gamma": self.gamma, "ridge": self.ridge}

    def _set_module(self, module: TwoTower, logit_scale: float) -> None:
        kernel_map = getattr(module.text_head, "base", None)
        if not isinstance(kernel_map, KernelMap):
            raise ValueError("text_head is not a kernel map. The file is damaged.")
        self.gamma_ = float(kernel_map.gamma)
        self.__dict__.update(get_fitted_attributes(module, logit_scale))

    def _check_parameters(self) -> None:
        if not isinstance(self.gamma, str):
            check_number(self.gamma, "gamma", 0, closed="neither")
        elif self.gamma not in ("auto", "scale"):
            raise ValueError(
                f"gamma must be a number above 0, 'auto' or 'scale', not {self.gamma!r}."
            )
        check_number(self.ridge, "ridge", 0, closed="neither")
        check_number(self.whitening, "whitening", 0, closed="neither")
        check_integer(self.n_components, "n_components", 1, optional=True)
        check_integer(self.max_anchors, "max_anchors", 2, auto=True)
        check_verbose(self.verbose)
        resolve_random_state(self.random_state)
        resolve_device(self.device)


def _choose_held_out_pairs(data: PairDataset) -> np.ndarray:
    """Return the rows of pairs whose embeddings follow from the decomposition for all pairs.

    These are the held-out pairs on which the logit scale is fitted, if there is one split, and it
    affects neither their captions nor the whitening. Otherwise no rows are returned.
    """
    splits = hold_out_pairs(data)
    if len(splits) == 1 and has_stable_whitening(data):
        train, held_out = splits[0]
        if not np.isin(data.pairs[held_out, 1], data.pairs[train, 1]).any():
            return held_out
    return np.empty(0, dtype=np.intp)
