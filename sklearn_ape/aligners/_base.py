"""The contract that all aligners share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from ..encoders.images import image_digests
from ..encoders.resolve import resolve_encoder
from ..features.memmap import find_missing_rows, row_blocks, select, stays_stored
from ..features.validation import as_float32, check_stored_features, embed_rows
from ..metrics import recall_at_k
from ..metrics.retrieval import compute_both_ranks
from ..training.data import Pairs
from ..utils.linalg import evenly_spaced
from ..utils.sklearn_compat import CallbackSupportMixin, DocLinkMixin
from ..utils.validation import FLOATS, as_floats, as_numeric, check_sequence, ignores_underflow
from ..utils.warnings import warn
from ._head_pairs import resolve_head_pairs, with_head_pairs
from ._serialization import SavedAligner
from .fitted_images import FittedImages
from .pairs import (
    Rows,
    as_sequence,
    check_lengths,
    distinct_pairs,
    encode_unique,
    flatten_captions,
    holds_images,
    holds_texts,
    item_pairs,
)
from .similarity import Bank, Standardizer, resolve_bank

# Set when something has been learned, so that a fit that failed leaves no fitted aligner.
_LEARNED = ("_n_features_out",)


class BaseAligner(
    SavedAligner,
    DocLinkMixin,
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Maps features of frozen encoders of images and texts into one space.

    Large memory maps, and large arrays of float16, are not copied: they are read a bounded number
    of rows at a time, wherever features are taken. Embeddings are returned in memory.

    Subclasses fit themselves on `_fit_pairs`, say how one side is embedded and end their fit with
    `_keep_bank`. Their `head_pairs` is None, an image encoder with a classification head, or
    `HeadPairs`: pairs to fit on besides those in X and y.
    """

    image_encoder: Any
    text_encoder: Any
    head_pairs: Any = None

    # Groups that are passed for a splitter, such as GroupKFold, need not say what the items are:
    # score gets them on request only. Pipeline.score raises TypeError unless its last step knows
    # sample_weight, although it passes none.
    __metadata_request__score = {"groups": False, "sample_weight": None}  # noqa: RUF012

    @abstractmethod
    def _embed_image(self, features: np.ndarray) -> np.ndarray:
        """Return embeddings of length 1 of finite image features."""

    @abstractmethod
    def _embed_text(self, features: np.ndarray) -> np.ndarray:
        """Return embeddings of length 1 of finite text features."""

    def transform(self, X: Any) -> np.ndarray:
        """Embed images in the shared space.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images if `image_encoder` is set, else features.

        Returns
        -------
        embeddings : ndarray of shape (n_samples, n_components_)
            Of length 1. NaN for an image that an encoder with ``on_error="nan"`` gave up.
        """
        check_is_fitted(self)
        features = self._image_features(X, reset=False)
        return embed_rows(features, self._embed_image, self._n_features_out)

    def transform_text(self, y: Any) -> np.ndarray:
        """Embed texts in the shared space.

        Parameters
        ----------
        y : sequence of str, or array-like of shape (n_texts, n_text_features_in_)
            Texts if `text_encoder` is set, or features.

        Returns
        -------
        embeddings : ndarray of shape (n_texts, n_components_)
            Of length 1.
        """
        check_is_fitted(self)
        features = self._features_of_texts(y)
        return embed_rows(features, self._embed_text, self._n_features_out)

    @ignores_underflow
    def similarity(self, X: Any, y: Any, standardize: Any = False) -> np.ndarray:
        """Cosine of every image with every text.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            See `transform`.
        y : sequence of str, or array-like of shape (n_texts, n_text_features_in_)
            See `transform_text`.
        standardize : bool or collection like X, default=False
            Whether cosines are taken relative to what is usual for the image and for the text,
            which keeps texts (or images) that are similar to everything from coming first
            everywhere [1]_ [2]_. True compares with up to 1,000 of the images and captions
            that the aligner was fitted on. A collection, such as the images that are searched,
            stands in for those images, and is the better choice where images are of another
            kind than those of the fit; of a large one 1,000 are used, and embedded once.

        Returns
        -------
        similarity : ndarray of shape (n_samples, n_texts)
            Between -1 and 1; standardised, around 0 and not bounded. NaN where an encoder gave
            up.

        Raises
        ------
        ValueError
            When the aligner was not fitted on images and `standardize` is True, or a collection
            has fewer than two images that differ.

        Notes
        -----
        Standardised is the mean of ``(s - m) / d`` over two pairs of mean m and standard
        deviation d: those of the text's cosines with the images of the bank, and those of the
        image's cosines with its captions. It is given in units of cosines: times the mean of
        d over the bank. Without captions (`CLIPAligner`) it is the first of the two alone.

        References
        ----------
        .. [1] S.-V. Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation",
           CVPR 2022.
        .. [2] A. Conneau et al., "Word Translation Without Parallel Data", ICLR 2018 (CSLS).
        """
        check_is_fitted(self)
        bank = resolve_bank(standardize, self, self.transform, whole=self)
        image, text = self._image_features(X, reset=False), self._features_of_texts(y)
        known_image, known_text = (
            np.flatnonzero(~find_missing_rows(side)) for side in (image, text)
        )
        similarity = np.full((len(image), len(text)), np.nan, dtype=np.float32)
        if not (len(known_image) and len(known_text)):
            return similarity
        texts = self._compared_texts(select(text, known_text))
        standardizer = None if bank is None else Standardizer(texts, bank)
        for rows in row_blocks(image):
            some = known_image[(known_image >= rows.start) & (known_image < rows.stop)]
            images = self._compared_images(image[some])
            cosines = images @ texts.T
            if standardizer is not None:
                standardizer.apply(cosines, images)
            similarity[np.ix_(some, known_text)] = cosines
        return similarity

    def retrieval_report(
        self, X: Any, y: Any, ks: tuple[int, ...] = (1, 5, 10), groups: Any = None
    ) -> dict[str, dict[int, float]]:
        """Recall@k of finding captions by images and images by captions.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            See `fit`.
        y : sequence of captions, or array-like of shape (n_samples, n_text_features_in_)
            See `fit`.
        ks : tuple of int, default=(1, 5, 10)
            Numbers of results at which recall is taken.
        groups : array-like of shape (n_samples,) or None, default=None
            Group of every row, such as the file name of its image. Images and captions of one
            group are right answers for one another, and equal features within a group are one
            item. None: see `retrieval_ranks`.

        Returns
        -------
        recall : dict
            ``{"image_to_text": {k: recall}, "text_to_image": {k: recall}}`` over the images and
            captions that `retrieval_ranks` describes; a hit on any caption of an image counts.
        """
        return {
            way: {k: recall_at_k(ranks, k) for k in ks}
            for way, ranks in self.retrieval_ranks(X, y, groups).items()
        }

    @ignores_underflow
    def retrieval_ranks(self, X: Any, y: Any, groups: Any = None) -> dict[str, np.ndarray]:
        """Ranks of the right captions by images, and of the right images by captions.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            See `fit`.
        y : sequence of captions, or array-like of shape (n_samples, n_text_features_in_)
            See `fit`.
        groups : array-like of shape (n_samples,) or None, default=None
            Group of every row, such as the file name of its image. Images and captions of one
            group are right answers for one another, and equal features within a group are one
            item. None: see Notes.

        Returns
        -------
        ranks : dict
            ``{"image_to_text": ndarray, "text_to_image": ndarray}``: for every distinct image,
            and every distinct caption, the number of candidates that come before the best of its
            own; 0 is the best rank. `sklearn_ape.metrics.bootstrap_interval` turns them into
            intervals: ``bootstrap_interval(ranks["image_to_text"] < k)``.

        Warns
        -----
        UserWarning
            When many items have the same features as another one.

        Notes
        -----
        Which images and captions are the same is decided by what they are, never by their
        features: images by their content, captions by their text. Where X or y is features,
        every row is an item of its own, unless `groups` says which rows belong together. A
        candidate that ties with the right one counts as coming before it, so that an encoder
        that maps everything to one vector gets the worst ranks.
        """
        check_is_fitted(self)
        data = self._scored_pairs(X, y, groups)
        by_image, by_text = compute_both_ranks(*self._compared(data), data.pairs)
        return {"image_to_text": by_image, "text_to_image": by_text}

    def score(self, X: Any, y: Any, groups: Any = None) -> float:
        """Mean of recall@1 in both directions.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            See `fit`.
        y : sequence of captions, or array-like of shape (n_samples, n_text_features_in_)
            See `fit`.
        groups : array-like of shape (n_samples,) or None, default=None
            Group of every row, such as the file name of its image. Images and captions of one
            group are right answers for one another, and equal features within a group are one
            item. None: see `retrieval_ranks`.

        Returns
        -------
        score : float
            Between 0 and 1. It gets harder with the number of captions to choose from, so
            compare scores of test sets of one size. The embeddings of all pairs are held in
            memory.

        See Also
        --------
        retrieval_ranks : Says which images and captions count as the same.
        """
        report = self.retrieval_report(X, y, (1,), groups)
        return float(np.mean([recall[1] for recall in report.values()]))

    def was_fitted_on(self, X: Any) -> np.ndarray | None:
        """Say which images the aligner was fitted on, for example to exclude them from a test set.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            See `transform`.

        Returns
        -------
        is_known : ndarray of bool, shape (n_samples,), or None
            True for an image with the same content as one of the training images (the bytes of a
            file, or the pixels of an array or PIL image); where X is features, with practically
            the same features. False for an image that cannot be read. None where nothing is
            recorded: for `CLIPAligner`, and for models saved by versions that kept no record.
        """
        check_is_fitted(self)
        fitted: FittedImages | None = getattr(self, "_fitted_images", None)
        if fitted is None:
            return None
        digests = image_digests(X) if fitted.are_contents else None
        if digests is not None:
            return fitted.contain(None, digests)
        # Where images are expected and X is something else, this says so.
        return fitted.contain(self._image_features(X, reset=False), None)

    def _compared(self, data: Pairs) -> tuple[Any, Any]:
        """Return the embeddings of images and captions whose products are cosines."""
        return self._compared_images(data.image), self._compared_texts(data.text)

    def _compared_images(self, features: Any) -> Any:
        return embed_rows(features, self._embed_image, self._n_features_out)

    def _compared_texts(self, features: Any) -> Any:
        return embed_rows(features, self._embed_text, self._n_features_out)

    def _keep_bank(self, data: Pairs) -> None:
        """Keep what `similarity` is standardised by: embeddings of some of the training pairs."""
        real = data.pairs[:, 0] < data.n_images
        texts = np.unique(data.pairs[real, 1])
        some = data._replace(
            image=data.image[evenly_spaced(data.n_images)],
            text=data.text[texts[evenly_spaced(len(texts))]],
        )
        self.bank_ = Bank.of(*self._compared(some))

    def _fit_pairs(self, X: Any, y: Any) -> Pairs:
        """Return the training pairs, with encoders fitted and widths remembered.

        The pairs of `head_pairs` come last.
        """
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None: pass "
                "the captions (or their features) of the images in X."
            )
        # What an earlier fit left must not answer for this one.
        for stale in ("image_encoder_", "text_encoder_", "bank_", "_fitted_images"):
            self.__dict__.pop(stale, None)
        head = None if self.head_pairs is None else resolve_head_pairs(self.head_pairs)
        rows = self._rows(X, y, reset=True)
        self._fitted_images = FittedImages.of(rows.image, rows.image_digests)
        data = distinct_pairs(rows)
        if len(data.pairs) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 pairs, found n_samples=1: with one pair "
                "there is nothing to tell it from."
            )
        self._n_pairs = len(data.pairs)
        if head is not None:
            data = with_head_pairs(self, head, data)
        if len(data.text) == 1:
            warn("All captions are the same: there is nothing to align.")
        return data

    def _scored_pairs(self, X: Any, y: Any, groups: Any = None) -> Pairs:
        """Return the pairs that a score is taken of, one row per image and per caption."""
        return item_pairs(self._rows(X, y, reset=False), groups)

    def _rows(self, X: Any, y: Any, reset: bool) -> Rows:
        """Return features of both sides; captions are checked before images are encoded."""
        captions: list[str] | None = None
        check_sequence(X, "X", "image", "images or features")
        y = as_sequence(y)
        if holds_texts(y):
            if self.text_encoder is None:
                raise ValueError(
                    "y holds captions, and text_encoder is None: pass text_encoder="
                    "TransformersTextEncoder('all-MiniLM-L6-v2'), or features of the captions."
                )
            captions, rows = flatten_captions(y)
            n_rows = len(y)
            if reset:  # a wrong name is found before images are encoded
                resolve_encoder(self.text_encoder, "text")
        elif self.text_encoder is not None and not issparse(y) and np.ndim(y) == 1:
            raise ValueError(
                "y holds numbers, and text_encoder is set: expected captions (or their features "
                "of shape (n_samples, n_features)). For class labels use ZeroShotClassifier."
            )
        elif self.image_encoder is not None or holds_images(X):
            text = self._text_features(y, reset)
            n_rows = len(text)
        else:
            image, text = self._both_features(X, y, reset)
            every = np.arange(len(image))
            return Rows(image, text, every, every)
        check_lengths(X, n_rows)
        image = self._image_features(X, reset)
        digests = None if self.image_encoder is None else image_digests(X)
        if captions is None:
            every = np.arange(len(image))
            return Rows(image, text, every, every, digests)
        encoded, numbers = encode_unique(
            lambda texts: self._encoded_texts(texts, reset), captions, rows
        )
        return Rows(image, encoded, rows, numbers, digests, are_captions=True)

    def _both_features(self, X: Any, y: Any, reset: bool) -> tuple[Any, Any]:
        """Validate features of both sides as scikit-learn does."""
        if stays_stored(X) or stays_stored(y):
            check_lengths(X, len(y))
            return self._image_features(X, reset), self._text_features(y, reset)
        image = self._image_features(X, reset, least=2 if reset else 1)
        text = as_floats(y, "y", ensure_2d=False)
        check_consistent_length(image, text)
        return image, self._text_features(text.reshape(len(text), -1), reset)

    def _image_features(self, X: Any, reset: bool, least: int = 1) -> Any:
        """Return image features, at least so many, rows of NaN where an encoder gave up."""
        check_sequence(X, "X", "image", "images or features")
        if self.image_encoder is not None:
            if reset:
                self.image_encoder_ = resolve_encoder(self.image_encoder, "image").fit(X, None)
            X = _dense(self.image_encoder_.transform(X))
        elif holds_images(X):
            raise ValueError(
                "X holds images, and image_encoder is None: pass image_encoder="
                "TimmImageEncoder('efficientnet_lite0'), put the encoder before this step in a "
                "Pipeline, or pass features."
            )
        X = as_numeric(X, "X")
        if stays_stored(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return check_stored_features(X, "X")
        features = validate_data(
            self,
            X,
            reset=reset,
            dtype=FLOATS,
            ensure_all_finite=False,
            ensure_min_samples=least,
        )
        return as_float32(features, "X", check_conditioning=reset)

    def _features_of_texts(self, y: Any) -> Any:
        """Return features of texts, one text a row, or of the features given."""
        y = as_sequence(y)
        if not holds_texts(y):
            return self._text_features(y, reset=False)
        texts, rows = flatten_captions(y)
        if len(rows) != len(y):
            raise ValueError("transform_text takes one text a row, not lists of texts.")
        return self._encoded_texts(texts, reset=False)

    def _encoded_texts(self, texts: list[str], reset: bool) -> Any:
        if self.text_encoder is None or not (reset or hasattr(self, "text_encoder_")):
            raise ValueError(
                "These are texts, and this aligner was fitted on features of texts: pass features "
                f"of width {self.n_text_features_in_}, or fit with text_encoder on captions."
            )
        if reset:
            self.text_encoder_ = resolve_encoder(self.text_encoder, "text").fit(texts, None)
        return self._text_features(_dense(self.text_encoder_.transform(texts)), reset)

    def _text_features(self, y: Any, reset: bool) -> Any:
        """Return text features, rows of NaN where an encoder gave up."""
        y = as_numeric(y, "y")
        stored = stays_stored(y)
        features = y if stored else as_floats(y, "y")
        if reset:
            self.n_text_features_in_ = features.shape[1]
        elif features.shape[1] != self.n_text_features_in_:
            raise ValueError(
                f"The texts have {features.shape[1]} features, but {type(self).__name__} was "
                f"fitted with {self.n_text_features_in_} text features."
            )
        return (
            check_stored_features(y, "y")
            if stored
            else as_float32(features, "y", check_conditioning=reset)
        )

    def __sklearn_is_fitted__(self) -> bool:
        return all(name in self.__dict__ for name in _LEARNED)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.target_tags.two_d_labels = False
        tags.transformer_tags.preserves_dtype = ["float32"]
        tags.input_tags.two_d_array = self.image_encoder is None
        return tags


def _dense(features: Any) -> Any:
    return features.toarray() if issparse(features) else features
