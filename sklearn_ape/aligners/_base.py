"""Base class of aligners."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from ..encoders.images import digest_images
from ..encoders.resolve import describe_missing_encoder, encode_items, resolve_encoder
from ..features.matrix import (
    as_float32,
    check_stored_features,
    check_text_columns,
    embed_rows,
    explain_texts,
    find_missing_rows,
    row_blocks,
    select,
    stays_stored,
)
from ..metrics.retrieval import compute_both_ranks, recall_at_k
from ..persistence.mixins import FittedState
from ..training.data import PairDataset
from ..utils.linalg import choose_evenly_spaced
from ..utils.messages import warn
from ..utils.sklearn_compat import CallbackSupportMixin, DocLinkMixin
from ..utils.validation import FLOATS, as_floats, as_numeric, check_sequence, ignores_underflow
from ._serialization import SavedAlignerMixin
from .fitted_images import FittedImages
from .pairs import (
    EncodedPairs,
    append_head_pairs,
    as_sequence,
    check_lengths,
    encode_texts,
    encode_unique,
    flatten_captions,
    holds_images,
    holds_texts,
    make_distinct_pairs,
    make_item_pairs,
    resolve_head_pairs,
)
from .similarity import Bank, Standardizer, resolve_bank


class BaseAligner(
    SavedAlignerMixin,
    DocLinkMixin,
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Base class of aligners, which embed images and texts in a shared space.

    Large memory maps and large float16 arrays are read in blocks of rows, without a copy. The
    `fit` of a subclass calls `_forget_fit` and `_fit_pairs` first, and `_set_bank` last. A
    subclass defines `_embed`, `_get_learned_state` and `_restore_learned`. The `side` of a method
    is "image" or "text".
    """

    image_encoder: Any
    text_encoder: Any
    head_pairs: Any = None
    _text_feature_names: Any = ()  # columns of y, if `fit` was given a table
    _n_features_out = property(lambda self: self.n_components_)  # for get_feature_names_out

    _runtime_params: ClassVar = frozenset({"checkpoint", "device", "verbose"})
    _unsaved_params: ClassVar = frozenset({"callbacks"})

    # `groups` are passed for splitters such as GroupKFold, so `score` gets them on request only.
    # Pipeline.score passes sample_weight=None, and raises TypeError without a request for it.
    __metadata_request__score = {"groups": False, "sample_weight": None}  # noqa: RUF012

    @abstractmethod
    def _embed(self, side: str, features: np.ndarray) -> np.ndarray:
        """Return L2-normalized embeddings of finite features."""

    @abstractmethod
    def _get_learned_state(self) -> dict[str, Any]:
        """Return the parameters that `fit` learned, without the parameters of the encoders."""

    @abstractmethod
    def _restore_learned(self, state: FittedState) -> None:
        """Set the parameters that `_get_learned_state` returned, and the numbers of features."""

    def transform(self, X: Any) -> np.ndarray:
        """Embed images in the shared space.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images if `image_encoder` is set, otherwise features.

        Returns
        -------
        embeddings : ndarray of shape (n_samples, n_components_)
            L2-normalized embeddings. Rows of images that an encoder with ``on_error="nan"``
            could not encode are NaN.
        """
        check_is_fitted(self)
        return self._embed_valid("image", self._get_image_features(X, reset=False))

    def transform_text(self, y: Any) -> np.ndarray:
        """Embed texts in the shared space.

        Parameters
        ----------
        y : sequence of str, or array-like of shape (n_texts, n_text_features_in_)
            Texts if `text_encoder` is set, or features.

        Returns
        -------
        embeddings : ndarray of shape (n_texts, n_components_)
            L2-normalized embeddings.
        """
        check_is_fitted(self)
        return self._embed_valid("text", self._get_features_of_texts(y))

    @ignores_underflow
    def similarity(self, X: Any, y: Any, standardize: Any = False) -> np.ndarray:
        """Compute the cosine similarity of every image with every text.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images or features; see `transform`.
        y : sequence of str, or array-like of shape (n_texts, n_text_features_in_)
            Texts or features; see `transform_text`.
        standardize : bool or collection like X, default=False
            Whether to standardize the cosines of each image and of each text, so that texts (or
            images) that are similar to everything do not rank first everywhere [1]_ [2]_. True
            uses up to 1,000 of the training images and captions as reference. A collection,
            such as the images to be searched, replaces the training images. It is the better
            choice if the images differ in kind from the training images. At most 1,000 images
            of a collection are used, and their embeddings are cached.

        Returns
        -------
        similarity : ndarray of shape (n_samples, n_texts)
            Cosines between -1 and 1. Standardized ones are centered around 0 and not bounded.
            Values are NaN for images and texts that could not be encoded.

        Raises
        ------
        ValueError
            If `standardize` is True and the aligner was not fitted on images, or `standardize`
            is a collection with fewer than two different images.

        Notes
        -----
        The standardized similarity is the mean of two z-scores ``(s - m) / d``: one by the mean
        m and standard deviation d of the text's cosines with the reference images, the other by
        the moments of the image's cosines with the reference captions. It is multiplied by the
        mean of d over the reference, so that it has the unit of a cosine. Without captions
        (`CLIPAligner`) only the first z-score is used.

        References
        ----------
        .. [1] S.-V. Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation",
           CVPR 2022.
        .. [2] A. Conneau et al., "Word Translation Without Parallel Data", ICLR 2018 (CSLS).
        """
        check_is_fitted(self)
        bank = resolve_bank(standardize, self)
        images, texts = self._get_image_features(X, reset=False), self._get_features_of_texts(y)
        image_rows, text_rows = (np.flatnonzero(~find_missing_rows(f)) for f in (images, texts))
        similarity = np.full((len(images), len(texts)), np.nan, dtype=np.float32)
        if not (len(image_rows) and len(text_rows)):
            return similarity
        text_embeddings = self._embed_comparable("text", select(texts, text_rows))
        standardizer = None if bank is None else Standardizer(text_embeddings, bank)
        for block in row_blocks(images):
            rows = image_rows[(image_rows >= block.start) & (image_rows < block.stop)]
            embeddings = self._embed_comparable("image", images[rows])
            cosines = embeddings @ text_embeddings.T
            if standardizer is not None:
                standardizer.apply(cosines, embeddings)
            similarity[np.ix_(rows, text_rows)] = cosines
        return similarity

    def retrieval_report(
        self, X: Any, y: Any, ks: tuple[int, ...] = (1, 5, 10), groups: Any = None
    ) -> dict[str, dict[int, float]]:
        """Compute recall@k of retrieving captions by images and images by captions.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images or features, as in `fit`.
        y : sequence of captions, or array-like of shape (n_samples, n_text_features_in_)
            Captions or features, as in `fit`.
        ks : sequence of int, default=(1, 5, 10)
            Numbers of results at which recall is computed.
        groups : array-like of shape (n_samples,) or None, default=None
            Group of every row, such as the file name of its image; see `retrieval_ranks`.

        Returns
        -------
        recall : dict
            ``{"image_to_text": {k: recall}, "text_to_image": {k: recall}}``. A query is a hit
            if any of its correct results is among the first k.
        """
        check_sequence(ks, "ks", "integer")
        ranks = self.retrieval_ranks(X, y, groups)
        return {side: {k: recall_at_k(ranks[side], k) for k in ks} for side in ranks}

    @ignores_underflow
    def retrieval_ranks(self, X: Any, y: Any, groups: Any = None) -> dict[str, np.ndarray]:
        """Compute ranks of the correct captions of images, and of the correct images of captions.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images or features, as in `fit`.
        y : sequence of captions, or array-like of shape (n_samples, n_text_features_in_)
            Captions or features, as in `fit`.
        groups : array-like of shape (n_samples,) or None, default=None
            Group of every row, such as the file name of its image. All images and captions of a
            group are correct results for each other, and equal features within a group are one
            item. If None, items are identified as described in the Notes.

        Returns
        -------
        ranks : dict
            ``{"image_to_text": ndarray, "text_to_image": ndarray}``: for every distinct image,
            and every distinct caption, the number of candidates that rank before the best
            correct one; 0 is the best rank. `sklearn_ape.metrics.bootstrap_interval` computes
            intervals from them: ``bootstrap_interval(ranks["image_to_text"] < k)``.

        Warns
        -----
        UserWarning
            If many items have the same features as another item.

        Notes
        -----
        Images are identified by their content and captions by their text. Rows of features are
        separate items, unless `groups` says which belong together. A candidate that ties with
        the correct one ranks before it, so that equal embeddings get the worst ranks.
        """
        check_is_fitted(self)
        data = self._make_scored_pairs(X, y, groups)
        image = self._embed_comparable("image", data.image)
        text = self._embed_comparable("text", data.text)
        by_image, by_text = compute_both_ranks(image, text, data.pairs)
        return {"image_to_text": by_image, "text_to_image": by_text}

    def score(self, X: Any, y: Any, groups: Any = None) -> float:
        """Compute the mean of recall@1 in both directions.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images or features, as in `fit`.
        y : sequence of captions, or array-like of shape (n_samples, n_text_features_in_)
            Captions or features, as in `fit`.
        groups : array-like of shape (n_samples,) or None, default=None
            Group of every row, such as the file name of its image; see `retrieval_ranks`.

        Returns
        -------
        score : float
            Recall between 0 and 1. It decreases with the number of candidates, so only compare
            scores on test sets of the same size.
        """
        report = self.retrieval_report(X, y, (1,), groups)
        return float(np.mean([recall[1] for recall in report.values()]))

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the components of the embeddings.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the image features to be checked; ignored if `image_encoder` is set.

        Returns
        -------
        names : ndarray of str, shape (n_components_,)
            Name of the class in lower case, followed by the number of the component.
        """
        names = None if self.image_encoder is not None else input_features
        return super().get_feature_names_out(names)

    def was_fitted_on(self, X: Any) -> np.ndarray | None:
        """Find the training images in X, for example to exclude them from a test set.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features_in_)
            Images or features; see `transform`.

        Returns
        -------
        is_training_image : ndarray of bool, shape (n_samples,), or None
            True for an image with the same content as a training image (the bytes of a file, or
            the pixels of an array or PIL image), or practically the same features. False for
            unreadable images. None for `CLIPAligner`, which is not fitted.
        """
        check_is_fitted(self)
        fitted_images: FittedImages | None = getattr(self, "_fitted_images", None)
        if fitted_images is None:
            return None
        if not fitted_images.are_contents:
            return fitted_images.match_features(self._get_image_features(X, reset=False))
        digests = digest_images(X)
        if digests is None:
            self._get_image_features(X, reset=False)  # encoders of this package name the problem
            raise ValueError("X holds features, and fit was given images. Pass images.")
        return fitted_images.match_digests(digests)

    def _embed_valid(self, side: str, features: Any) -> np.ndarray:
        """Return embeddings of features, in which missing rows are NaN."""
        return embed_rows(features, partial(self._embed, side), lambda: self._n_features_out)

    def _embed_comparable(self, side: str, features: Any) -> Any:
        """Return embeddings, dense or `SparseRows`, whose products are cosines."""
        return self._embed_valid(side, features)

    def _set_bank(self, data: PairDataset) -> None:
        """Set `bank_` to embeddings of a sample of the training images and captions."""
        texts = np.unique(data.pairs[data.pairs[:, 0] < data.n_images, 1])
        self.bank_ = Bank.from_embeddings(
            self._embed_comparable("image", data.image[choose_evenly_spaced(data.n_images)]),
            self._embed_comparable("text", data.text[texts[choose_evenly_spaced(len(texts))]]),
        )

    def _forget_fit(self) -> None:
        """Remove the attributes of an earlier fit that the next one may not set."""
        for name in ("image_encoder_", "text_encoder_", "bank_", "_fitted_images", "_lost_fit"):
            self.__dict__.pop(name, None)

    def _fit_pairs(self, X: Any, y: Any) -> PairDataset:
        """Fit the encoders, and return the training pairs, followed by those of `head_pairs`."""
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None. Pass "
                "the captions (or their features) of the images in X."
            )
        head = None if self.head_pairs is None else resolve_head_pairs(self.head_pairs)
        encoded = self._encode_pairs(X, y, reset=True)
        self._fitted_images = FittedImages.from_features(encoded.image, encoded.image_digests)
        data = make_distinct_pairs(encoded)
        if len(data.pairs) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 pairs for a contrastive fit, got "
                f"n_samples={len(encoded.image_rows)} with 1 distinct pair. Pass more pairs."
            )
        self._n_pairs = len(data.pairs)
        if head is not None:
            data = append_head_pairs(self, head, data)
        if len(data.text) == 1:
            problem = "All captions in y are the same, or have the same features"
            remedy = "Pass different captions or classes, and check the text encoder if any"
            raise ValueError(f"{problem}. {remedy}.")
        return data

    def _get_encoder(self, side: str) -> Any:
        """Return the fitted encoder of a side, the one to fit, or None."""
        return getattr(self, f"{side}_encoder_", getattr(self, f"{side}_encoder"))

    def _make_scored_pairs(self, X: Any, y: Any, groups: Any = None) -> PairDataset:
        """Return the pairs to score, with one row per image and per caption."""
        return make_item_pairs(self._encode_pairs(X, y, reset=False), groups)

    def _encode_pairs(self, X: Any, y: Any, reset: bool) -> EncodedPairs:
        """Return features of both sides; y is checked before images are encoded."""
        check_sequence(X, "X", "image", "images or features")
        names = check_text_columns(y, [] if reset else self._text_feature_names)
        if reset:
            self._text_feature_names = names
        y = as_sequence(y)
        encode = self._encode_caption_pairs if holds_texts(y) else self._encode_feature_pairs
        encoded = encode(X, y, reset)
        digests = None if self._get_encoder("image") is None else digest_images(X)
        return encoded._replace(image_digests=digests)

    def _encode_caption_pairs(self, X: Any, y: Any, reset: bool) -> EncodedPairs:
        encoder = self._get_encoder("text")
        if encoder is None:
            lacks_both = reset and self._get_encoder("image") is None and holds_images(X)
            raise ValueError(describe_missing_encoder(lacks_both, hasattr(self, "init")))
        captions, rows = flatten_captions(y)
        if reset:  # report a wrong name before images are encoded
            resolve_encoder(encoder, "text")
        check_lengths(X, len(y))
        image = self._get_image_features(X, reset)
        text, text_rows = encode_unique(partial(self._encode_texts, reset=reset), captions, rows)
        return EncodedPairs(image, text, rows, text_rows, are_captions=True)

    def _encode_feature_pairs(self, X: Any, y: Any, reset: bool) -> EncodedPairs:
        takes_items = self._get_encoder("image") is not None or holds_images(X)
        takes_texts = takes_items or self._get_encoder("text") is not None
        if takes_texts and not issparse(y) and np.ndim(as_numeric(y, "y")) == 1:
            raise ValueError(
                "y holds values that are not texts or lists of texts. Pass captions, or features "
                "of shape (n_samples, n_features). For class labels use FewShotClassifier."
            )
        if takes_items or stays_stored(X) or stays_stored(y):
            text = self._get_text_features(y, reset)
            check_lengths(X, len(text))
            image = self._get_image_features(X, reset)
        else:  # in the order of scikit-learn's checks
            image = self._get_image_features(X, reset, n_min=2 if reset else 1)
            text = as_floats(y, "y", ensure_2d=False)
            check_consistent_length(image, text)
            if reset and text.ndim == 1:  # not an error, since check_estimator passes labels
                warn(
                    "y has one number per image, used as a single text feature. Pass captions, or "
                    "features of shape (n_samples, n_features). For labels use FewShotClassifier."
                )
            text = self._get_text_features(text.reshape(len(text), -1), reset)
        every_row = np.arange(len(image))
        return EncodedPairs(image, text, every_row, every_row)

    @explain_texts()
    def _get_image_features(self, X: Any, reset: bool, n_min: int = 1) -> Any:
        """Return at least `n_min` rows of image features; NaN where encoding failed."""
        check_sequence(X, "X", "image", "images or features")
        encoder = self._get_encoder("image") if reset else getattr(self, "image_encoder_", None)
        if encoder is not None:
            if reset:
                self.image_encoder_ = resolve_encoder(encoder, "image").fit(X, None)
            X = encode_items(self.image_encoder_, X, "image")
        elif holds_images(X):
            reason = "image_encoder is None" if reset else "this aligner was fitted on features"
            raise ValueError(
                f"X holds images, and {reason}. Fit with image_encoder="
                "TimmImageEncoder('efficientnet_lite0'), put the encoder before this step in a "
                "Pipeline, or pass features."
            )
        X = as_numeric(X, "X")
        if stays_stored(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return check_stored_features(X, "X")
        features = validate_data(
            self, X, reset=reset, dtype=FLOATS, ensure_all_finite=False, ensure_min_samples=n_min
        )
        return as_float32(features, "X", check_conditioning=reset)

    def _get_features_of_texts(self, y: Any) -> Any:
        """Return the text features of y, which holds features or one text per row."""
        check_text_columns(y, self._text_feature_names)
        y = as_sequence(y)
        if not holds_texts(y):
            return self._get_text_features(y, reset=False)
        texts, rows = flatten_captions(y)
        if len(rows) != len(y):
            raise ValueError("y holds lists of texts. Pass one text per row.")
        return self._encode_texts(texts, reset=False)

    def _encode_texts(self, texts: list[str], reset: bool) -> Any:
        encoder = self._get_encoder("text")
        if encoder is None or not (reset or hasattr(self, "text_encoder_")):
            raise ValueError(
                "y holds texts, and this aligner was fitted on features of texts. Pass "
                f"{self.n_text_features_in_} features per text, or fit with text_encoder on "
                "captions."
            )
        if reset:
            self.text_encoder_ = resolve_encoder(encoder, "text").fit(texts, None)
        return self._get_text_features(encode_texts(self.text_encoder_, texts), reset)

    def _get_text_features(self, y: Any, reset: bool) -> Any:
        """Return text features; rows of NaN where encoding failed."""
        y = as_numeric(y, "y")
        is_stored = stays_stored(y)
        features = y if is_stored else as_floats(y, "y")
        if reset:
            self.n_text_features_in_ = features.shape[1]
        elif features.shape[1] != self.n_text_features_in_:
            raise ValueError(
                f"y has {features.shape[1]} features, but {type(self).__name__} was fitted with "
                f"{self.n_text_features_in_} text features."
            )
        if is_stored:
            return check_stored_features(y, "y")
        return as_float32(features, "y", check_conditioning=reset)

    def __sklearn_is_fitted__(self) -> bool:
        # Set at the end of the fit, so that a failed fit leaves no fitted aligner.
        return "n_components_" in self.__dict__

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.target_tags.two_d_labels = False
        tags.transformer_tags.preserves_dtype = ["float32"]
        tags.input_tags.two_d_array = self.image_encoder is None
        return tags
