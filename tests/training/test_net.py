"""Training network, optimizers and learning rate schedule."""

import os
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import GradientNormClipping

from sklearn_ape.heads import LinearHead, TwoTower, make_head
from sklearn_ape.losses import InfoNCELoss, StructureLoss
from sklearn_ape.training import (
    OPTIMIZERS,
    AlignmentNet,
    PairBatches,
    PairDataset,
    adam,
    adamw,
    cosine_schedule,
    embed,
)


@pytest.fixture
def data(concepts):
    image, text = (torch.from_numpy(side[:64]) for side in (concepts.image, concepts.text))
    return PairDataset(image, text, np.column_stack([np.arange(64)] * 2))


def make_net(data, image_head=None, **parameters):
    torch.manual_seed(0)
    module = TwoTower(
        *(
            make_head(kind, side.shape[1], 16, depth=2, width=32, dropout=0.0)
            for kind, side in ((image_head, data.image), ("mlp", data.text))
        )
    )
    module.image_head.set_statistics(data.image)
    module.text_head.set_statistics(data.text)
    return AlignmentNet(
        module=module,
        criterion=InfoNCELoss,
        optimizer=adamw,
        optimizer__weight_decay=0.1,
        lr=1e-2,
        batch_size=64,
        max_epochs=20,
        iterator_train=PairBatches,
        train_split=None,
        verbose=0,
        **parameters,
    )


def structure_loss(net, data, side):
    features = getattr(data, side)
    embed_side = getattr(net.module_, f"embed_{side}")
    with torch.no_grad():
        return StructureLoss()(features, embed_side(features)).item()


class TestStructure:
    def test_structure_loss_is_added_for_sides_with_a_trained_head(self, data):
        for image_head, sides in (None, ["text"]), ("mlp", ["image", "text"]):
            plain = make_net(data, image_head).initialize()
            weighted = clone(make_net(data, image_head, structure_weight=5.0)).initialize()
            inputs, positive = data[torch.arange(64)]
            losses = [
                net.get_loss(net.infer(inputs), positive, X=inputs, training=True).item()
                for net in (plain, weighted)
            ]
            expected = sum(structure_loss(plain, data, side) for side in sides)
            assert losses[1] - losses[0] == pytest.approx(5 * expected, rel=1e-4)

    def test_structure_weight_lowers_the_structure_loss(self, data):
        plain = make_net(data).fit(data, y=None)
        weighted = make_net(data, structure_weight=20.0).fit(data, y=None)
        assert structure_loss(weighted, data, "text") < 0.8 * structure_loss(plain, data, "text")

    def test_validation_loss_excludes_the_structure_loss(self, data):
        weighted = make_net(data, structure_weight=5.0).initialize()
        inputs, positive = data[torch.arange(64)]
        outputs = weighted.infer(inputs)
        plain = weighted.criterion_(*outputs)
        assert weighted.get_loss(outputs, positive, X=inputs, training=False) == plain

    def test_text_head_may_be_any_module(self, data):
        plain, weighted = (make_net(data, structure_weight=w).initialize() for w in (0.0, 5.0))
        linear = torch.nn.Linear(data.text.shape[1], 16)
        for net in (plain, weighted):
            net.module_.text_head = linear
        features, positive = data[np.arange(64)]
        loss, total = (
            net.get_loss(net.infer(features), positive, X=features, training=True).item()
            for net in (plain, weighted)
        )
        assert total == pytest.approx(loss + 5 * structure_loss(plain, data, "text"), rel=1e-5)


def test_gradients_of_heads_and_scale_are_clipped_together(data):
    norms = []

    class Clip(GradientNormClipping):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            named_parameters = list(named_parameters)
            super().on_grad_computed(net, named_parameters=named_parameters)
            assert "log_scale" in {name.split(".")[-1] for name, _ in named_parameters}
            grads = [p.grad.flatten() for _, p in named_parameters if p.grad is not None]
            norms.append(torch.cat(grads).norm().item())

    make_net(data, callbacks=[("clip", Clip(1e-3))]).fit(data, y=None)
    assert max(norms) == pytest.approx(1e-3, rel=1e-2)


def test_positives_as_pairs_of_rows_reach_the_criterion(data):
    """Image 0 has captions 0 and 1, and caption 1 also belongs to image 1."""
    pairs = data.pairs.copy()
    pairs[:3] = [[0, 0], [0, 1], [1, 1]]
    shared = PairDataset(data.image, data.text, pairs)
    inputs, positive = shared[torch.arange(64)]
    net = make_net(shared).initialize()
    outputs = net.infer(inputs)
    matrix = torch.eye(64, dtype=torch.bool)
    matrix[:3, :3] = True
    matrix[2, 0] = False
    assert net.get_loss(outputs, positive) == net.criterion_(*outputs, matrix)
    assert net.get_loss(outputs, positive) != net.criterion_(*outputs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_applies_only_to_matrices(name):
    """Decay of the logit scale would change the temperature."""
    matrix, vector = (torch.nn.Parameter(torch.ones(*shape)) for shape in ((2, 2), (2,)))
    optimizer = OPTIMIZERS[name]([{"params": [matrix, vector]}], lr=0.1, weight_decay=0.5)
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (matrix < 1).all()
    assert (vector == 1).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_lowers_a_loss(name):
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = OPTIMIZERS[name]([{"params": [weight]}], lr=0.01, weight_decay=0.0)
    for _ in range(50):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    assert (weight.abs() < 0.7).all()


def test_adam_decays_gradients_and_adamw_decays_weights():
    """The first step of Adam has length 0.1 for any decay, because gradients are normalized."""
    weights = {}
    for make in (adam, adamw):
        for decay in (0.01, 1.0):
            weight = torch.nn.Parameter(torch.ones(1, 1))
            optimizer = make([{"params": [weight]}], lr=0.1, weight_decay=decay)
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
            weights[make, decay] = weight.item()
    assert weights[adam, 0.01] == pytest.approx(weights[adam, 1.0]) == pytest.approx(0.9)
    assert weights[adamw, 0.01] == pytest.approx(0.999)
    assert weights[adamw, 1.0] == pytest.approx(0.9)


class TestSchedule:
    def test_learning_rate_rises_then_falls_to_zero(self):
        factor = cosine_schedule(100).kwargs["lr_lambda"]
        factors = [factor(step) for step in range(101)]
        assert factors[0] < factors[4] == 1.0
        assert all(a >= b for a, b in pairwise(factors[5:]))
        assert factors[-1] == pytest.approx(0.0, abs=1e-3)

    @pytest.mark.parametrize(
        ("warmup", "n_steps"), [(0, 1), (0.0, 1), (1, 1), (7, 7), (0.2, 20), (1.0, 100)]
    )
    def test_warmup_is_a_fraction_or_a_number_of_steps(self, warmup, n_steps):
        factor = cosine_schedule(100, warmup).kwargs["lr_lambda"]
        rise = [factor(step) for step in range(n_steps)]
        assert rise == pytest.approx([(step + 1) / n_steps for step in range(n_steps)])
        assert factor(n_steps) == 1.0

    @pytest.mark.parametrize("warmup", [-1, -0.1, 1.5, float("nan"), True])
    def test_invalid_warmup_raises(self, warmup):
        with pytest.raises(ValueError, match=r"must be a number in \[0, 1\].* number of steps"):
            cosine_schedule(100, warmup)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork_waits_until_head_has_computed():
    """A child would inherit the locks of libraries that the head holds in the other thread."""
    is_computing, is_done = threading.Event(), []

    class SlowHead(LinearHead):
        def forward(self, features):
            is_computing.set()
            time.sleep(0.3)
            is_done.append(True)
            return super().forward(features)

    towers = TwoTower(SlowHead(4, 2), LinearHead(3, 2))
    thread = threading.Thread(target=embed, args=(towers, "image", torch.ones(5, 4), "cpu"))
    thread.start()
    is_computing.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(0 if is_done else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join(10)
