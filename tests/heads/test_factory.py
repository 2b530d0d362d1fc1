"""Saved state of heads that consist of other heads."""

import numpy as np
import pytest
import torch

from sklearn_ape.heads import (
    BlendedHead,
    ClosedFormHead,
    ConcatenatedHead,
    ConSEMap,
    ExtendedHead,
    LinearMap,
    get_head_state,
    make_head,
    restore_head,
)
from sklearn_ape.persistence import FittedState


def make_parts():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(4, 3, generator=generator)
    base_map = LinearMap(torch.zeros(4), weights)
    return base_map, make_head("mlp", 4, 3, depth=2, width=8, dropout=0.0)


def test_restored_head_is_equal():
    base_map, trained = make_parts()
    blended = BlendedHead(ClosedFormHead(base_map), trained, 0.3)
    extended = ExtendedHead(blended, 0.5, np.ones(3, dtype=np.float32), base_map)
    conse_map = ConSEMap(torch.randn(6, 4), torch.randn(6, 3), 0.5)
    features = torch.randn(5, 4)
    for head in (
        blended,
        extended,
        ConcatenatedHead(extended, trained, 0.2),
        ExtendedHead(trained, 1.0, torch.zeros(3)),
        ExtendedHead(blended, 1.0, torch.zeros(3), conse_map),
    ):
        copy = restore_head(FittedState(get_head_state(head), "head"))
        assert torch.equal(copy(features), head(features))


def test_too_many_nested_heads_raise():
    state = get_head_state(make_parts()[1])
    for _ in range(2000):
        state = {"kind": "extended", "base": state, "scale": 1.0, "shift": None}
    with pytest.raises(ValueError, match="head has too many heads within heads"):
        restore_head(FittedState(state, "head"))
