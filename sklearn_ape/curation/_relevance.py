"""Selection of training pairs that are relevant to labels."""

from __future__ import annotations

import heapq
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from sklearn.utils import gen_batches

from ..encoders.resolve import encode_items, resolve_encoder
from ..features.matrix import iter_row_tiles
from ..prompts import prompts_of, resolve_class_names, resolve_templates
from ..utils.messages import warn
from ..utils.validation import (
    check_integer,
    check_number,
    format_list,
    number_groups,
    resolve_random_state,
)
from ._quality import Captions, check_captions, normalize_valid_rows

_ARTICLES = {"a", "an", "the"}


def _replace_unless_mark(match: re.Match[str]) -> str:
    """Return a space, or the mark itself: vowel signs of Hindi and Thai are parts of words.

    The variation selectors of emoji are marks, too, but not parts of words.
    """
    character = match[0]
    is_mark = unicodedata.category(character).startswith("M")
    return character if is_mark and not "\ufe00" <= character <= "\ufe0f" else " "


def normalize_words(text: str) -> list[str]:
    """Split a text into words without case and plural s.

    >>> normalize_words("Red FROGS, glass")
    ['red', 'frog', 'glass']
    """
    characters = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"[^\W_]\S*", re.sub(r"[\W_]", _replace_unless_mark, characters))
    return [re.sub(r"(?<=[^s]{2})s$", "", word) for word in words]


def compute_name_shares(captions: Sequence[str], names: Mapping[Any, list[str]]) -> csr_array:
    """Return the fraction of the words of each caption that belong to the name of each label.

    Of several names of a label, the longest in the caption counts. Names with a placeholder ``{}``
    are sentences, and ignored. Nothing is stored if a caption has no name of the label.
    """
    labels_of = _find_labels_of_names(names)
    lengths = sorted({len(words) for words in labels_of})
    pointers = [0]
    columns: list[int] = []
    shares: list[float] = []
    for caption in captions:
        words = normalize_words(caption)
        # Lengths are ascending, so that the longest name of a label remains.
        share_of = {
            label: length / len(words)
            for length in lengths
            for start in range(len(words) - length + 1)
            for label in labels_of.get(tuple(words[start : start + length]), ())
        }
        columns += share_of.keys()
        shares += share_of.values()
        pointers.append(len(columns))
    shape = len(captions), len(names)
    return csr_array((shares, columns, pointers), shape=shape, dtype=np.float32)


def _find_labels_of_names(names: Mapping[Any, list[str]]) -> dict[tuple[str, ...], set[int]]:
    """Return the numbers of the labels that have a name, by the words of the name."""
    labels_of: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
    for label, texts in enumerate(names.values()):
        for text in texts:
            words = normalize_words(text)
            while len(words) > 1 and words[0] in _ARTICLES:
                del words[0]
            if words and "{}" not in text:
                labels_of[tuple(words)].add(label)
    return labels_of


# Candidates per label in addition to twice the number of rounds, as other labels may take some.
_EXTRA_CANDIDATES = 64


class _Relevance(NamedTuple):
    """Features and word matches from which rows are scored with all labels."""

    captions: Captions
    n_labels: int
    name_shares: csr_array | None
    caption_features: np.ndarray | None
    label_features: np.ndarray | None
    min_similarity: float
    word_bonus: float

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Return the scores of rows with all labels; -inf if they do not match."""
        captions, starts = self.captions.select_captions(rows)
        scores, *_ = self._compare_captions(captions)
        # reduceat would take about as long as the comparison of captions and labels.
        one_per_row = len(starts) == len(captions)
        return scores if one_per_row else np.maximum.reduceat(scores, starts, axis=0)

    def compare_pairs(self, rows: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the similarity of each row's best caption and its label, and if words match."""
        similarity = np.empty(len(rows), dtype=np.float32)
        match = np.empty(len(rows), dtype=bool)
        for block in gen_batches(len(rows), 1024):
            captions, starts = self.captions.select_captions(rows[block])
            n_captions = np.diff(starts, append=len(captions))
            cells = np.arange(len(captions)), np.repeat(labels[block], n_captions)
            scores, *values = (table[cells] for table in self._compare_captions(captions))
            row_of_caption = np.repeat(np.arange(len(starts)), n_captions)
            best = np.lexsort((-scores, row_of_caption))[starts]
            similarity[block], match[block] = (value[best] for value in values)
        return similarity, match

    def _compare_captions(self, captions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the scores of captions with all labels, their similarity, and if words match."""
        name_share = np.zeros((len(captions), 1), dtype=np.float32)
        if self.name_shares is not None:
            name_share = self.name_shares[captions].toarray()
        match = name_share > 0
        if self.caption_features is None or self.label_features is None:
            return np.where(match, name_share, np.float32(-np.inf)), name_share, match
        similarity = self.caption_features[captions] @ self.label_features.T
        match = np.broadcast_to(match, similarity.shape)
        is_relevant = match | (similarity >= self.min_similarity)  # False for NaN
        score = similarity + np.float32(self.word_bonus) * match
        score = np.where(is_relevant & np.isfinite(score), score, np.float32(-np.inf))
        return score, similarity, match


def choose_best_first(
    relevance: _Relevance, order: np.ndarray, groups: np.ndarray, n_pairs: int, per_label: int
) -> list[tuple[int, int]]:
    """Return pairs in the order of their highest score, each with the label of that score."""
    best_label = np.empty(len(order), dtype=np.intp)
    best_score = np.empty(len(order), dtype=np.float32)
    for tile in iter_row_tiles(len(order), relevance.n_labels):
        scores = relevance.scores(order[tile])
        best_label[tile] = scores.argmax(axis=1)
        best_score[tile] = scores.max(axis=1)
    chosen: list[tuple[int, int]] = []
    n_left = np.full(relevance.n_labels, per_label)
    used_groups: set[int] = set()
    for position in np.argsort(-best_score, kind="stable").tolist():
        if len(chosen) == n_pairs or best_score[position] == -np.inf:
            break
        pair, label = int(order[position]), int(best_label[position])
        if n_left[label] and groups[pair] not in used_groups:
            used_groups.add(groups[pair])
            n_left[label] -= 1
            chosen.append((pair, label))
    return chosen


def order_by_rounds(chosen: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Order pairs by rounds: the first pair of every label, then the second of every label."""
    n_before: Counter[int] = Counter()
    rounds = []
    for _, label in chosen:
        rounds.append(n_before[label])
        n_before[label] += 1
    return [chosen[position] for position in np.argsort(rounds, kind="stable")]


def choose_round_robin(
    relevance: _Relevance, order: np.ndarray, groups: np.ndarray, n_pairs: int, per_label: int
) -> list[tuple[int, int]]:
    """Return pairs and labels in rounds, in each of which every label gets its best new pair."""
    n_rounds = min(per_label, math.ceil(n_pairs / relevance.n_labels))
    n_candidates = 2 * n_rounds + _EXTRA_CANDIDATES
    while True:
        try:
            candidates = _find_candidates(relevance, order, n_candidates)
            return _take_turns(*candidates, len(order), groups, n_pairs, per_label)
        except _CandidatesExhaustedError:
            n_candidates *= 4


class _CandidatesExhaustedError(Exception):
    """All candidates of a label were taken, and more candidates are needed."""


def _find_candidates(
    relevance: _Relevance, order: np.ndarray, n_candidates: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best pairs of each label and their scores, in descending order."""
    positions = np.empty((relevance.n_labels, 0), dtype=np.intp)
    scores = np.empty((relevance.n_labels, 0), dtype=np.float32)
    for tile in iter_row_tiles(len(order), relevance.n_labels):
        tile_scores = relevance.scores(order[tile]).T
        tile_positions = np.broadcast_to(np.arange(tile.start, tile.stop), tile_scores.shape)
        scores = np.concatenate([scores, tile_scores], axis=1)
        positions = np.concatenate([positions, tile_positions], axis=1)
        # A stable sort, so that ties are in the order of `order` for any size of the tiles.
        best = np.argsort(-scores, axis=1, kind="stable")[:, :n_candidates]
        scores = np.take_along_axis(scores, best, axis=1)
        positions = np.take_along_axis(positions, best, axis=1)
    return order[positions], scores


def _take_turns(
    pairs: np.ndarray,
    scores: np.ndarray,
    n_rows: int,
    groups: np.ndarray,
    n_pairs: int,
    per_label: int,
) -> list[tuple[int, int]]:
    """Return pairs and labels, chosen in rounds among the candidates of each label."""
    used_groups: set[int] = set()

    def iter_free_pairs(label: int) -> Iterator[tuple[float, int, int]]:
        """Yield (-score, label, pair) for pairs that are free at that time, best first."""
        for score, pair in zip(scores[label].tolist(), pairs[label].tolist(), strict=True):
            if score == -np.inf:
                return
            if groups[pair] not in used_groups:
                yield -score, label, pair
        if pairs.shape[1] < n_rows:  # the other rows are not among the candidates
            raise _CandidatesExhaustedError

    free_pairs = [iter_free_pairs(label) for label in range(len(pairs))]
    queue: list[tuple[float, int, int]] = []

    def enqueue_best(label: int) -> None:
        if entry := next(free_pairs[label], None):
            heapq.heappush(queue, entry)

    chosen: list[tuple[int, int]] = []
    open_labels = list(range(len(pairs)))
    for _ in range(per_label):
        for label in open_labels:
            enqueue_best(label)
        open_labels = []
        while queue and len(chosen) < n_pairs:
            _, label, pair = heapq.heappop(queue)
            if groups[pair] in used_groups:  # another label took the pair
                enqueue_best(label)
                continue
            used_groups.add(groups[pair])
            chosen.append((pair, label))
            open_labels.append(label)
        if len(chosen) == n_pairs or not open_labels:
            break
    return chosen


class Selection(NamedTuple):
    """Pairs selected by `select_relevant`, in the order of selection.

    Unless ``balance=False``, every leading part of the selection is balanced over the labels.

    Attributes
    ----------
    indices : ndarray of int, shape (n_selected,)
        Rows of the pairs.
    labels : ndarray of shape (n_selected,)
        Label that each pair was selected for.
    similarity : ndarray of shape (n_selected,)
        Cosine similarity of caption and label. Without an encoder, the fraction of the words of
        the caption that belong to the name.
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
    """Select pairs whose captions match labels.

    A caption matches a label if its features are similar to the features of the name [1]_, or if
    it contains the name as whole words [2]_. Pairs are selected in rounds, in each of which every
    label gets its best pair that is not yet selected, so that rare labels are represented.

    If neither `n_pairs` nor `per_label` is below the number of pairs, all matching pairs are
    selected (of each group the one with the highest score), each for its best label. The rounds
    then determine only their order.

    Parameters
    ----------
    captions : sequence of str or of list of str, or array-like of shape (n_pairs, n_features)
        Captions or their features. If a pair has several captions, the best one counts.
    labels : sequence of str, or mapping
        Names of the labels, ``{label: names}`` or a hierarchy, as in `ZeroShotClassifier`. The
        labels of a hierarchy are its innermost classes.
    text_encoder : transformer, str or None, default=None
        Text encoder for captions and names, such as `TransformersTextEncoder`, or the name of one,
        as in `APEAligner`. With None, texts are selected by words only.
    label_features : array-like of shape (n_labels, n_features) or None, default=None
        Features of the labels, if `captions` are features and there is no `text_encoder`.
    n_pairs : int or None, default=None
        Number of pairs to select. None selects all matching pairs.
    per_label : int or None, default=None
        Maximum number of pairs per label.
    min_similarity : float or None, default=None
        Minimum cosine similarity. Captions that contain the name always match.
    templates : str or sequence of str, default="simple"
        Prompt templates for the names; see `sklearn_ape.prompts`. Use ``"none"`` if the names are
        sentences.
    word_bonus : float, default=0.2
        Number that is added to the cosine similarity of captions that contain the name, when pairs
        are ranked.
    balance : bool, default=True
        Whether pairs are selected in rounds. Otherwise the pairs with the highest scores are
        selected, regardless of label; with `per_label`, a pair counts for its most similar label
        only.
    groups : array-like of shape (n_pairs,) or None, default=None
        Output of `find_near_duplicates`. At most one pair per group is selected.
    random_state : int, RandomState instance or None, default=None
        Order of pairs with equal scores. Pass an int for reproducible results.

    Returns
    -------
    selection : Selection
        Rows of the selected pairs, with their labels, similarities and word matches.

    Raises
    ------
    ValueError
        If nothing limits the selection, no caption matches, or a parameter is invalid.

    Warns
    -----
    UserWarning
        If fewer than `n_pairs` pairs can be selected.

    See Also
    --------
    find_near_duplicates : Compute `groups`, so that no image is selected twice.
    pair_quality : Find pairs whose caption does not match the image.

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
    >>> selection = select_relevant(captions, ["cat", "dog"], n_pairs=2, random_state=0)
    >>> selection.indices.tolist(), selection.labels.tolist()
    ([3, 0], ['dog', 'cat'])
    """
    check_integer(n_pairs, "n_pairs", 1, optional=True)
    check_integer(per_label, "per_label", 1, optional=True)
    check_number(min_similarity, "min_similarity", -1, 1, closed="both", optional=True)
    check_number(word_bonus, "word_bonus", 0, 2, closed="both")
    names = resolve_class_names(labels)
    templates = resolve_templates(templates)
    captions = check_captions(captions)
    relevance = _compute_relevance(
        captions, names, templates, text_encoder, label_features, min_similarity, word_bonus
    )
    only_words = relevance.caption_features is None
    has_limit = any(limit is not None for limit in (n_pairs, per_label, min_similarity))
    if not (has_limit or only_words):
        raise ValueError(
            "n_pairs, per_label and min_similarity are all None, so that every pair would be "
            "selected. Pass at least one of them."
        )
    n_rows = captions.n_rows
    group_of_row = np.arange(n_rows) if groups is None else number_groups(groups, n_rows)
    order = resolve_random_state(random_state).permutation(n_rows)
    limits = n_rows if n_pairs is None else n_pairs, n_rows if per_label is None else per_label
    if balance and min(limits) < n_rows:
        chosen = choose_round_robin(relevance, order, group_of_row, *limits)
    else:
        chosen = choose_best_first(relevance, order, group_of_row, *limits)
        # All matching pairs are selected, so the rounds determine only the order.
        chosen = order_by_rounds(chosen) if balance else chosen
    if not chosen:
        advice = f" or reaches min_similarity={min_similarity!r}. Pass a smaller one."
        if only_words:
            advice = ". Pass a text_encoder to compare meanings."
        raise ValueError(f"captions do not match any label: no caption contains a name{advice}")
    if n_pairs is not None and len(chosen) < n_pairs:
        warn(
            f"n_pairs={n_pairs}, but only {len(chosen)} pairs match a label within the "
            "limits. All of them are selected."
        )
    pairs, codes = (np.array(column, dtype=np.intp) for column in zip(*chosen, strict=True))
    classes = list(names)
    selected_labels = np.array([classes[code] for code in codes])
    return Selection(pairs, selected_labels, *relevance.compare_pairs(pairs, codes))


def _compute_relevance(
    captions: Captions,
    names: dict[Any, list[str]],
    templates: tuple[str, ...],
    text_encoder: Any,
    label_features: Any,
    min_similarity: float | None,
    word_bonus: float,
) -> _Relevance:
    """Return the features and word matches that `select_relevant` compares."""
    are_texts = captions.texts is not None
    _check_sources(are_texts, text_encoder, label_features, min_similarity)
    name_shares = None if captions.texts is None else compute_name_shares(captions.texts, names)
    caption_features = captions.features
    if text_encoder is not None:
        encoder = resolve_encoder(text_encoder, "text")
        if are_texts:
            encoder.fit(captions.texts, None)
        elif not isinstance(text_encoder, str):
            encoder = text_encoder  # another fit would change the space of the given features
        label_features = _encode_labels(encoder, names, templates)
        if are_texts:
            caption_features = captions.encode(encoder)
    if caption_features is not None:
        caption_features, is_valid = normalize_valid_rows(caption_features, "captions")
        caption_features[~is_valid] = np.nan  # never selected
        label_features, is_valid = normalize_valid_rows(label_features, "label_features")
        shape = len(names), caption_features.shape[1]
        if label_features.shape != shape:
            raise ValueError(
                f"label_features must have shape {shape}, not {label_features.shape}. Pass one "
                "row per label, with the number of columns of the features of captions."
            )
        if not is_valid.all():
            invalid = [label for label, valid in zip(names, is_valid, strict=True) if not valid]
            raise ValueError(
                f"labels have features that are all 0 or NaN: {format_list(invalid)}. Leave them "
                "out, or pass another text_encoder or other label_features."
            )
    threshold = -np.inf if min_similarity is None else min_similarity
    return _Relevance(
        captions, len(names), name_shares, caption_features, label_features, threshold, word_bonus
    )


def _check_sources(
    are_texts: bool, text_encoder: Any, label_features: Any, min_similarity: float | None
) -> None:
    """Raise ValueError unless captions and labels can be compared by the given features."""
    if text_encoder is not None and label_features is not None:
        raise ValueError("text_encoder and label_features are both set. Pass one of them.")
    if are_texts and label_features is not None:
        raise ValueError(
            "label_features is set, and captions are texts. Pass features of the captions, or "
            "text_encoder instead of label_features."
        )
    if not are_texts and text_encoder is None and label_features is None:
        raise ValueError(
            "captions are features, and label_features is None. Pass label_features, or the "
            "text_encoder that the features come from."
        )
    if are_texts and text_encoder is None and min_similarity is not None:
        raise ValueError("min_similarity needs text_encoder. Without it only words are compared.")


def _encode_labels(
    encoder: Any, names: dict[Any, list[str]], templates: tuple[str, ...]
) -> np.ndarray:
    """Return the sum of the L2-normalized features of the prompts of each label."""
    prompts = [prompts_of(label, names[label], templates) for label in names]
    flat = [prompt for label_prompts in prompts for prompt in label_prompts]
    features, _ = normalize_valid_rows(encode_items(encoder, flat, "text"), "labels")
    return np.add.reduceat(features, np.cumsum([0, *map(len, prompts[:-1])]), axis=0)
