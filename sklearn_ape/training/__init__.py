"""Contrastive training of two heads on frozen features, by skorch."""

from ._batches import PairBatches, n_batches
from ._dataset import PairDataset, as_tensor, subset
from ._net import AlignmentNet, embed
from ._optimizers import OPTIMIZERS, adam, adamw, cosine_schedule, lion
from ._ranks import Ranks, current_ranks
from ._split import Split, split_pairs
from ._stored import StoredRows, row_blocks, select, stays_stored
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
