"""Architecture, initialization, statistics and closed-form maps of heads."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import sklearn_ape.heads._base
from sklearn_ape.heads import (
    HEAD_KINDS,
    BaseMap,
    ClosedFormHead,
    ConcatenatedHead,
    ConSEMap,
    ExtendedHead,
    FrozenHead,
    KernelMap,
    LinearHead,
    LinearMap,
    Standardize,
    TwoTower,
    WhitenedMap,
    _closed_form,
    hidden_width,
    make_head,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def linear_shapes(head):
    return [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]


def n_parameters(head):
    return sum(parameter.numel() for parameter in head.parameters())


@pytest.mark.parametrize("kind", ["mlp", "batchnorm_mlp"])
@pytest.mark.parametrize("depth", [1, 2, 4, 6])
def test_depth_counts_the_linear_layers_of_an_mlp(kind, depth):
    head = make_head(kind, 8, 5, depth=depth, width=16, dropout=0.0)
    assert len(linear_shapes(head)) == depth
    assert linear_shapes(head)[0][0] == 8
    assert linear_shapes(head)[-1][1] == 5


def test_mlp_of_depth_one_equals_linear():
    linear = make_head("linear", 8, 5, depth=3, width=16, dropout=0.5)
    mlp = make_head("mlp", 8, 5, depth=1, width=16, dropout=0.5)
    mlp.layers[0].load_state_dict(linear.linear.state_dict())
    features = torch.randn(4, 8)
    torch.testing.assert_close(linear(features), mlp(features))


@pytest.mark.parametrize(("kind", "widest"), [("residual", 16), ("glu", 32)])
def test_residual_blocks_have_two_linear_layers_each(kind, widest):
    head = make_head(kind, 8, 5, depth=5, width=16, dropout=0.0)
    assert linear_shapes(head) == [(8, widest), (16, 8), (8, widest), (16, 8), (8, 5)]


def test_residual_head_of_depth_one_has_norm_and_projection():
    head = make_head("residual", 8, 5, depth=1, width=16, dropout=0.5)
    norm, projection = head.layers
    assert linear_shapes(head) == [(8, 5)]
    features = torch.randn(4, 8)
    torch.testing.assert_close(head(features), projection(norm(features)))


def test_even_depth_of_blocks_is_rounded_up():
    two, three = (make_head("residual", 8, 5, depth=d, width=16, dropout=0.0) for d in (2, 3))
    assert linear_shapes(two) == linear_shapes(three)


def test_residual_block_adds_to_its_input():
    head = make_head("residual", 8, 5, depth=3, width=16, dropout=0.0)
    block = head.layers[0]
    nn.init.zeros_(block.down.weight)
    nn.init.zeros_(block.down.bias)
    features = torch.randn(4, 8)
    torch.testing.assert_close(block(features), features)


def test_batchnorm_mlp_has_the_layers_of_sharelock():
    head = make_head("batchnorm_mlp", 8, 5, depth=4, width=16, dropout=0.2)
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert [type(layer) for layer in head.layers] == [*hidden, *hidden, *hidden, nn.Linear]


def test_batchnorm_mlp_on_single_pair_raises():
    head = make_head("batchnorm_mlp", 8, 5, depth=2, width=16, dropout=0.0)
    with pytest.raises(ValueError, match="Increase batch_size"):
        head(torch.randn(1, 8))
    assert head.eval()(torch.randn(1, 8)).shape == (1, 5)


def test_star_head_equals_formula_of_sail():
    head = make_head("star", 8, 5, depth=2, width="8x", dropout=0.0)
    assert linear_shapes(head) == [(8, 64), (8, 64), (64, 5)]
    # Xavier uniform initialization has the bound sqrt(6 / (n_inputs + n_outputs)).
    for layer in (head.gate, head.up, head.down):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    features = 30 * torch.randn(4, 8) + 5
    normed = (features - features.mean(1, keepdim=True)) / (
        features.var(1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    product = (normed @ head.gate.weight.T).clamp(0, 6) * (normed @ head.up.weight.T)
    torch.testing.assert_close(head(features), product @ head.down.weight.T)


def test_skip_mlp_equals_formula_of_freeze_align():
    head = make_head("skip_mlp", 8, 5, depth=4, width=16, dropout=0.1).eval()
    assert linear_shapes(head) == [(8, 5), (8, 16), (16, 5), (5, 5), (5, 5)]
    features = torch.randn(4, 8)
    normed = head.norm(features)
    up, _, down = head.nonlinear
    z = head.linear(normed) + down(nn.functional.gelu(up(normed)))
    (tail,) = head.residuals
    projected = tail.projection(z)
    expected = tail.norm(tail.mix(nn.functional.gelu(projected)) + projected)
    torch.testing.assert_close(head(features), expected)


@pytest.mark.parametrize(("depth", "n_residuals"), [(1, 0), (3, 0), (4, 1), (5, 1), (6, 2)])
def test_depth_of_skip_mlp_sets_residual_layers(depth, n_residuals):
    head = make_head("skip_mlp", 8, 5, depth=depth, width=16, dropout=0.1)
    assert len(head.residuals) == n_residuals


def test_skip_mlp_has_the_published_number_of_parameters():
    # Freeze-Align has 11.5 million: two image projectors (patches, class token) and one of texts.
    image, text = (
        make_head("skip_mlp", 1024, 1024, depth=depth, width=1024, dropout=0.1) for depth in (2, 4)
    )
    assert 2 * n_parameters(image) + n_parameters(text) == 11_553_792


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_output_does_not_depend_on_the_scale_of_features(kind):
    head = make_head(kind, 8, 5, depth=3, width=16, dropout=0.0)
    features = 100 * torch.randn(50, 8) + 7
    head.set_statistics(features)
    has_layer_norm = kind in ("star", "skip_mlp")
    assert isinstance(head.standardize, Standardize) != has_layer_norm
    expected = head.eval()(features)
    head.set_statistics(1000 * features)
    torch.testing.assert_close(head(1000 * features), expected, rtol=1e-3, atol=1e-3)


def test_dropout_is_active_only_in_training():
    for kind in set(HEAD_KINDS) - {"linear"}:
        head = make_head(kind, 8, 5, depth=2, width=64, dropout=0.5)
        features = torch.randn(4, 8)
        head.train()
        assert not torch.equal(head(features), head(features)), kind
        head.eval()
        assert torch.equal(head(features), head(features)), kind


def test_unknown_head_raises_with_valid_names():
    with pytest.raises(ValueError, match=r"linear, mlp, .*glu, skip_mlp, star, not 'mpl'"):
        make_head("mpl", 8, 5, depth=2, width=16, dropout=0.0)


@pytest.mark.parametrize("depth", [0, -1, True, 2.0, None])
@pytest.mark.parametrize("kind", ["mlp", "skip_mlp", "linear"])
def test_invalid_depth_raises(kind, depth):
    with pytest.raises(ValueError, match=f"depth must be an integer >= 1, not {depth}"):
        make_head(kind, 8, 5, depth=depth, width=16, dropout=0.0)


@pytest.mark.parametrize(
    ("width", "units"), [(7, 7), (np.int64(7), 7), ("4x", 400), ("0.5x", 50), ("0.001x", 1)]
)
def test_width_is_an_integer_or_a_multiple(width, units):
    assert hidden_width(width, 100) == units


@pytest.mark.parametrize("width", [0, -1, True, 4.0, None, "4", "x", "-4x", "0x", "4 x", [4]])
def test_invalid_width_raises(width):
    with pytest.raises(ValueError, match="such as '4x', not"):
        hidden_width(width, 100)


def test_frozen_head_has_no_parameters():
    head = make_head(None, 8, 8, depth=2, width=4, dropout=0.0)
    assert isinstance(head, FrozenHead)
    assert list(head.parameters()) == []
    with pytest.raises(ValueError, match="has no parameters"):
        head.start_at_zero()
    with pytest.raises(ValueError, match="at most 8, not 9"):
        make_head(None, 8, 9, depth=2, width=4, dropout=0.0)


@pytest.mark.parametrize(
    "call",
    [
        Standardize(8),
        Standardize(8).set,
        LinearHead(8, 5),
        FrozenHead(8, 5).set_statistics,
        LinearMap(torch.zeros(8), torch.ones(8, 5)),
        WhitenedMap(torch.zeros(8), torch.ones(8, 5)),
        ConSEMap(torch.ones(4, 8), torch.ones(4, 5), 0.0),
    ],
)
@pytest.mark.parametrize("n_columns", [1, 7])
def test_features_of_another_width_raise(call, n_columns):
    """PyTorch would subtract the means of all columns from a single one."""
    with pytest.raises(ValueError, match=f"features must have 8 columns, not {n_columns}"):
        call(torch.ones(3, n_columns))


def test_standardize_keeps_constant_features_finite():
    features = torch.randn(50, 3) * torch.tensor([1.0, 100.0, 0.0]) + torch.tensor([0, 5.0, 7.0])
    layer = Standardize(3)
    layer.set(features)
    standardized = layer(features)
    assert torch.isfinite(standardized).all()
    torch.testing.assert_close(standardized[:, :2].std(dim=0, unbiased=False), torch.ones(2))
    assert standardized[:, 2].abs().max() < 1e-4


def test_two_tower_normalizes_and_fingerprint_depends_on_weights():
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


def test_towers_of_different_sizes_raise():
    with pytest.raises(ValueError, match="different sizes, 6 and 4"):
        TwoTower(FrozenHead(6, 6), make_head("linear", 5, 4, depth=1, width=8, dropout=0.0))


@pytest.fixture
def kernel():
    """Anchors, coefficients and texts of a kernel map, in float64."""
    rng = np.random.default_rng(0)
    anchors = rng.standard_normal((40, 6))
    anchors /= np.linalg.norm(anchors, axis=1, keepdims=True)
    return anchors, rng.standard_normal((40, 3)), 5 * rng.standard_normal((25, 6))


def kernel_reference(anchors, coefficients, texts, gamma):
    cosines = texts / np.linalg.norm(texts, axis=1, keepdims=True) @ anchors.T
    return np.exp(gamma * (cosines - 1)) @ coefficients


@pytest.mark.parametrize("max_values", [1, 100, 2**24])
def test_kernel_map_equals_formula_for_any_tile_size(kernel, monkeypatch, max_values):
    monkeypatch.setattr(_closed_form, "_BLOCK_VALUES", max_values)
    anchors, coefficients, texts = kernel
    embeddings = KernelMap(anchors, coefficients, 8.0)(torch.from_numpy(texts).float())
    assert embeddings.dtype == torch.float32
    expected = kernel_reference(anchors, coefficients, texts, 8.0)
    np.testing.assert_allclose(embeddings.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_whitened_map_equals_formula():
    rng = np.random.default_rng(0)
    features, mean = 9 * rng.standard_normal((25, 6)), rng.standard_normal(6)
    directions = rng.standard_normal((6, 3))
    embeddings = WhitenedMap(mean, directions)(torch.from_numpy(features).float())
    expected = (features / np.linalg.norm(features, axis=1, keepdims=True) - mean) @ directions
    np.testing.assert_allclose(embeddings.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_conse_map_equals_formula():
    """Rows whose logits are far below the threshold get almost no embedding."""
    rng = np.random.default_rng(0)
    weights, embeddings = rng.standard_normal((7, 6)), rng.standard_normal((7, 3))
    features = np.vstack([9 * rng.standard_normal((25, 6)), 0.1 * rng.standard_normal((5, 6))])
    outputs = ConSEMap(weights, embeddings, 8.0)(torch.from_numpy(features).float()).numpy()
    exponentials = np.exp(features @ weights.T)
    expected = exponentials @ embeddings / (np.exp(8) + exponentials.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(outputs[-5:]).max() < 0.02 < np.abs(outputs[:-5]).max()
    with pytest.raises(ValueError, match="different lengths, 7 and 6"):
        ConSEMap(weights, embeddings[:6], 8.0)


def test_maps_copy_their_inputs_and_have_no_parameters(kernel):
    anchors = torch.from_numpy(kernel[0]).float()
    kernel_map = KernelMap(anchors, kernel[1], 8.0)
    anchors.zero_()
    assert kernel_map.anchors.any()
    assert list(kernel_map.parameters()) == []
    assert set(kernel_map.state_dict()) == {"anchors", "coefficients", "gamma"}


def test_invalid_maps_raise(kernel):
    anchors, coefficients, _ = kernel
    with pytest.raises(ValueError, match="different lengths, 40 and 39"):
        KernelMap(anchors, coefficients[:39], 8.0)
    scaled = anchors.copy()
    scaled[3] *= 2
    with pytest.raises(ValueError, match="row 3 has norm 2"):
        KernelMap(scaled, coefficients, 8.0)
    with pytest.raises(ValueError, match="coefficients contains NaN or infinity"):
        KernelMap(anchors, np.full_like(coefficients, 1e300), 8.0)
    for gamma in (0.0, 1e-50):  # 1e-50 is 0 in single precision, and could not be loaded
        with pytest.raises(ValueError, match="gamma must be positive"):
            KernelMap(anchors, coefficients, gamma)
    with pytest.raises(ValueError, match="mean and directions have different lengths, 5 and 6"):
        WhitenedMap(np.zeros(5), np.zeros((6, 3)))
    with pytest.raises(ValueError, match="directions must have 2 axes"):
        WhitenedMap(np.zeros(5), np.zeros(5))


def closed_form_towers(kernel, kind, unit=1.0):
    anchors, coefficients, _ = kernel
    base = KernelMap(anchors, unit * coefficients, 8.0)
    torch.manual_seed(0)
    residual = make_head(kind, 6, 3, depth=4, width=16, dropout=0.3)
    image = ClosedFormHead(WhitenedMap(np.zeros(4), np.eye(4)[:, :3]))
    return TwoTower(image, ClosedFormHead(base, residual))


def train(towers, n_steps=3):
    """Train on fixed random pairs to increase their cosines; return the last loss."""
    torch.manual_seed(1)
    image, text = torch.randn(20, 4), torch.randn(20, 6)
    towers.image_head.set_statistics(image)
    towers.text_head.set_statistics(text)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=1e-2)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss = -(towers.embed_image(image) * towers.embed_text(text)).sum(dim=1).mean()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_training_starts_at_the_base_and_improves(kernel, kind):
    towers = closed_form_towers(kernel, kind)
    texts = torch.from_numpy(kernel[2]).float()
    towers.text_head.set_statistics(texts)
    base = towers.text_head.base(texts)
    assert torch.equal(towers.train().text_head(texts), base)  # also with dropout
    first_loss = train(towers, 1)
    assert train(towers, 20) < first_loss - 0.05
    assert not torch.equal(towers.eval().text_head(texts), base)
    assert torch.equal(towers.text_head.base(texts), base)


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_all_layers_train_after_zero_initialization(kind):
    head = make_head(kind, 6, 3, depth=4, width=16, dropout=0.0)
    head.start_at_zero()
    before = [parameter.clone() for parameter in head.parameters()]
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    features, target = torch.randn(20, 6), torch.randn(20, 3)
    for _ in range(3):
        optimizer.zero_grad()
        (head(features) - target).square().mean().backward()
        optimizer.step()
    weights = [(a, b) for a, b in zip(before, head.parameters(), strict=True) if a.ndim == 2]
    assert all(not torch.equal(a, b) for a, b in weights)


def test_training_does_not_depend_on_the_scale_of_the_base(kernel):
    small, large = (closed_form_towers(kernel, "mlp", unit) for unit in (1.0, 1000.0))
    train(small)
    train(large)
    texts = torch.from_numpy(kernel[2]).float()
    torch.testing.assert_close(
        small.eval().embed_text(texts), large.eval().embed_text(texts), rtol=1e-3, atol=1e-4
    )


def test_base_of_zeros_trains_to_finite_weights(kernel):
    towers = closed_form_towers(kernel, "mlp", unit=0.0)
    train(towers)
    assert towers.text_head.scale == 1
    assert all(torch.isfinite(parameter).all() for parameter in towers.parameters())


def test_closed_form_two_tower_has_fingerprint_and_pickles(kernel):
    towers = closed_form_towers(kernel, "mlp").eval()
    assert towers.n_components == 3
    before = towers.fingerprint()
    restored = pickle.loads(pickle.dumps(towers))
    assert restored.fingerprint() == before
    texts = torch.from_numpy(kernel[2]).float()
    assert torch.equal(restored.embed_text(texts), towers.embed_text(texts))
    restored.text_head.base.gamma += 0.5
    assert restored.fingerprint() != before


def test_extended_head_with_other_sizes_raises(kernel):
    base = ClosedFormHead(KernelMap(*kernel[:2], 8.0))
    with pytest.raises(ValueError, match="shift has 4 values, and base has 3 outputs"):
        ExtendedHead(base, 1.0, torch.zeros(4))
    correction = LinearMap(torch.zeros(5), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="different sizes: 6 to 3, and 5 to 3"):
        ExtendedHead(base, 1.0, torch.zeros(3), correction)


def test_concatenated_heads_with_invalid_parts_raise(kernel):
    head = ClosedFormHead(KernelMap(*kernel[:2], 8.0))
    with pytest.raises(ValueError, match="first takes 6 features, and second 5"):
        ConcatenatedHead(head, FrozenHead(5, 3), 0.5)
    with pytest.raises(ValueError, match="weight must be from 0 to 1"):
        ConcatenatedHead(head, head, 1.5)


def test_closed_form_head_with_invalid_parts_raises(kernel):
    base = KernelMap(*kernel[:2], 8.0)
    with pytest.raises(ValueError, match="different sizes: 6 to 3, and 6 to 4"):
        ClosedFormHead(base, make_head("mlp", 6, 4, depth=2, width=8, dropout=0.0))
    with pytest.raises(ValueError, match="FrozenHead has no parameters"):
        ClosedFormHead(base, FrozenHead(6, 3))

    class TrainableMap(BaseMap):
        def __init__(self):
            super().__init__(6, 3)
            self.linear = nn.Linear(6, 3)

    with pytest.raises(ValueError, match="base, a TrainableMap, has parameters"):
        ClosedFormHead(TrainableMap())


def test_statistics_are_computed_in_blocks_without_rounding_errors(monkeypatch):
    """Features have means far from zero and very different variances."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((1000, 4)) * [1, 1e-3, 5, 0] + [1e3, 1, -7, 3]
    features = torch.from_numpy(features.astype(np.float32))
    block_sizes = []

    class Rows:
        def __len__(self):
            return 1000

        def __getitem__(self, index):
            block_sizes.append(len(features[index]))
            return features[index].numpy()

    monkeypatch.setattr(sklearn_ape.heads._base, "_BLOCK_SIZE", 64)
    head = make_head(None, 4, 2, depth=1, width=1, dropout=0.0)
    head.set_statistics(Rows())
    assert max(block_sizes) == 64
    scale = features.double().std(dim=0, unbiased=False).float()
    scale[3] = 1
    torch.testing.assert_close(head.standardize.mean, features.double().mean(dim=0).float())
    torch.testing.assert_close(head.standardize.scale, scale)
    standardized = head.standardize(features).double()
    directions = (
        torch.linalg.eigh(standardized.T @ standardized).eigenvectors.flip(1)[:, :2].float()
    )
    torch.testing.assert_close(head.directions.abs(), directions.abs(), atol=1e-5, rtol=1e-4)
