"""Zero-shot classifiers: labels are described by text, and images are compared with them."""

from ._classifier import ZeroShotClassifier
from ._multilabel import MultiLabelZeroShotClassifier

__all__ = ["MultiLabelZeroShotClassifier", "ZeroShotClassifier"]
