"""Classifiers by names: labels are described by text, and images are compared with them."""

from ._classifier import ZeroShotClassifier
from ._few_shot import FewShotClassifier
from ._multilabel import MultiLabelZeroShotClassifier

__all__ = ["FewShotClassifier", "MultiLabelZeroShotClassifier", "ZeroShotClassifier"]
