"""Losses between the embeddings of images and texts."""

from ._infonce import InfoNCELoss
from ._sigmoid import SigmoidLoss
from ._structure import StructureLoss

__all__ = ["InfoNCELoss", "SigmoidLoss", "StructureLoss"]
