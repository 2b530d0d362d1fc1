"""Known shares of the classes, and label propagation on the neighbour graph of a collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.sparse import coo_array, csr_array
from scipy.special import softmax
from sklearn.utils import gen_batches

from ..devices import default_state
from ..prompts import describe_similar_label
from ..utils.linalg import normalize_rows
from ..utils.messages import make_progress_bar
from ..utils.validation import check_not_masked, format_list, ignores_underflow, to_list

# Number of most similar images that are the neighbours of an image.
_N_NEIGHBORS = 5
# Weight of the neighbours of an image, relative to its own probabilities.
_ALPHA = 0.8
# Products of more images take longer than a minute on a small computer; faiss, if it is installed,
# compares each image with a part of the collection instead.
_MAX_EXACT = 20_000
_BLOCK_SIZE = 512

# Labels are propagated from probabilities whose logits have this standard deviation, whatever the
# logit scale: sharper ones would ignore second guesses, and flatter ones would hide the first.
_LOGIT_STD = 3.0
# A smaller standard deviation, relative to the largest logit, is rounding error: images are equal.
_ROUNDING = 1e-6
# Below this mean probability of the predicted class, rescaled such that chance is 0, the names say
# so little about the images that propagation would amplify noise.
_MIN_CONFIDENCE = 0.1
# Damping is added to the degrees of the graph, so that only similar neighbours matter. It is 0 if
# the names find few of the classes in the collection (low coverage), since neighbours are then
# likely of the same class, or if they are confident. It is largest if they find most classes and
# are not confident. These ranges were chosen on emoji and four sets of icons.
_MAX_DAMPING = 0.4
_COVERAGE_RANGE = (0.4, 0.7)
_CONFIDENCE_RANGE = (0.2, 0.5)
# If some names are similar to all images, most predictions are due to these names, and propagation
# would amplify the error. So the confidence of the centered logits, which excludes this, must be
# at least this multiple of the bias: the standard deviation of the names' mean logits, relative to
# that of the centered logits. Chosen on 18 sets of emoji, stamps, clip art and icons.
_MIN_CONFIDENCE_PER_BIAS = 0.3
# If the names find few of the classes in the collection, the others are probably missing, and
# rare classes become less probable: the frequencies are a prior with a weight of 1 up to the lower
# coverage, and of 0 from the upper coverage on. Chosen on the same sets.
_PRIOR_COVERAGE_RANGE = (0.4, 0.6)
_N_PRIOR_STEPS = 10
# Frequent classes become more probable than others only if this raises the modularity by this
# factor: a class may also be frequent because its name, such as "people", fits images of others,
# such as "job". Chosen on 28 sets of images and labels of `benchmarks.few_labels` and of its study
# of other collections, and checked on 15 sets of icons.
_MIN_MODULARITY_RATIO = 1.15

# Neighbours get their full weight if the collection has at least the upper number of images per
# class, and none below the lower number, since most neighbours are then of other classes. Chosen
# on seven sets of icons, flags, and crops of photographs, and on 80 photographs of 51 classes.
_IMAGES_PER_CLASS_RANGE = (2.5, 4)

# Keeps logarithms of shares finite.
_MIN_SHARE = 1e-9
# Logit of a class with the share 0. It is finite, as scores of scikit-learn's classifiers are.
_EXCLUDED = -1e9
# Bound of the iterations in which the probabilities are matched to shares.
_MAX_ITERATIONS = 100
# A step of the propagation changes the labels by at most _ALPHA times the change of the previous
# step, so about 30 of them suffice.
_MAX_STEPS = 50


def resolve_class_prior(class_prior: Any, classes: np.ndarray) -> np.ndarray:
    """Return the shares of a ``class_prior`` parameter other than None, in the classes' order."""
    check_not_masked(class_prior, "class_prior")
    labels = classes.tolist()
    values = _list_shares(class_prior, labels)
    try:
        shares = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"class_prior must be numbers, not {values!r}.") from None
    if shares.shape != (len(labels),):
        raise ValueError(
            f"class_prior has the shape {shares.shape}, and there are {len(labels)} classes. Pass "
            "one share per class, in the order of classes_."
        )
    invalid = np.flatnonzero(~(np.isfinite(shares) & (shares >= 0)))
    if invalid.size:
        raise ValueError(
            f"class_prior has the share {shares[invalid[0]]:g} for the class "
            f"{labels[invalid[0]]!r}. Pass shares of at least 0 whose sum is 1."
        )
    if abs(shares.sum() - 1) >= 1e-3:
        raise ValueError(
            f"class_prior must be shares with the sum 1, and their sum is {shares.sum():.4g}. "
            "Divide each share by the sum, or correct them."
        )
    return np.maximum(shares / shares.sum(), _MIN_SHARE)


def convert_class_prior(class_prior: Any) -> Any:
    """Return a column as a dict or a list, and any other ``class_prior`` parameter as it is."""
    if hasattr(class_prior, "to_dict"):  # a pandas Series, such as the result of value_counts
        return class_prior.to_dict()
    is_column = hasattr(class_prior, "to_list") or hasattr(class_prior, "to_pylist")
    return to_list(class_prior) if is_column else class_prior


def _list_shares(class_prior: Any, labels: list[Any]) -> Sequence[Any] | np.ndarray:
    """Return the values of a ``class_prior`` parameter in the order of the labels."""
    class_prior = convert_class_prior(class_prior)
    if isinstance(class_prior, Mapping):
        label_set = set(labels)
        unknown = [label for label in class_prior if label not in label_set]
        missing = [label for label in labels if label not in class_prior]
        if unknown or missing:
            kind, names = ("unknown", unknown) if unknown else ("no share for the", missing)
            hint = describe_similar_label(unknown[0], missing, "class_prior") if unknown else ""
            hint = hint or f"Pass one share for each of the {len(labels)} classes."
            raise ValueError(f"class_prior has {kind} classes {format_list(names)}. {hint}")
        return [class_prior[label] for label in labels]
    if isinstance(class_prior, str) or not isinstance(class_prior, Sequence | np.ndarray):
        raise ValueError(
            "class_prior must be a mapping from classes to shares, or a sequence of shares in the "
            f"order of classes_, not {class_prior!r}."
        )
    return class_prior


def compute_log_prior(shares: np.ndarray) -> np.ndarray:
    """Return what shares add to the logits; a class with the share 0 is never the best."""
    return np.where(shares > _MIN_SHARE, np.log(shares), _EXCLUDED)


def match_shares(logits: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return numbers to add to the logits of the classes so that mean probabilities match shares.

    This is Sinkhorn's algorithm: in each iteration the mean probability of each class is compared
    with its share.
    """
    offsets = np.where(shares > _MIN_SHARE, 0.0, _EXCLUDED)
    for _ in range(_MAX_ITERATIONS):
        means = softmax(logits + offsets, axis=1).mean(axis=0)
        change = np.log(shares) - np.log(np.maximum(means, _MIN_SHARE))
        offsets += change
        if np.abs(change).max() < 1e-3:
            break
    return offsets


@ignores_underflow
def propagate_labels(
    embeddings: np.ndarray,
    logits: np.ndarray,
    shares: np.ndarray | None = None,
    examples: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Return class probabilities of images that agree with those of their neighbours.

    `shares` are the known shares of the classes in the collection. `examples` are the embeddings
    of labelled images, which are not in the collection, and their classes. The probabilities have
    the mean confidence of those of the logits. Without evidence that propagation helps, they are
    the probabilities of the logits, matched to the shares.

    The method is that of D. Zhou, O. Bousquet, T. N. Lal, J. Weston and B. Schölkopf, "Learning
    with Local and Global Consistency", NeurIPS 2003.
    """
    logits = logits.astype(np.float32)
    n_images, n_classes = logits.shape
    probabilities = softmax(_add_prior(logits, shares), axis=1)
    if not _is_useful(logits, probabilities, has_shares=shares is not None):
        return probabilities
    scaled = _add_prior(logits * np.float32(_LOGIT_STD / _compute_std(logits)), shares)
    initial = softmax(scaled, axis=1)
    coverage = _compute_coverage(initial)
    if examples is not None:  # further nodes of the graph, whose classes are certain
        embeddings = np.vstack([embeddings, examples[0]])
        initial = np.vstack([initial, np.eye(n_classes, dtype=initial.dtype)[examples[1]]])
    alpha = _ALPHA if shares is not None else _choose_alpha(len(initial), coverage * n_classes)
    if alpha == 0:
        return probabilities
    graph = _make_graph(embeddings, _choose_damping(coverage, _compute_confidence(probabilities)))
    if shares is None and examples is None:  # labelled images show which classes occur
        prior_weight = float(np.interp(coverage, _PRIOR_COVERAGE_RANGE, (1, 0)))
        initial = _adjust_to_frequencies(scaled, initial, prior_weight, graph)
    propagated = np.maximum(_propagate(graph, initial, alpha)[:n_images], _MIN_SHARE)
    if shares is not None:  # labelled images may be of a class with the share 0
        propagated[:, shares <= _MIN_SHARE] = _MIN_SHARE
    return _set_confidence(np.log(propagated), probabilities.max(axis=1).mean())


def _add_prior(logits: np.ndarray, shares: np.ndarray | None) -> np.ndarray:
    """Return logits with the known shares of the classes as their prior."""
    if shares is None:
        return logits
    # A few images cannot have the shares of a collection: one would get them as probabilities.
    is_small = len(logits) <= _N_NEIGHBORS
    offsets = compute_log_prior(shares) if is_small else match_shares(logits, shares)
    return logits + offsets.astype(np.float32)


def _is_useful(logits: np.ndarray, probabilities: np.ndarray, has_shares: bool) -> bool:
    """Return whether there are neighbours, and the names say enough about the images."""
    n_images, n_classes = logits.shape
    if n_classes == 1 or n_images <= _N_NEIGHBORS:
        return False
    if _compute_std(logits) <= _ROUNDING * np.abs(logits).max():
        return False
    is_confident = _compute_confidence(probabilities) >= _MIN_CONFIDENCE
    return is_confident and (has_shares or not _is_biased(logits))


def _compute_std(logits: np.ndarray) -> float:
    """Return the standard deviation of logits relative to the mean of their class."""
    return (logits - logits.mean(axis=0)).std()


def _choose_alpha(n_nodes: int, n_occurring: float) -> float:
    """Return the weight of neighbours, which is 0 if most of them are of other classes."""
    return _ALPHA * float(np.interp(n_nodes / n_occurring, _IMAGES_PER_CLASS_RANGE, (0, 1)))


def _choose_damping(coverage: float, confidence: float) -> float:
    coverage_level = np.interp(coverage, _COVERAGE_RANGE, (0, 1))
    confidence_level = np.interp(confidence, _CONFIDENCE_RANGE, (0, 1))
    return _MAX_DAMPING * float(coverage_level * (1 - confidence_level))


def _compute_confidence(probabilities: np.ndarray) -> float:
    """Return the mean probability of the best class, rescaled such that chance is 0."""
    n_classes = probabilities.shape[1]
    return (probabilities.max(axis=1).mean() - 1 / n_classes) / (1 - 1 / n_classes)


def _is_biased(logits: np.ndarray) -> bool:
    """Return whether predictions are mostly due to names that are similar to all images."""
    mean_logits = logits.mean(axis=0)
    centered = logits - mean_logits
    confidence = _compute_confidence(softmax(centered, axis=1))
    bias = mean_logits.std() / centered.std()
    return confidence < max(_MIN_CONFIDENCE, _MIN_CONFIDENCE_PER_BIAS * bias)


def _compute_coverage(probabilities: np.ndarray) -> float:
    """Return the share of the classes that occur, 1 if all are equally frequent."""
    means = np.maximum(probabilities.mean(axis=0), _MIN_SHARE)
    # The exponential of the entropy is the number of classes if all are equally frequent.
    return np.exp(-(means * np.log(means)).sum()) / len(means)


def _adjust_to_frequencies(
    logits: np.ndarray, probabilities: np.ndarray, weight: float, graph: csr_array
) -> np.ndarray:
    """Return probabilities with the frequencies of the classes as their prior.

    Frequent classes become more probable than others only if neighbours confirm it. Otherwise,
    rare classes become less probable.
    """
    if weight == 0:
        return probabilities
    raised = _apply_frequencies(logits, probabilities, weight, 1)
    # With this bound, all classes of at least average frequency have the same prior.
    lowered = _apply_frequencies(logits, probabilities, weight, 1 / logits.shape[1])
    min_modularity = _MIN_MODULARITY_RATIO * max(_compute_modularity(graph, lowered), 0)
    return raised if _compute_modularity(graph, raised) >= min_modularity else lowered


def _apply_frequencies(
    logits: np.ndarray, probabilities: np.ndarray, weight: float, max_frequency: float
) -> np.ndarray:
    """Return probabilities with the mean probabilities of the classes, weighted, as their prior.

    In the prior, none of them is higher than `max_frequency`. Prior and probabilities are computed
    in turns, as in M. Saerens, P. Latinne and C. Decaestecker, "Adjusting the Outputs of a
    Classifier to New a Priori Probabilities: A Simple Procedure", Neural Computation, 2002.
    """
    for _ in range(_N_PRIOR_STEPS):
        frequencies = np.clip(probabilities.mean(axis=0), _MIN_SHARE, max_frequency)
        probabilities = softmax(logits + np.float32(weight) * np.log(frequencies), axis=1)
    return probabilities


def _compute_modularity(graph: csr_array, probabilities: np.ndarray) -> float:
    """Return by how much neighbours are of the same class more often than images at random.

    The measure is that of M. E. J. Newman, "Modularity and Community Structure in Networks", PNAS,
    2006.
    """
    degrees = graph.sum(axis=1)
    total = degrees.sum()
    shares = degrees @ probabilities / total
    return float((probabilities * (graph @ probabilities)).sum() / total - (shares**2).sum())


def _propagate(graph: csr_array, initial: np.ndarray, alpha: float) -> np.ndarray:
    """Return the fixed point of ``initial + alpha * graph @ labels``, one row per node."""
    labels = initial
    for _ in range(_MAX_STEPS):
        previous, labels = labels, initial + np.float32(alpha) * (graph @ labels)
        if np.abs(labels - previous).max() < 1e-3:
            break
    return labels


def _set_confidence(logits: np.ndarray, confidence: float) -> np.ndarray:
    """Return probabilities of scaled logits whose largest ones have this mean."""

    def difference(log_scale: float) -> float:
        probabilities = softmax(np.exp(log_scale) * logits, axis=1)
        return float(probabilities.max(axis=1).mean() - confidence)

    low, high = -5.0, 5.0
    log_scale = 0.0
    if difference(low) < 0 < difference(high):
        log_scale = float(brentq(difference, low, high, xtol=0.01))
    return softmax(np.exp(log_scale) * logits, axis=1)


def _make_graph(embeddings: np.ndarray, damping: float) -> csr_array:
    """Return the symmetrically normalized weights of neighbours, cosines to the power of three."""
    centered = normalize_rows(embeddings - embeddings.mean(axis=0)).astype(np.float32)
    with default_state():  # of torch and faiss
        neighbors = _find_neighbors(centered, _N_NEIGHBORS)
    n_images = len(centered)
    rows = np.repeat(np.arange(n_images), neighbors.shape[1])
    columns = neighbors.ravel()
    weights = np.empty(len(rows))
    for block in gen_batches(len(rows), 2**16):
        weights[block] = np.einsum(
            "ij,ij->i", centered[rows[block]], centered[columns[block]], dtype=np.float64
        )
    weights = np.clip(weights, 0, None) ** 3
    # faiss reports fewer neighbours as -1.
    is_pair = (columns >= 0) & (columns != rows)
    shape = (n_images, n_images)
    directed = csr_array(coo_array((weights[is_pair], (rows[is_pair], columns[is_pair])), shape))
    graph = directed.maximum(directed.T)
    degrees = np.asarray(graph.sum(axis=1)).ravel() + damping
    scale = 1 / np.sqrt(np.where(degrees > 0, degrees, 1))
    rows = np.repeat(np.arange(n_images), np.diff(graph.indptr))
    graph.data *= scale[rows] * scale[graph.indices]
    return graph.astype(np.float32)


def _find_neighbors(embeddings: np.ndarray, k: int) -> np.ndarray:
    """Return the rows of the k nearest neighbours of each L2-normalized embedding."""
    if len(embeddings) > _MAX_EXACT:
        with suppress(ImportError):  # without faiss it takes longer
            return _find_neighbors_with_faiss(embeddings, k)
    neighbors = np.empty((len(embeddings), k), dtype=np.intp)
    columns = torch.from_numpy(embeddings)
    with make_progress_bar(len(embeddings), None, unit="image", desc="neighbours") as progress:
        for rows in gen_batches(len(embeddings), _BLOCK_SIZE):
            products = columns[rows] @ columns.T
            # Less than any cosine: an image is not its own neighbour.
            products[torch.arange(len(products)), torch.arange(rows.start, rows.stop)] = -2
            neighbors[rows] = products.topk(k, dim=1).indices.numpy()
            progress.update(len(products))
    return neighbors


def _find_neighbors_with_faiss(embeddings: np.ndarray, k: int) -> np.ndarray:
    import faiss

    # faiss recommends at least this number of cells, and warns below 39 training images per cell.
    n_cells = min(int(4 * np.sqrt(len(embeddings))), len(embeddings) // 39)
    n_components = embeddings.shape[1]
    quantizer = faiss.IndexFlatIP(n_components)
    index = faiss.IndexIVFFlat(quantizer, n_components, n_cells, faiss.METRIC_INNER_PRODUCT)
    # These cells hold 95 % of the nearest neighbours of 26,000 icons; 32 hold 98 %, and take more
    # than twice the time.
    index.nprobe = 16
    index.cp.niter = 5  # the default of 25 more than doubles the time, and finds hardly more
    index.train(embeddings[:: max(1, len(embeddings) // (40 * n_cells))])
    index.add(embeddings)
    return index.search(embeddings, k + 1)[1]  # the nearest neighbour is the image itself
