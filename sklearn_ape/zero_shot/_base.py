"""Base class for zero-shot classifiers, embeddings of labels, and hierarchies of labels."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, Self

import numpy as np
from scipy.sparse import csc_array
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from ..aligners.fitted_images import embedding_digest, number_object
from ..aligners.similarity import UNKNOWN, LogitTiles, check_standardize, resolve_bank
from ..aligners.wrapper import AlignerWrapperMixin, resolve_aligner, unwrap, unwrap_aligner
from ..encoders.base import FrozenEncoder
from ..persistence.hub import Facts
from ..persistence.mixins import FittedState
from ..prompts import (
    flatten_labels,
    list_labels,
    prompts_of,
    resolve_names,
    resolve_templates,
    to_builtin,
    to_class_array,
)
from ..utils.concurrency import LRUCache
from ..utils.messages import make_progress_bar, warn
from ..utils.sklearn_compat import CallbackSupportMixin, FitContext
from ..utils.validation import check_number, ignores_underflow

# Maximum number of prompts that are encoded together. It bounds the memory for thousands of labels
# with many templates each.
_BLOCK_PROMPTS = 16_384
# Bytes of the embeddings of a block. Embeddings of ASIF have one component per anchor.
_BLOCK_BYTES = 2**27
# Decimals to which embeddings must agree to be reported as equal. The last bits depend on the
# batch in which a prompt was encoded.
_DECIMALS = 4
# The cache is not stored in the classifiers, so that predicting leaves a classifier unchanged, and
# clones, refits and copies in a worker share embeddings. It holds one embedding per class, because
# the embeddings of all prompts would be too many.
_cache: LRUCache[bytes, np.ndarray] = LRUCache(max_bytes=2**28, keep_newest=True)
# Maximum number of classes that a model card lists.
_MAX_LISTED_CLASSES = 20


def embed_labels(
    aligner: BaseEstimator, names: Mapping[Any, list[str]], templates: tuple[str, ...]
) -> np.ndarray:
    """Return the mean embedding of the prompts of each class, L2-normalized.

    The array is cached: do not write to it.
    """
    named_classes = [[str(label), *class_names] for label, class_names in names.items()]
    parts = json.dumps([_identify(aligner), templates, named_classes])
    key = hashlib.sha256(parts.encode()).digest()
    embeddings = _cache.get(key)
    if embeddings is not None:
        return embeddings
    embeddings = _embed_classes(aligner, names, templates)
    failed = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if failed.size:
        raise ValueError(
            f"labels has the class {list(names)[failed[0]]!r}, for which the text encoder returns "
            "NaN. Describe it by other texts."
        )
    _warn_if_indistinguishable(names, embeddings)
    _cache.put(key, embeddings)
    return embeddings


def _identify(aligner: BaseEstimator) -> str:
    """Return a text that changes with everything that embeddings of texts depend on."""
    digest = embedding_digest(aligner)
    if isinstance(getattr(aligner, "text_encoder_", None), FrozenEncoder):
        return digest
    # Encoders of other libraries may depend on more than their parameters, so each object differs.
    return f"{digest} {number_object(aligner)}"


@ignores_underflow
def _embed_classes(
    aligner: BaseEstimator, names: Mapping[Any, list[str]], templates: tuple[str, ...]
) -> np.ndarray:
    """Return the mean embedding of the prompts of each class; each prompt is encoded once."""
    index_of_prompt: dict[str, int] = {}
    class_indices: list[int] = []
    prompt_indices: list[int] = []
    for class_index, (label, class_names) in enumerate(names.items()):
        for prompt in prompts_of(label, class_names, templates):
            prompt_indices.append(index_of_prompt.setdefault(prompt, len(index_of_prompt)))
            class_indices.append(class_index)
    membership = csc_array(
        (np.ones(len(class_indices), np.float32), (class_indices, prompt_indices)),
        shape=(len(names), len(index_of_prompt)),
    )
    # The sums depend on the order of the blocks in the last bits, so the order is fixed.
    sums: np.ndarray | None = None
    for start, embeddings in _embed_in_blocks(aligner, list(index_of_prompt)):
        block_membership = membership[:, start : start + len(embeddings)]
        rows = np.unique(block_membership.indices)
        if sums is None:
            sums = np.zeros((len(names), embeddings.shape[1]), embeddings.dtype)
        sums[rows] += block_membership[rows] @ embeddings
    assert sums is not None
    # An aligner that was fitted on equal captions embeds every text as zero.
    norm = np.linalg.norm(sums, axis=1, keepdims=True)
    sums /= np.where(norm > 0, norm, 1)
    return sums


def _embed_in_blocks(
    aligner: BaseEstimator, prompts: list[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the index of the first prompt of each block, and the embeddings of the block."""
    n_components = int(getattr(aligner, "n_components_", 1))
    size = min(_BLOCK_PROMPTS, _BLOCK_BYTES // (4 * n_components) + 1)
    if len(prompts) <= size:
        yield 0, np.asarray(aligner.transform_text(prompts))
        return
    silent_aligner, verbose = _silence(aligner)
    with make_progress_bar(len(prompts), verbose, unit="prompt", desc="labels") as progress:
        for start in range(0, len(prompts), size):
            block = prompts[start : start + size]
            yield start, np.asarray(silent_aligner.transform_text(block))
            progress.update(len(block))


def _silence(aligner: BaseEstimator) -> tuple[Any, int | None]:
    """Return an aligner for thousands of prompts, and ``verbose`` of its encoder.

    Its encoder shows no bar per call. It does not use the memory cache, from which so many prompts
    would evict all other features. A cache on disk is used, so that an interrupted run can resume.
    """
    encoder = getattr(aligner, "text_encoder_", None)
    if isinstance(encoder, FrozenEncoder):
        silent_aligner = copy.copy(aligner)
        silent_aligner.text_encoder_ = _silence_estimator(encoder)
        return silent_aligner, encoder.verbose
    if isinstance(getattr(aligner, "text_encoder", None), FrozenEncoder) and hasattr(
        aligner, "cache"
    ):  # CLIPAligner makes its encoder from its own parameters
        return _silence_estimator(aligner), aligner.verbose
    return aligner, 0


def _silence_estimator(estimator: Any) -> Any:
    cache = None if estimator.cache == "memory" else estimator.cache
    return clone(estimator).set_params(cache=cache, verbose=0)


def _warn_if_indistinguishable(classes: Iterable[Any], embeddings: np.ndarray) -> None:
    """Warn if two classes have the same embedding, for example if the encoder lacks the script."""
    label_of_digest: dict[bytes, Any] = {}
    for label, row in zip(classes, embeddings, strict=True):
        rounded = row.round(_DECIMALS) + 0.0  # adding 0 turns -0 into 0
        digest = hashlib.blake2b(rounded.tobytes(), digest_size=16).digest()
        first = label_of_digest.setdefault(digest, label)
        if first != label:
            warn(
                f"labels has the classes {first!r} and {label!r}, which have the same embedding: "
                "the text encoder cannot distinguish their names. Describe them by other texts."
            )
            return


# Between these bounds float32 logits do not overflow, even if they are standardized by a tiny
# deviation, and do not become zero or subnormal, which would create ties.
_SCALE_BOUNDS = 1e-30, 1e30

NOT_FITTED = (
    "This %(name)s is not fitted: call fit(images, captions), or pass labels and a fitted "
    "aligner, as in %(name)s(['cat', 'dog'], aligner=model)."
)


class ZeroShotBase(AlignerWrapperMixin, ClassifierMixin, CallbackSupportMixin, BaseEstimator):
    """Base class of classifiers by names.

    A classifier can predict as soon as it has labels and a fitted aligner.
    """

    # First sentence of the model card.
    _purpose = (
        "Says which of the classes an image shows, by the cosine of the image with the classes' "
        "names."
    )

    labels: Sequence[str] | Mapping[Any, str | Sequence[str]] | None
    aligner: Any
    templates: str | Sequence[str]
    logit_scale: float | None
    standardize: Any

    @property
    def n_features_in_(self) -> int:
        """Number of features that the aligner was fitted on."""
        return self._get_aligner_attribute("n_features_in_")

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Names of the features that the aligner was fitted on."""
        return self._get_aligner_attribute("feature_names_in_")

    def _get_aligner_attribute(self, name: str) -> Any:
        if self.aligner is None or isinstance(self.aligner, str):  # these models take images
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(getattr(self, "aligner_", self.aligner), name)

    def _keeps_aligner(self) -> bool:
        """Return whether `fit` uses the aligner unchanged, since it can embed already."""
        return isinstance(self.aligner, FrozenEstimator) or _can_embed(self.aligner)

    def _fit_aligner(self, X: Any, captions: Any, progress: FitContext) -> Any:
        aligner = clone(self.aligner)
        with progress.fitting(aligner, "fit-aligner"):
            return aligner.fit(X, captions)

    def _get_kept_aligner(self, captions: Any) -> Any:
        """Return the aligner that `fit` keeps; warn if captions are passed."""
        aligner = resolve_aligner(self.aligner)
        check_is_fitted(aligner)
        if captions is not None:
            reason = "None, the starter model" if self.aligner is None else "fitted already"
            warn(
                f"captions are not used: aligner is {reason}, and fit keeps it. "
                "To train on captions, pass an aligner that is not fitted, such as "
                "sklearn.base.clone(aligner)."
            )
        return aligner

    def _check_ready(self, allow_changes: bool = False) -> tuple[str, ...]:
        """Check that the classifier can predict, and return the templates."""
        templates = self._check_parameters()
        if self.aligner is not None and not self.__sklearn_is_fitted__():
            unwrap_aligner(resolve_aligner(self.aligner))  # an invalid type is reported first
        check_is_fitted(self, msg=NOT_FITTED)
        if not allow_changes:
            self._check_current()
        return templates

    def _make_logits(
        self,
        aligner: BaseEstimator,
        templates: tuple[str, ...],
        scale: float | None = None,
        offset: np.ndarray | None = None,
    ) -> LogitTiles:
        """Embed the labels, and return an object that computes the logits of images.

        If `scale` is None, it is the parameter, or else the scale that the aligner learned.
        """
        text_aligner = unwrap_aligner(aligner)
        names = self._resolve_names()
        assert names is not None
        if scale is None:
            scale = self._resolve_scale(text_aligner)
        bank = resolve_bank(self.standardize, text_aligner, aligner)
        embeddings = embed_labels(text_aligner, names, templates)
        return LogitTiles(aligner, to_class_array(names), embeddings, scale, bank, offset)

    def _resolve_scale(self, text_aligner: Any) -> float:
        return text_aligner.logit_scale_ if self.logit_scale is None else float(self.logit_scale)

    def _resolve_names(self) -> dict[Any, list[str]] | None:
        """Return the names of each class, in the order of the columns; None before `fit`."""
        if self.labels is not None:
            return resolve_names(self.labels)
        return getattr(self, "_names", None)

    def _check_parameters(self) -> tuple[str, ...]:
        """Raise an error for an invalid parameter other than the aligner; return the templates."""
        templates = resolve_templates(self.templates)
        check_standardize(self.standardize)
        check_number(self.logit_scale, "logit_scale", *_SCALE_BOUNDS, "both", optional=True)
        return templates

    def _check_fit_parameters(self) -> tuple[str, ...]:
        """Raise an error for an invalid parameter; return the templates."""
        templates = self._check_parameters()
        if self.aligner is not None:
            unwrap_aligner(resolve_aligner(self.aligner))
        return templates

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        if "aligner_" in state and self._uses_starter():
            state = {**state, "aligner_": None}  # 54 MB that every installation has
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "aligner_" in state and state["aligner_"] is None:
            state = {**state, "aligner_": resolve_aligner(None)}
        super().__setstate__(state)

    def _uses_parameter(self) -> bool:
        is_starter = self.aligner is None and self.aligner_ is resolve_aligner(None)
        return is_starter or super()._uses_parameter()

    def _recorded_params(self) -> dict[str, Any]:
        params = super()._recorded_params()
        params["labels"] = _convert_labels(params["labels"])
        return params

    def _get_state(self) -> dict[str, Any]:
        return {**super()._get_state(), "names": getattr(self, "_names", None)}

    def _set_state(self, state: FittedState) -> None:
        super()._set_state(state)
        names = state.optional("names")
        if names is not None:
            if not isinstance(names, dict):
                raise ValueError("names must be an object with the names of each class.")
            self._names = resolve_names(names)

    def _check_restored(self) -> None:
        self._check_fit_parameters()
        self._resolve_names()

    def _card_facts(self) -> Facts:
        facts = self._aligner_facts()
        names = [str(label) for label in self._resolve_names() or ()]
        listed = ", ".join(names[:_MAX_LISTED_CLASSES])
        listed += ", ..." if len(names) > _MAX_LISTED_CLASSES else ""
        facts.what = f"{self._purpose} {facts.what}"
        facts.facts = {"classes": f"{len(names):,}: {listed}"} | facts.facts
        facts.limits.append(self._describe_limit())
        preprocessing, aligner = unwrap(resolve_aligner(self.aligner))
        takes_images = preprocessing is not None or getattr(aligner, "image_encoder", None)
        images = "['image.jpg']" if takes_images else "image_features"
        facts.usage = f"print(model.predict({images}))"
        return facts

    def _describe_limit(self) -> str:
        if getattr(self, "threshold", None) is None:
            return "It always answers with one of its classes."
        return "It always answers with one of its classes or, below the threshold, unknown."

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "aligner_") or (self.labels is not None and _can_embed(self.aligner))


def _can_embed(aligner: BaseEstimator | str | None) -> bool:
    """Return whether an aligner is fitted; None and names are models that are."""
    if aligner is None or isinstance(aligner, str):
        return True
    try:
        check_is_fitted(aligner)
    except (NotFittedError, TypeError):  # TypeError: not an estimator, which predicting reports
        return False
    return True


def _convert_labels(labels: Any) -> Any:
    """Return labels in a form that a file can hold: members of an Enum become their values."""
    if labels is None or isinstance(labels, str) or not isinstance(labels, Iterable):
        return labels
    if isinstance(labels, Mapping):
        return {_convert_label(label): _convert_label(value) for label, value in labels.items()}
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "biufU":
        return labels
    values = [_convert_label(label) for label in list_labels(labels)]
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "O":
        return np.array(values, dtype=object)
    return tuple(values) if isinstance(labels, tuple) else values


def _convert_label(label: Any) -> Any:
    return to_builtin(label) if isinstance(label, Enum) else label


class Hierarchy(NamedTuple):
    """Hierarchy of the classes of a classifier.

    The nodes are the classes, in the order of ``classes_``, followed by the inner nodes. The path
    of a node has the indices of the nodes from the coarsest one to the node itself. The
    membership, of shape (n_classes, n_nodes), is 1 where a class is in a node.
    """

    nodes: np.ndarray
    paths: list[tuple[int, ...]]
    membership: np.ndarray

    @classmethod
    def from_labels(cls, labels: Any, classes: np.ndarray) -> Self:
        """Return the hierarchy of a nested ``labels`` parameter with these sorted classes."""
        _, label_paths = flatten_labels(labels)
        leaves = classes.tolist()
        leaf_set = set(leaves)
        nodes = [*leaves, *(label for label in label_paths if label not in leaf_set)]
        index_of = {label: index for index, label in enumerate(nodes)}
        paths = [tuple(index_of[label] for label in label_paths[node]) for node in nodes]
        membership = np.zeros((len(leaves), len(nodes)), np.float32)
        for leaf in range(len(leaves)):
            membership[leaf, list(paths[leaf])] = 1
        return cls(to_class_array(nodes), paths, membership)

    @property
    def n_levels(self) -> int:
        return max(map(len, self.paths))

    def nodes_at(self, level: int) -> np.ndarray:
        """Return the indices of the nodes at a level; classes above it stand for themselves."""
        n_classes = len(self.membership)
        return np.array(
            [
                node
                for node, path in enumerate(self.paths)
                if len(path) == level + 1 or (node < n_classes and len(path) <= level)
            ]
        )

    def choose(self, probabilities: np.ndarray, threshold: float) -> np.ndarray:
        """Return the deepest node of each row whose probability reaches the threshold.

        The search begins at the coarsest nodes and continues with the most probable child.
        `UNKNOWN` is returned if the probabilities of all coarsest nodes are below the threshold.
        """
        scores = probabilities @ self.membership
        best = np.full(len(scores), UNKNOWN)
        children = self._children()
        reached = {UNKNOWN: np.arange(len(scores))}
        while reached:
            parent, rows = reached.popitem()
            nodes = children.get(parent)
            if nodes is None:
                continue
            child = nodes[scores[rows][:, nodes].argmax(axis=1)]
            is_probable = scores[rows, child] >= threshold
            rows, child = rows[is_probable], child[is_probable]
            best[rows] = child
            reached |= {node: rows[child == node] for node in np.unique(child).tolist()}
        return best

    def _children(self) -> dict[int, np.ndarray]:
        children: dict[int, list[int]] = {}
        for node, path in enumerate(self.paths):
            children.setdefault(path[-2] if len(path) > 1 else UNKNOWN, []).append(node)
        return {parent: np.array(nodes) for parent, nodes in children.items()}
