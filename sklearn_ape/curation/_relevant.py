"""Pairs that are relevant to the labels that a classifier shall tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.utils import check_random_state

from .._labels import names_of, prompts_of
from .._warnings import warn
from ..encoders._named import resolve_encoder
from ..prompts import resolve_templates
from ._captions import CaptionRows, caption_rows, max_by_row
from ._checks import check_count, check_range, checked_groups, unit_rows
from ._choose import Scores, best_first, in_turns, round_robin
from ._words import name_shares


class Selection(NamedTuple):
    """Pairs chosen by `select_relevant`, in the order in which they were chosen.

    Unless ``balance=False``, any first part of it is balanced over the labels too.

    Attributes
    ----------
    indices : ndarray of int, shape (n_selected,)
        Rows of the pairs.
    labels : ndarray of shape (n_selected,)
        The label that each was chosen for.
    similarity : ndarray of shape (n_selected,)
        Cosine of caption and label; without an encoder, the share of the caption's words that
        the name makes up.
    word_match : ndarray of bool, shape (n_selected,)
        Whether the caption contains a name of the label as whole words.
    """

    indices: np.ndarray
    labels: np.ndarray
    similarity: np.ndarray
    word_match: np.ndarray


def select_relevant(
    captions: Any,
    labels: Sequence[str] | Mapping[Any, str | Sequence[str]],
    *,
    text_encoder: Any = None,
    label_features: Any = None,
    n_pairs: int | None = None,
    per_label: int | None = None,
    min_similarity: float | None = None,
    templates: str | Sequence[str] = "simple",
    word_bonus: float = 0.2,
    balance: bool = True,
    groups: Any = None,
    random_state: int | np.random.RandomState | None = None,
) -> Selection:
    """Choose the pairs whose captions are about given labels.

    A caption is about a label when its feature is near to that of the label's name [1]_, or when
    it contains the name as whole words [2]_. Labels take turns: in every round each gets the
    best pair that is still free, so that rare labels have their share.

    Parameters
    ----------
    captions : sequence of str or of list of str, or array-like of shape (n_pairs, n_features)
        Captions, or their features. A pair of several captions counts by the best of them.
    labels : sequence of str, or mapping
        Names of the labels, or ``{label: names}``, as in `ZeroShotClassifier`.
    text_encoder : transformer, str or None, default=None
        Turns captions and names into features, such as `TransformersTextEncoder`. A str is the
        name of an encoder, as in `APEAligner`. With None, captions that are texts are chosen by
        words alone.
    label_features : array-like of shape (n_labels, n_features) or None, default=None
        Features of the labels, where `captions` is features and there is no `text_encoder`.
    n_pairs : int or None, default=None
        How many pairs to choose. None is all that are relevant.
    per_label : int or None, default=None
        Most pairs of a label.
    min_similarity : float or None, default=None
        Pairs of a lower cosine are not chosen, unless their caption contains the name.
    templates : str or sequence of str, default="simple"
        Sentences that a name is put into; see `sklearn_ape.prompts`. ``"none"`` suits names that
        are sentences.
    word_bonus : float, default=0.2
        Added to the cosine of a caption that contains the name, to decide which pairs are best.
    balance : bool, default=True
        Whether labels take turns. Otherwise the pairs of the highest scores are chosen,
        whatever their labels.
    groups : array-like of shape (n_pairs,) or None, default=None
        What `find_near_duplicates` returns: one pair of a group is chosen at most.
    random_state : int, RandomState instance or None, default=None
        Decides between pairs of equal score. Pass an int for reproducible output.

    Returns
    -------
    selection : Selection
        Rows, and for each the label it was chosen for, its similarity and whether words match.

    Raises
    ------
    ValueError
        If nothing limits the selection, nothing is relevant, or an argument cannot be used.

    Warns
    -----
    UserWarning
        If fewer than `n_pairs` pairs can be chosen.

    See Also
    --------
    find_near_duplicates : Makes `groups`, so that no image is chosen twice.
    pair_quality : Finds pairs whose caption does not fit the image.

    References
    ----------
    .. [1] E. Rosenfeld et al., "APE: Aligning Pretrained Encoders to Quickly Learn Aligned
       Multimodal Representations", 2022.
    .. [2] A. Fang et al., "Data Determines Distributional Robustness in Contrastive Language
       Image Pre-training (CLIP)", ICML 2022.

    Examples
    --------
    >>> from sklearn_ape.curation import select_relevant
    >>> captions = ["a black cat", "sunset", "two dogs and a cat", "dog"]
    >>> chosen = select_relevant(captions, ["cat", "dog"], n_pairs=2, random_state=0)
    >>> chosen.indices.tolist(), chosen.labels.tolist()
    ([3, 0], ['dog', 'cat'])
    """
    _check_parameters(n_pairs, per_label, min_similarity, word_bonus)
    names = names_of(labels)
    filled = resolve_templates(templates)
    texts = caption_rows(captions)
    relevance = _relevance(
        texts, names, filled, text_encoder, label_features, min_similarity, word_bonus
    )
    by_words_alone = relevance.caption_features is None
    if n_pairs is per_label is min_similarity is None and not by_words_alone:
        raise ValueError(
            "Every pair is similar to some label to some degree: pass n_pairs, per_label or "
            "min_similarity to say how many to choose."
        )
    n_rows = texts.n_rows
    numbers = np.arange(n_rows) if groups is None else checked_groups(groups, n_rows)
    order = check_random_state(random_state).permutation(n_rows)
    most = n_rows if n_pairs is None else n_pairs
    each = n_rows if per_label is None else per_label
    scores = Scores(n_rows, len(names), relevance.scores)
    if balance and min(most, each) < n_rows:
        chosen = round_robin(scores, order, numbers, most, each)
    else:
        chosen = best_first(scores, order, numbers, most, each)
        # All that is relevant is chosen, so that turns decide the order alone.
        chosen = in_turns(chosen) if balance else chosen
    if not len(chosen.pairs):
        raise ValueError(
            "No caption is relevant to any label: none contains a name"
            + (
                ", and no text_encoder was given to compare their meaning."
                if by_words_alone
                else f" or reaches min_similarity={min_similarity!r}."
            )
        )
    if n_pairs is not None and len(chosen.pairs) < n_pairs:
        warn(
            f"{len(chosen.pairs)} pairs could be chosen, not {n_pairs}: there are no more that "
            "are relevant and free.",
        )
    kinds = list(names)
    similarity, match = relevance.of_pairs(chosen.pairs, chosen.labels)
    return Selection(
        chosen.pairs, np.array([kinds[label] for label in chosen.labels]), similarity, match
    )


class _Relevance(NamedTuple):
    """What is needed to score any rows with all labels."""

    texts: CaptionRows
    shares: csr_array | None
    caption_features: np.ndarray | None
    label_features: np.ndarray | None
    min_similarity: float
    word_bonus: float

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Scores of rows with labels, -inf where they are not relevant."""
        similarity, match = self._of(rows)
        if self.caption_features is None:
            return np.where(match, similarity, -np.inf).astype(np.float32)
        relevant = match | (similarity >= self.min_similarity)  # False for NaN
        score = similarity + np.float32(self.word_bonus) * match
        return np.where(relevant & np.isfinite(score), score, -np.inf)

    def of_pairs(self, rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Similarity of each row with its own label, and whether words match."""
        similarity = np.empty(len(rows), dtype=np.float32)
        match = np.empty(len(rows), dtype=bool)
        for start in range(0, len(rows), 1024):
            part = slice(start, start + 1024)
            tile_similarity, tile_match = self._of(rows[part])
            own = np.arange(len(tile_match)), labels[part]
            similarity[part], match[part] = tile_similarity[own], tile_match[own]
        return similarity, match

    def _of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flat, starts = self.texts.captions_of(rows)
        if self.shares is None:
            share = np.zeros((len(rows), 1), dtype=np.float32)
        else:
            share = max_by_row(self.shares[flat].toarray(), starts)
        if self.caption_features is None or self.label_features is None:
            return share, share > 0
        cosine = max_by_row(self.caption_features[flat] @ self.label_features.T, starts)
        return cosine, np.broadcast_to(share > 0, cosine.shape)


def _relevance(
    texts: CaptionRows,
    names: dict[Any, list[str]],
    templates: tuple[str, ...],
    text_encoder: Any,
    label_features: Any,
    min_similarity: float | None,
    word_bonus: float,
) -> _Relevance:
    shares = None if texts.texts is None else name_shares(texts.texts, names)
    of_captions = of_labels = None
    if text_encoder is not None:
        if label_features is not None:
            raise ValueError("Pass text_encoder or label_features, not both.")
        prompts = [prompts_of(label, names[label], templates) for label in names]
        encoder = resolve_encoder(text_encoder, "text")
        encoder = encoder.fit([prompt for some in prompts for prompt in some], None)
        of_labels = _means(encoder, prompts)
        of_captions = texts.features if texts.texts is None else encoder.transform(texts.texts)
    elif texts.texts is None or label_features is not None:
        if label_features is None or texts.texts is not None:
            raise ValueError(
                "Features of captions are compared with features of labels: pass captions as "
                "features together with text_encoder (for the names) or label_features."
            )
        of_captions, of_labels = texts.features, label_features
    elif min_similarity is not None:
        raise ValueError("min_similarity needs text_encoder: without it only words are compared.")
    if of_captions is not None:
        of_captions, known = unit_rows(of_captions, "captions")
        of_captions[~known] = np.nan  # never chosen
        of_labels, known = unit_rows(of_labels, "label_features")
        if of_labels.shape != (len(names), of_captions.shape[1]) or not known.all():
            raise ValueError(
                f"The features of the labels must be {len(names)} rows of "
                f"{of_captions.shape[1]} numbers that are not all 0 or NaN, but have the shape "
                f"{of_labels.shape}."
            )
    least = -1.0 if min_similarity is None else min_similarity
    return _Relevance(texts, shares, of_captions, of_labels, least, word_bonus)


def _means(encoder: Any, prompts: list[list[str]]) -> np.ndarray:
    """Return the mean direction of every label's prompts."""
    flat = [prompt for some in prompts for prompt in some]
    rows, _ = unit_rows(encoder.transform(flat), "labels")
    starts = np.cumsum([0, *(len(some) for some in prompts[:-1])])
    return np.add.reduceat(rows, starts, axis=0)


def _check_parameters(n_pairs: Any, per_label: Any, min_similarity: Any, word_bonus: Any) -> None:
    check_count(n_pairs, "n_pairs")
    check_count(per_label, "per_label")
    check_range(min_similarity, "min_similarity", -1, 1, optional=True)
    check_range(word_bonus, "word_bonus", 0, 2)
