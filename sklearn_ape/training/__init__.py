"""Contrastive training of two heads on frozen features, by skorch."""

from .callbacks import BestEpoch, DivergenceGuard, EpochProgress, StopWhenPatient, ValidationRecall
from .data import PairBatches, PairDataset, Split, split_pairs
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
