"""Losses between the embeddings of images and texts."""

from ._contrastive import InfoNCELoss, SigmoidLoss, StructureLoss

LOSSES = {"infonce": InfoNCELoss, "sigmoid": SigmoidLoss}
"""Contrastive losses, by the names that `APEAligner` takes."""

__all__ = ["LOSSES", "InfoNCELoss", "SigmoidLoss", "StructureLoss"]
