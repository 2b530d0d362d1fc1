"""Displays of aligners and zero-shot classifiers, with the interface of scikit-learn's.

``from_estimator`` and ``from_predictions`` compute and draw. The display that they return stores
the results, so ``plot`` can draw them again, with other options, without computing them again.
Displays need matplotlib: ``pip install "sklearn-ape[plots]"``.
"""

from ._curves import RecallCurveDisplay, TrainingHistoryDisplay
from ._embedding_map import EmbeddingMapDisplay
from ._retrieval_grid import RetrievalGridDisplay
from ._similarity import SimilarityMapDisplay, SimilarityMatrixDisplay, compute_similarity_maps
from ._zero_shot_confusion import ZeroShotConfusionDisplay

__all__ = [
    "EmbeddingMapDisplay",
    "RecallCurveDisplay",
    "RetrievalGridDisplay",
    "SimilarityMapDisplay",
    "SimilarityMatrixDisplay",
    "TrainingHistoryDisplay",
    "ZeroShotConfusionDisplay",
    "compute_similarity_maps",
]
