"""Quality and near-duplicates of image–caption pairs, and checks of captions."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GroupKFold
from sklearn.utils import gen_batches

from ..aligners.kernel import KernelAligner
from ..aligners.pairs import (
    as_sequence,
    flatten_captions,
    holds_images,
    holds_texts,
    renumber_errors,
)
from ..encoders.items import EncodingError
from ..encoders.resolve import encode_items
from ..features.matrix import as_float32, iter_row_tiles
from ..training.data import group_pairs
from ..utils.linalg import merge_groups, normalize_rows
from ..utils.sklearn_compat import check_cv, read_splits
from ..utils.validation import (
    as_floats,
    check_not_masked,
    check_number,
    check_sequence,
    number_distinct,
    number_groups,
    resolve_random_state,
)

# Shape of a tile of similarities if pairs of all rows are compared.
_TILE_ROWS, _TILE_COLUMNS = 1024, 8192
# Maximum number of other pairs, drawn at random, among which a pair is ranked.
_MAX_RIVALS = 2000
# More anchors take more time, and found no more swapped captions among 9,800 pairs.
_MAX_ANCHORS = 4096
# The specificity of a caption decreases when it has more distinct images than this.
_MAX_SHARED_IMAGES = 10


class Captions(NamedTuple):
    """Flat list of captions, as texts or features, and the index of the first caption per row."""

    n_rows: int
    starts: np.ndarray
    texts: list[str] | None
    features: np.ndarray | None

    def select_captions(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the captions of rows, and the first position of each row."""
        counts = self.starts[rows + 1] - self.starts[rows]
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        offsets = np.repeat(self.starts[rows] - starts, counts)
        return np.arange(counts.sum()) + offsets, starts

    def encode(self, encoder: Any) -> Any:
        """Return features of the texts; an error names the rows of texts that are invalid."""
        try:
            return encode_items(encoder, self.texts, "text")
        except EncodingError as error:
            rows = np.repeat(np.arange(self.n_rows), np.diff(self.starts))
            raise renumber_errors(error, rows, "caption") from None


def check_captions(captions: Any) -> Captions:
    """Return valid captions; each row has at least one."""
    captions = as_sequence(captions, "captions")
    if holds_texts(captions):
        texts, rows = flatten_captions(captions)
        counts = np.bincount(rows, minlength=len(captions))
        return Captions(len(captions), np.concatenate([[0], np.cumsum(counts)]), texts, None)
    features = as_float_features(captions, "captions")
    return Captions(len(features), np.arange(len(features) + 1), None, features)


def as_float_features(features: Any, name: str, check_conditioning: bool = False) -> np.ndarray:
    """Return features as float32; they may contain NaN."""
    check_sequence(features, name, "row", "rows of features")
    if holds_images(features) or holds_texts(features):
        example = "TimmImageEncoder().transform(images)"
        if name == "text_features":
            example = "TransformersTextEncoder().transform(captions)"
        raise ValueError(
            f"{name} holds images or texts. Encode them first, for example with {example}."
        )
    return as_float32(as_floats(features, name), name, check_conditioning, allow_nan=True)


def normalize_valid_rows(features: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return L2-normalized rows, and a mask of the rows that are not zero or NaN."""
    features = as_float_features(features, name)
    normalized = normalize_rows(features)
    return normalized, np.linalg.norm(normalized, axis=1) > 0


def find_near_duplicates(features: Any, *, threshold: float = 0.97) -> np.ndarray:
    """Group rows of features that are near-duplicates.

    Two rows whose cosine similarity reaches `threshold` are in the same group, and so are rows
    that are connected by a chain of such pairs.

    Parameters
    ----------
    features : array-like of shape (n_samples, n_features)
        Features of images or of captions.
    threshold : float, default=0.97
        Minimum cosine similarity of near-duplicates, in [-1, 1]. With EfficientNet features of
        drawings, the default finds copies, recolored copies and slight variants, but misses those
        of 100 pixels or less. Different images of one kind, such as pages of text, can exceed it.

    Returns
    -------
    groups : ndarray of int, shape (n_samples,)
        Group numbers from 0, in order of appearance, for `GroupKFold`, `drop_near_duplicates` or
        `select_relevant`. Rows of NaN (unreadable images) and rows of zeros are groups of their
        own.

    Raises
    ------
    ValueError
        If `threshold` or `features` are invalid.

    See Also
    --------
    drop_near_duplicates : Keep one row per group.

    Notes
    -----
    All pairs of rows are compared, so time is quadratic in the number of rows. Memory is linear.

    The features describe what kind of image it is, and hardly any text in it, so that all pages of
    printed words can be one group. Look at the largest groups before you drop images.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.curation import find_near_duplicates
    >>> find_near_duplicates(np.array([[1, 0], [0, 1], [1, 0.1], [0, 2]]))
    array([0, 1, 0, 1])
    """
    check_number(threshold, "threshold", -1, 1, closed="both")
    rows, is_valid = normalize_valid_rows(features, "features")
    rows[~is_valid] = np.nan  # which is not near to any row
    n_rows = len(rows)
    min_similarity = threshold - 1e-6  # rounding must not separate equal rows
    groups = np.arange(n_rows)
    for strip in gen_batches(n_rows, _TILE_ROWS):
        for tile in gen_batches(n_rows - strip.start, _TILE_COLUMNS):
            columns = slice(strip.start + tile.start, strip.start + tile.stop)
            is_near = (rows[strip] @ rows[columns].T) >= min_similarity
            left, right = np.nonzero(is_near)
            left, right = groups[left + strip.start], groups[right + columns.start]
            differs = left != right
            if differs.any():
                groups = merge_groups(groups, left[differs], right[differs], n_rows)
    return number_distinct(groups.tolist())


def drop_near_duplicates(groups: Any, scores: Any = None) -> np.ndarray:
    """Select the row with the highest score of each group.

    Parameters
    ----------
    groups : array-like of shape (n_samples,)
        Output of `find_near_duplicates`.
    scores : array-like of shape (n_samples,), PairQuality or None, default=None
        Scores, or the output of `pair_quality`; higher is better. With None, and for ties, the
        first row is kept.

    Returns
    -------
    indices : ndarray of int, shape (n_groups,)
        Rows to keep, in ascending order.

    Raises
    ------
    ValueError
        If a group is missing, or `scores` does not have one finite number per row.

    See Also
    --------
    find_near_duplicates : Compute the groups.

    Examples
    --------
    >>> from sklearn_ape.curation import drop_near_duplicates
    >>> drop_near_duplicates([0, 1, 0, 1], scores=[0.2, 0.9, 0.7, 0.1])
    array([1, 2])
    """
    check_sequence(groups, "groups", "group")
    n_rows = len(groups)
    numbers = number_groups(groups, n_rows)
    scores = scores.score if isinstance(scores, PairQuality) else scores
    check_not_masked(scores, "scores")
    values = np.zeros(n_rows) if scores is None else np.asarray(scores, dtype=float)
    if values.shape != (n_rows,):
        raise ValueError(
            f"scores must have shape ({n_rows},), one number per row, not {values.shape}."
        )
    invalid = np.flatnonzero(~np.isfinite(values))
    if invalid.size:
        raise ValueError(
            f"scores must be finite, but {invalid.size} rows are not (row {invalid[0]} is "
            f"{values[invalid[0]]})."
        )
    order = np.lexsort((-values, numbers))  # stable
    first = np.unique(numbers[order], return_index=True)[1]
    return np.sort(order[first])


class PairQuality(NamedTuple):
    """Quality of each pair, as returned by `pair_quality`; values are in [0, 1], and 1 is best.

    Attributes
    ----------
    score : ndarray of shape (n_pairs,)
        Product of agreement and specificity.
    agreement : ndarray of shape (n_pairs,)
        Mean of two fractions: of other captions that match the image less, and of images with
        other captions that match the caption less. An aligner that was not trained on the pair
        compares them. 0.5 is chance level. Swapped or meaningless captions have low values.
    specificity : ndarray of shape (n_pairs,)
        1 for captions of few images, and lower for captions that many distinct images share.
    reason : ndarray of str, shape (n_pairs,)
        "agreement" or "specificity", whichever is lower, or "unreadable" if a feature is NaN or
        zero, with the score 0.
    """

    score: np.ndarray
    agreement: np.ndarray
    specificity: np.ndarray
    reason: np.ndarray


def pair_quality(
    image_features: Any,
    text_features: Any,
    captions: Any = None,
    *,
    aligner: BaseEstimator | None = None,
    groups: Any = None,
    cv: Any = 3,
    random_state: int | np.random.RandomState | None = None,
) -> PairQuality:
    """Score noisy pairs by how well caption and image match.

    Parameters
    ----------
    image_features, text_features : array-like of shape (n_pairs, n_features)
        Features of the images and of the captions.
    captions : sequence of str of length n_pairs or None, default=None
        Captions, which are used to find equal captions. With None, equal features are used.
    aligner : estimator or None, default=None
        Aligner that is fitted on all folds but one and scores the pairs of that fold. None uses
        `KernelAligner` with up to 4,096 anchors.
    groups : array-like of shape (n_pairs,) or None, default=None
        Groups of images that must be in the same fold. None uses groups of near-duplicates.
        Pairs of the same caption are in the same fold as well, if there are enough captions.
    cv : int, splitter or iterable, default=3
        Number of folds, at least 2, or splits whose test sets contain each pair once. A splitter
        gets the groups of images, and equal captions may be in different folds.
    random_state : int, RandomState instance or None, default=None
        Assigns groups to folds, unless `cv` does. Pass an int for reproducible results.

    Returns
    -------
    quality : PairQuality
        Score of each pair, its two factors, and the name of the lower one.

    Raises
    ------
    ValueError
        If lengths differ, or there are too few pairs or groups for `cv` folds.

    See Also
    --------
    drop_noisy : Select the pairs with high scores.
    select_relevant : Select pairs that match labels.

    Notes
    -----
    As in confident learning [1]_, a pair is scored by a model that was not fitted on it.

    Pairs of a rare subject, or with a caption in a language that the text encoder was not trained
    on, can have low scores. Inspect some of the pairs with the lowest scores before you drop many.

    References
    ----------
    .. [1] C. Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels",
       JAIR, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.curation import pair_quality
    >>> rng = np.random.default_rng(0)
    >>> concepts = rng.standard_normal((200, 8))
    >>> image_features = concepts @ rng.standard_normal((8, 32))
    >>> text_features = concepts @ rng.standard_normal((8, 16))
    >>> text_features[[3, 7]] = text_features[[7, 3]]  # swap two captions
    >>> quality = pair_quality(image_features, text_features, random_state=0)
    >>> sorted(np.argsort(quality.agreement)[:2].tolist())
    [3, 7]
    """
    check_cv(cv)
    image_features = as_float_features(image_features, "image_features", check_conditioning=True)
    text_features = as_float_features(text_features, "text_features", check_conditioning=True)
    image, image_valid = normalize_valid_rows(image_features, "image_features")
    text, text_valid = normalize_valid_rows(text_features, "text_features")
    if len(image) != len(text):
        raise ValueError(
            f"image_features has {len(image)} rows and text_features has {len(text)}. Pass one "
            "row per pair for both."
        )
    is_valid = image_valid & text_valid
    if isinstance(cv, Integral) and is_valid.sum() < 2 * cv:
        raise ValueError(
            f"cv={cv} needs at least {2 * cv} pairs with features that are not all 0 or NaN, got "
            f"{is_valid.sum()}. Pass more pairs, or a smaller cv."
        )
    caption_ids = _number_captions(captions, text)[is_valid]
    image_ids = (
        find_near_duplicates(image) if groups is None else number_groups(groups, len(image))
    )
    rng = resolve_random_state(random_state)
    if isinstance(cv, Integral):
        splits = _split_groups(image_ids[is_valid], caption_ids, int(cv), rng)
    else:
        splits = read_splits(cv, len(image), image_features, groups=image_ids)
        splits = _renumber_splits(splits, is_valid)
    image_ids = image_ids[is_valid]
    features = image_features[is_valid], text_features[is_valid]
    agreement = _compute_agreement(*features, caption_ids, aligner, splits, rng)
    signals = np.zeros((2, len(image)))
    signals[:, is_valid] = agreement, _compute_specificity(caption_ids, image_ids)
    reason = np.array(["agreement", "specificity"], dtype="U11")[signals.argmin(axis=0)]
    reason[~is_valid] = "unreadable"
    return PairQuality(signals.prod(axis=0), signals[0], signals[1], reason)


def drop_noisy(
    quality: PairQuality, *, min_score: float | None = None, share: float | None = None
) -> np.ndarray:
    """Select the pairs with high scores.

    Parameters
    ----------
    quality : PairQuality
        Output of `pair_quality`.
    min_score : float or None, default=None
        Minimum score of the selected pairs, in [0, 1].
    share : float or None, default=None
        Fraction of all pairs to drop, in [0, 1]. The pairs with the lowest scores are dropped.

    Returns
    -------
    indices : ndarray of int
        Rows to keep, in ascending order.

    Raises
    ------
    ValueError
        Unless exactly one of `min_score` and `share` is passed.

    See Also
    --------
    pair_quality : Compute the scores.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.curation import PairQuality, drop_noisy
    >>> score = np.array([0.9, 0.1, 0.8, 0.4])
    >>> quality = PairQuality(score, score, score, np.full(4, "agreement"))
    >>> drop_noisy(quality, min_score=0.5), drop_noisy(quality, share=0.25)
    (array([0, 2]), array([0, 2, 3]))
    """
    if not isinstance(quality, PairQuality):
        raise ValueError(
            f"quality must be the output of pair_quality, not {type(quality).__name__}. Pass all "
            "of it, not only its score."
        )
    check_number(min_score, "min_score", 0, 1, closed="both", optional=True)
    check_number(share, "share", 0, 1, closed="both", optional=True)
    if (min_score is None) == (share is None):
        raise ValueError("min_score or share is needed, and not both. Pass one of them.")
    if min_score is not None:
        return np.flatnonzero(quality.score >= min_score)
    n_dropped = round(share * len(quality.score))  # type: ignore[operator]
    return np.sort(np.argsort(quality.score, kind="stable")[n_dropped:])


def _number_captions(captions: Any, text: np.ndarray) -> np.ndarray:
    """Return a number for each pair, which is the same for pairs of the same caption."""
    if captions is None:
        return number_distinct(row.tobytes() for row in text)
    captions = check_captions(captions)
    if captions.texts is None or captions.n_rows != len(captions.texts):
        raise ValueError("captions must be one text per pair.")
    if captions.n_rows != len(text):
        raise ValueError(
            f"captions has {captions.n_rows} texts for {len(text)} pairs. Pass one caption per "
            "pair."
        )
    return number_distinct(" ".join(text.split()).casefold() for text in captions.texts)


def _renumber_splits(
    splits: list[tuple[Any, Any]], is_valid: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the splits of the valid rows, which are numbered without the other rows."""
    numbers = np.cumsum(is_valid) - 1
    renumbered = [[numbers[rows][is_valid[rows]] for rows in split] for split in splits]
    return [(train, test) for train, test in renumbered if len(test)]


def _split_groups(
    image_ids: np.ndarray, caption_ids: np.ndarray, cv: int, rng: np.random.RandomState
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Split pairs into folds, each with all pairs of an image and, if possible, of a caption."""
    # Join pairs that share an image or a caption.
    groups = group_pairs(np.column_stack([image_ids, caption_ids]))
    groups = np.unique(groups, return_inverse=True)[1]
    counts = np.bincount(groups)
    # With few captions, or long chains of similar images, a group can have most of the pairs.
    if len(counts) < 2 * cv or counts.max() > len(image_ids) / 2:
        groups = np.unique(image_ids, return_inverse=True)[1]
    n_groups = int(groups.max()) + 1
    if n_groups < cv:
        raise ValueError(
            f"cv={cv} needs at least {cv} groups of near-duplicate images, got {n_groups}. Pass a "
            "smaller cv, or pass groups."
        )
    groups = rng.permutation(n_groups)[groups]
    return list(GroupKFold(cv).split(image_ids, groups=groups))


def _compute_agreement(
    image: np.ndarray,
    text: np.ndarray,
    caption_ids: np.ndarray,
    aligner: BaseEstimator | None,
    splits: list[tuple[np.ndarray, np.ndarray]],
    rng: np.random.RandomState,
) -> np.ndarray:
    """Return the out-of-fold rank of each pair among rivals, as a fraction in [0, 1]."""
    if aligner is None:
        aligner = KernelAligner(gamma="scale", max_anchors=_MAX_ANCHORS)
    fractions = np.empty(len(image))
    for train, test in splits:
        # Equal captions are expected.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            fitted = clone(aligner).fit(image[train], text[train])
        images = np.asarray(fitted.transform(image[test]))
        captions = np.asarray(fitted.transform_text(text[test]))
        pair_similarity = np.einsum("ij,ij->i", images, captions)
        rivals = rng.permutation(len(test))[:_MAX_RIVALS]
        data = rivals, caption_ids[test], pair_similarity
        by_image = _compute_fraction_below(images, captions, *data)
        by_caption = _compute_fraction_below(captions, images, *data)
        fractions[test] = (by_image + by_caption) / 2
    return fractions


def _compute_fraction_below(
    queries: np.ndarray,
    candidates: np.ndarray,
    rivals: np.ndarray,
    caption_ids: np.ndarray,
    pair_similarity: np.ndarray,
) -> np.ndarray:
    """Return the fraction of rival candidates that are less similar to a query than its own is.

    `rivals` are rows of candidates. Pairs of the query's caption, among them its own, do not
    count. Ties count half, and so does a query without rivals.
    """
    fractions = np.empty(len(queries))
    for tile in iter_row_tiles(len(queries), len(rivals)):
        difference = pair_similarity[tile, None] - queries[tile] @ candidates[rivals].T
        is_rival = caption_ids[rivals] != caption_ids[tile, None]
        is_tie = (np.abs(difference) < 1e-6) & is_rival  # up to rounding
        is_below = (difference >= 1e-6) & is_rival
        n_rivals = is_rival.sum(axis=1)
        below = is_below.sum(axis=1) + is_tie.sum(axis=1) / 2
        fractions[tile] = np.where(n_rivals > 0, below / np.maximum(n_rivals, 1), 0.5)
    return fractions


def _compute_specificity(caption_ids: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
    """Return 1 for captions of few distinct images, decreasing with their number."""
    pairs = np.unique(np.column_stack([caption_ids, image_ids]), axis=0)
    n_images = np.bincount(pairs[:, 0])
    return np.minimum(1, _MAX_SHARED_IMAGES / np.maximum(n_images, 1))[caption_ids]
