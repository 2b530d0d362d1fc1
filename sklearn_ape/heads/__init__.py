"""Small networks that map a frozen feature to the shared space."""

from ._base import (
    BlendedHead,
    ConcatenatedHead,
    FrozenHead,
    Head,
    LinearHead,
    Standardize,
    TwoTower,
)
from ._closed_form import (
    BaseMap,
    ClosedFormHead,
    ConSEMap,
    ExtendedHead,
    KernelMap,
    LinearMap,
    WhitenedMap,
)
from ._factory import HEAD_KINDS, hidden_width, make_head

# Names in the form `x as x` are not public. Other packages import them.
from ._factory import get_head_state as get_head_state
from ._factory import restore_head as restore_head
from ._mlp import BatchNormMLPHead, GLUHead, MLPHead, ResidualHead, SkipMLPHead, StarHead

__all__ = [
    "HEAD_KINDS",
    "BaseMap",
    "BatchNormMLPHead",
    "BlendedHead",
    "ClosedFormHead",
    "ConSEMap",
    "ConcatenatedHead",
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
    "hidden_width",
    "make_head",
]
