"""Selection of training pairs that are relevant to labels."""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.utils import check_random_state

from ..encoders.resolve import resolve_encoder
from ..prompts import prompts_of, resolve_names, resolve_templates
from ..utils.validation import check_integer, check_number
from ..utils.warnings import warn
from ._validation import (
    CaptionRows,
    caption_rows,
    check_groups,
    max_by_row,
    normalize_known_rows,
    row_tiles,
)

_ARTICLES = {"a", "an", "the"}


_MOST_WORDS = 8


def words_of_text(text: str) -> list[str]:
    """Split into words that compare equal whatever their case and a plural s.

    >>> words_of_text("Red FROGS, glass")
    ['red', 'frog', 'glass']
    """
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
    return [re.sub(r"(?<=[^s]{2})s$", "", word) for word in words]


def name_shares(captions: Sequence[str], names: Mapping[Any, list[str]]) -> csr_array:
    """Share of each caption's words that the longest name of each label in it makes up.

    Parameters
    ----------
    captions : sequence of str
        The captions.
    names : mapping of label to names
        Names with a place for the label, ``{}``, are sentences, which are not looked for.

    Returns
    -------
    shares : csr_array of shape (n_captions, n_labels)
        In (0, 1]; nothing is stored where no name of the label occurs.
    """
    labels_of: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
    for number, texts in enumerate(names.values()):
        for text in texts:
            words = words_of_text(text)
            while len(words) > 1 and words[0] in _ARTICLES:
                del words[0]
            if words and "{}" not in text and len(words) <= _MOST_WORDS:
                labels_of[tuple(words)].add(number)
    lengths = sorted({len(words) for words in labels_of})
    pointers = [0]
    columns: list[int] = []
    shares: list[float] = []
    for caption in captions:
        words = words_of_text(caption)
        found: dict[int, float] = {}
        for length in lengths:  # ascending, so that the longest name stays
            for start in range(len(words) - length + 1):
                for number in labels_of.get(tuple(words[start : start + length]), ()):
                    found[number] = length / len(words)
        columns += found.keys()
        shares += found.values()
        pointers.append(len(columns))
    return csr_array(
        (np.array(shares, np.float32), np.array(columns, np.intp), np.array(pointers, np.intp)),
        shape=(len(captions), len(names)),
    )


_SPARE = 64


class Choice(NamedTuple):
    """Pairs in the order in which they were chosen, and the labels they were chosen for."""

    pairs: np.ndarray
    labels: np.ndarray


class Scores(NamedTuple):
    """Scores of pairs with labels, a tile at a time; -inf where a pair must not be chosen."""

    n_pairs: int
    n_labels: int
    of: Callable[[np.ndarray], np.ndarray]


def best_first(
    scores: Scores, order: np.ndarray, groups: np.ndarray, most: int, per_label: int
) -> Choice:
    """Choose pairs by their score with their best label."""
    best = np.empty(scores.n_pairs, dtype=np.intp)
    value = np.empty(scores.n_pairs, dtype=np.float32)
    for tile in row_tiles(scores.n_pairs, scores.n_labels):
        part = scores.of(order[tile])
        best[tile] = part.argmax(axis=1)
        value[tile] = part[np.arange(len(part)), best[tile]]
    pairs: list[int] = []
    labels: list[int] = []
    room = np.full(scores.n_labels, per_label)
    used: set[int] = set()
    for place in np.argsort(-value, kind="stable").tolist():
        if len(pairs) == most or value[place] == -np.inf:
            break
        pair, label = int(order[place]), int(best[place])
        if room[label] and groups[pair] not in used:
            used.add(groups[pair])
            room[label] -= 1
            pairs.append(pair)
            labels.append(label)
    return Choice(np.array(pairs, dtype=np.intp), np.array(labels, dtype=np.intp))


def in_turns(choice: Choice) -> Choice:
    """Order a choice by rounds: first the first pair of every label, then the second ones."""
    by_label = np.argsort(choice.labels, kind="stable")
    counts = np.bincount(choice.labels)
    rounds = np.empty(len(by_label), dtype=np.intp)
    rounds[by_label] = np.arange(len(by_label)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.argsort(rounds, kind="stable")
    return Choice(choice.pairs[order], choice.labels[order])


def round_robin(
    scores: Scores, order: np.ndarray, groups: np.ndarray, most: int, per_label: int
) -> Choice:
    """Let the labels take turns: in each round every label gets the best pair still free."""
    rounds = min(per_label, -(-most // scores.n_labels))
    depth = min(scores.n_pairs, 2 * rounds + _SPARE)
    while True:
        try:
            return _take_turns(_candidates(scores, order, depth), scores, groups, most, per_label)
        except _TooShallow:
            depth = min(scores.n_pairs, 4 * depth)


class _TooShallow(Exception):
    """A label's list of candidates came to its end, and there are more."""


class _Candidates(NamedTuple):
    """The best pairs of each label, best first: both of shape (n_labels, depth)."""

    pairs: np.ndarray
    values: np.ndarray


def _candidates(scores: Scores, order: np.ndarray, depth: int) -> _Candidates:
    places = np.empty((scores.n_labels, 0), dtype=np.intp)
    values = np.empty((scores.n_labels, 0), dtype=np.float32)
    for tile in row_tiles(scores.n_pairs, scores.n_labels):
        part = scores.of(order[tile]).T
        here = np.broadcast_to(np.arange(tile.start, tile.stop), part.shape)
        values = np.concatenate([values, part], axis=1)
        places = np.concatenate([places, here], axis=1)
        # By value, then by place: ties go by `order`, whatever the tiles.
        kept = np.argsort(-values, axis=1, kind="stable")[:, :depth]
        values = np.take_along_axis(values, kept, axis=1)
        places = np.take_along_axis(places, kept, axis=1)
    return _Candidates(order[places], values)


def _take_turns(
    candidates: _Candidates, scores: Scores, groups: np.ndarray, most: int, per_label: int
) -> Choice:
    used: set[int] = set()
    depth = candidates.pairs.shape[1]
    feeds = [_feed(candidates, label, groups, used) for label in range(scores.n_labels)]
    pairs: list[int] = []
    labels: list[int] = []
    open_labels = list(range(scores.n_labels))
    for _ in range(per_label):
        waiting = []
        for label in open_labels:
            offer = next(feeds[label], None)
            if offer is not None:
                waiting.append((-offer[0], label, offer[1]))
            elif depth < scores.n_pairs and candidates.values[label, -1] > -np.inf:
                raise _TooShallow
        heapq.heapify(waiting)
        open_labels = []
        while waiting and len(pairs) < most:
            _, label, pair = heapq.heappop(waiting)
            if groups[pair] not in used:
                used.add(groups[pair])
                pairs.append(pair)
                labels.append(label)
                open_labels.append(label)
                continue
            offer = next(feeds[label], None)  # another label was before it
            if offer is not None:
                heapq.heappush(waiting, (-offer[0], label, offer[1]))
            elif depth < scores.n_pairs and candidates.values[label, -1] > -np.inf:
                raise _TooShallow
        if len(pairs) == most or not open_labels:
            break
    return Choice(np.array(pairs, dtype=np.intp), np.array(labels, dtype=np.intp))


def _feed(
    candidates: _Candidates, label: int, groups: np.ndarray, used: set[int]
) -> Iterator[tuple[float, int]]:
    """Yield the pairs of a label that are free when it is asked, best first."""
    for value, pair in zip(
        candidates.values[label].tolist(), candidates.pairs[label].tolist(), strict=True
    ):
        if value == -np.inf:
            return
        if groups[pair] not in used:
            yield value, pair


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
    names = resolve_names(labels)
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
    numbers = np.arange(n_rows) if groups is None else check_groups(groups, n_rows)
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
        of_captions, known = normalize_known_rows(of_captions, "captions")
        of_captions[~known] = np.nan  # never chosen
        of_labels, known = normalize_known_rows(of_labels, "label_features")
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
    rows, _ = normalize_known_rows(encoder.transform(flat), "labels")
    starts = np.cumsum([0, *(len(some) for some in prompts[:-1])])
    return np.add.reduceat(rows, starts, axis=0)


def _check_parameters(n_pairs: Any, per_label: Any, min_similarity: Any, word_bonus: Any) -> None:
    check_integer(n_pairs, "n_pairs", 1, optional=True)
    check_integer(per_label, "per_label", 1, optional=True)
    check_number(min_similarity, "min_similarity", -1, 1, closed="both", optional=True)
    check_number(word_bonus, "word_bonus", 0, 2, closed="both")
