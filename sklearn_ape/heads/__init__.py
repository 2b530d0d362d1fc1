"""Small networks that map a frozen feature to the shared space."""

from ._base import FrozenHead, Head, LinearHead, Standardize, TwoTower
from ._closed_form import (
    BaseMap,
    BlendedHead,
    ClosedFormHead,
    ExtendedHead,
    KernelMap,
    LinearMap,
    WhitenedMap,
)
from ._factory import HEAD_KINDS, head_state, hidden_width, make_head, restored_head
from ._mlp import BatchNormMLPHead, GLUHead, MLPHead, ResidualHead, SkipMLPHead, StarHead

__all__ = [
    "HEAD_KINDS",
    "BaseMap",
    "BatchNormMLPHead",
    "BlendedHead",
    "ClosedFormHead",
    "ExtendedHead",
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
