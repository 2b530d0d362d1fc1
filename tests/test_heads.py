"""Heads have the architecture that their names promise."""

import pytest
import torch
from torch import nn

from sklearn_ape.heads import FrozenHead, Standardize, TwoTower, make_head


def linears(head):
    return [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
def test_depth_counts_the_linear_layers_of_an_mlp(depth):
    head = make_head("mlp", 8, 5, depth=depth, width=16, dropout=0.0)
    assert len(linears(head)) == depth
    assert linears(head)[0][0] == 8
    assert linears(head)[-1][1] == 5


def test_linear_and_mlp_of_depth_one_are_the_same_map():
    linear = make_head("linear", 8, 5, depth=3, width=16, dropout=0.5)
    mlp = make_head("mlp", 8, 5, depth=1, width=16, dropout=0.5)
    mlp.layers[0].load_state_dict(linear.linear.state_dict())
    features = torch.randn(4, 8)
    torch.testing.assert_close(linear(features), mlp(features))


@pytest.mark.parametrize(("kind", "widest"), [("residual", 16), ("glu", 32)])
def test_residual_blocks_have_two_linear_layers_each(kind, widest):
    head = make_head(kind, 8, 5, depth=5, width=16, dropout=0.0)
    assert linears(head) == [(8, widest), (16, 8), (8, widest), (16, 8), (8, 5)]


def test_residual_block_adds_to_its_input():
    head = make_head("residual", 8, 5, depth=3, width=16, dropout=0.0)
    block = head.layers[0]
    nn.init.zeros_(block.down.weight)
    nn.init.zeros_(block.down.bias)
    features = torch.randn(4, 8)
    torch.testing.assert_close(block(features), features)


def test_dropout_is_active_in_training_only():
    head = make_head("mlp", 8, 5, depth=2, width=64, dropout=0.5)
    features = torch.randn(4, 8)
    head.train()
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


def test_unknown_head_names_the_known_ones():
    with pytest.raises(ValueError, match=r"linear, mlp, residual, glu, not 'mpl'"):
        make_head("mpl", 8, 5, depth=2, width=16, dropout=0.0)


def test_a_side_without_head_has_nothing_to_train():
    head = make_head(None, 8, 8, depth=2, width=4, dropout=0.0)
    assert isinstance(head, FrozenHead)
    assert list(head.parameters()) == []
    with pytest.raises(ValueError, match="at most 8, not 9"):
        make_head(None, 8, 9, depth=2, width=4, dropout=0.0)


def test_standardize_leaves_constant_features_finite():
    features = torch.randn(50, 3) * torch.tensor([1.0, 100.0, 0.0]) + torch.tensor([0, 5.0, 7.0])
    layer = Standardize(3)
    layer.set(features)
    out = layer(features)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out[:, :2].std(dim=0, unbiased=False), torch.ones(2))
    assert out[:, 2].abs().max() < 1e-4


def test_two_tower_gives_unit_vectors_and_a_fingerprint_of_its_weights():
    towers = TwoTower(
        make_head("mlp", 6, 4, depth=2, width=8, dropout=0.0),
        make_head("linear", 5, 4, depth=1, width=8, dropout=0.0),
    ).eval()
    image, text = towers(torch.randn(7, 6), torch.randn(7, 5))
    torch.testing.assert_close(image.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(7))
    assert towers.n_components == 4
    before = towers.fingerprint()
    assert before == towers.fingerprint()
    with torch.no_grad():
        towers.text_head.linear.bias[0] += 1e-3
    assert before != towers.fingerprint()
