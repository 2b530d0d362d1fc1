"""Figures of what aligners and zero-shot classifiers do, after scikit-learn's Displays.

``from_estimator`` or ``from_predictions`` compute and draw; the display that they return keeps
what it shows, so that ``plot`` draws it again, elsewhere or otherwise, without computing it again.
They need matplotlib: ``pip install "sklearn-ape[plots]"``.
"""

from ._embedding_map import EmbeddingMapDisplay
from ._recall_curve import RecallCurveDisplay
from ._retrieval_grid import RetrievalGridDisplay
from ._similarity_matrix import SimilarityMatrixDisplay
from ._training_history import TrainingHistoryDisplay
from ._zero_shot_confusion import ZeroShotConfusionDisplay

__all__ = [
    "EmbeddingMapDisplay",
    "RecallCurveDisplay",
    "RetrievalGridDisplay",
    "SimilarityMatrixDisplay",
    "TrainingHistoryDisplay",
    "ZeroShotConfusionDisplay",
]
