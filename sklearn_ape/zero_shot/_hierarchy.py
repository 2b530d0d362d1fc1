"""Nodes of a hierarchy of labels, and their probabilities."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np

from ..aligners.similarity import UNKNOWN
from ..prompts import flatten_labels, to_class_array


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
