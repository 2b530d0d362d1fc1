"""Contrastive training of two heads on frozen features, by skorch."""

from ._dataset import PairBatches, PairDataset, n_batches, subset
from ._net import AlignmentNet, embed
from ._optimizers import OPTIMIZERS, adam, adamw, cosine_schedule, lion
from ._split import Split, split_pairs
from ._watchers import (
    BestEpoch,
    DivergenceGuard,
    EpochProgress,
    StopWhenPatient,
    ValidationRecall,
    diverged,
    mean_recall,
)

__all__ = [
    "OPTIMIZERS",
    "AlignmentNet",
    "BestEpoch",
    "DivergenceGuard",
    "EpochProgress",
    "PairBatches",
    "PairDataset",
    "Split",
    "StopWhenPatient",
    "ValidationRecall",
    "adam",
    "adamw",
    "cosine_schedule",
    "diverged",
    "embed",
    "lion",
    "mean_recall",
    "n_batches",
    "split_pairs",
    "subset",
]
