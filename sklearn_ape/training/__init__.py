"""Contrastive training of two heads on frozen features, by skorch."""

# Names in the form `x as x` are no longer public. Earlier code imports them from here.
from ..features.memmap import StoredRows as StoredRows
from ..features.memmap import row_blocks as row_blocks
from ..features.memmap import select as select
from ..features.memmap import stays_stored as stays_stored
from .callbacks import BestEpoch, DivergenceGuard, EpochProgress, StopWhenPatient, ValidationRecall
from .callbacks import diverged as diverged
from .callbacks import mean_recall as mean_recall
from .data import PairBatches, PairDataset, Split, split_pairs
from .data import as_tensor as as_tensor
from .data import n_batches as n_batches
from .data import subset as subset
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
    "ValidationRecall",
    "adam",
    "adamw",
    "cosine_schedule",
    "current_ranks",
    "embed",
    "lion",
    "split_pairs",
]
