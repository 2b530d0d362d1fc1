"""Contrastive training of two heads on frozen features, by skorch."""

from ..features.memmap import StoredRows, row_blocks, select, stays_stored
from .callbacks import (
    BestEpoch,
    DivergenceGuard,
    EpochProgress,
    StopWhenPatient,
    ValidationRecall,
    diverged,
    mean_recall,
)
from .data import PairBatches, PairDataset, Split, as_tensor, n_batches, split_pairs, subset
from .distributed import Ranks, current_ranks
from .net import OPTIMIZERS, AlignmentNet, adam, adamw, cosine_schedule, embed, lion

__all__ = [
    "OPTIMIZERS",
    "AlignmentNet",
    "BestEpoch",
    "DivergenceGuard",
    "EpochProgress",
    "PairBatches",
    "PairDataset",
    "Ranks",
    "Split",
    "StopWhenPatient",
    "StoredRows",
    "ValidationRecall",
    "adam",
    "adamw",
    "as_tensor",
    "cosine_schedule",
    "current_ranks",
    "diverged",
    "embed",
    "lion",
    "mean_recall",
    "n_batches",
    "row_blocks",
    "select",
    "split_pairs",
    "stays_stored",
    "subset",
]
