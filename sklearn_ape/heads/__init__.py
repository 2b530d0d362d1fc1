"""Small networks that map a frozen feature to the shared space."""

from ._base import Head, Standardize
from ._closed_form import BaseMap, ClosedFormHead, KernelMap, LinearMap, WhitenedMap
from ._linear import FrozenHead, LinearHead
from ._make import HEAD_KINDS, hidden_width, make_head
from ._mlp import BatchNormMLPHead, MLPHead
from ._recorded import head_state, restored_head
from ._residual import GLUHead, ResidualHead
from ._skip import SkipMLPHead
from ._star import StarHead
from ._two_tower import TwoTower

__all__ = [
    "HEAD_KINDS",
    "BaseMap",
    "BatchNormMLPHead",
    "ClosedFormHead",
    "FrozenHead",
    "GLUHead",
    "Head",
    "KernelMap",
    "LinearHead",
    "LinearMap",
    "MLPHead",
    "ResidualHead",
    "SkipMLPHead",
    "Standardize",
    "StarHead",
    "TwoTower",
    "WhitenedMap",
    "head_state",
    "hidden_width",
    "make_head",
    "restored_head",
]
