"""What both contrastive losses promise alike: defaults, state, devices, precision, shapes."""

import inspect

import pytest
import torch

from sklearn_ape.losses import InfoNCELoss, SigmoidLoss, StructureLoss
from sklearn_ape.losses import _base as _scaled

LOSSES = [InfoNCELoss, SigmoidLoss]
SIZES = [None, 5]


@pytest.mark.parametrize(
    ("make", "documented"),
    [
        (InfoNCELoss, {"max_logit_scale": 100.0, "learn_scale": True, "tile_size": "auto"}),
        (
            SigmoidLoss,
            {"logit_scale": 10.0, "max_logit_scale": 100.0, "bias": None, "tile_size": "auto"},
        ),
        (StructureLoss, {"temperature": 0.1, "levels": 1, "max_rows": 1024}),
    ],
)
def test_defaults_are_those_documented(make, documented):
    parameters = inspect.signature(make).parameters
    assert {name: parameters[name].default for name in documented} == documented
    for name, value in documented.items():
        assert f"{name} : " in make.__doc__
        shown = f'"{value}"' if isinstance(value, str) else str(value)
        assert f"default={shown}" in make.__doc__.split(f"{name} : ")[1].split("\n")[0]


@pytest.mark.parametrize("learn_scale", [True, False])
def test_state_holds_what_was_learned_or_given(learn_scale):
    """A loss that is saved and loaded goes on with the same scale and bias."""
    names = {InfoNCELoss: {"log_scale"}, SigmoidLoss: {"log_scale", "bias"}}
    for make in LOSSES:
        options = {"bias": -3.0} if make is SigmoidLoss else {}
        loss = make(logit_scale=7.0, learn_scale=learn_scale, **options)
        assert loss.state_dict().keys() == names[make]
        again = make(learn_scale=learn_scale)
        again.load_state_dict(loss.state_dict())
        assert again.logit_scale.item() == pytest.approx(7.0)
        if make is SigmoidLoss:
            assert again.bias.item() == -3.0


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("tile_size", SIZES)
def test_computes_where_the_embeddings_are(embeddings, positive, make, tile_size):
    """Whatever torch's default device is: on a GPU nothing may be made on the CPU."""
    loss = make(tile_size=tile_size)
    whole = slice(0, 12)
    givens = (None, positive, positive.nonzero())
    expected = [loss(*embeddings, given) for given in givens]
    shares = [loss.share(*embeddings, given, whole) for given in givens]
    with torch.device("meta"):
        assert [loss(*embeddings, given) for given in givens] == expected
        assert [loss.share(*embeddings, given, whole) for given in givens] == shares


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("tile_size", [1, 5])
def test_doubles_are_not_rounded_to_floats(embeddings, positive, make, tile_size):
    """Of three positives each is a third: in 32 bits it would be off in the eighth digit."""
    sides = [torch.nn.functional.normalize(side.double(), dim=1) for side in embeddings]
    dense = make(tile_size=None).double()
    tiled = make(tile_size=tile_size).double()
    expected = dense(*sides, positive)
    assert tiled(*sides, positive).item() == pytest.approx(expected.item(), rel=1e-13)
    share = tiled.share(*sides, positive, slice(0, 12))
    assert share.item() == pytest.approx(expected.item(), rel=1e-13)


@pytest.mark.parametrize("make", LOSSES)
def test_auto_tiles_beyond_the_most_rows_alone(embeddings, make, monkeypatch):
    """Up to there all at once is faster, beyond it the matrix would fill the memory."""
    image, text = (side.requires_grad_() for side in embeddings)
    monkeypatch.setattr(_scaled, "MOST_DENSE_ROWS", 12)
    assert not is_tiled(make()(image, text).grad_fn)
    monkeypatch.setattr(_scaled, "MOST_DENSE_ROWS", 11)
    assert is_tiled(make()(image, text).grad_fn)


def is_tiled(step):
    """Look for a tiled function among the steps of a loss."""
    if step is None:
        return False
    return "Tiled" in str(step) or any(is_tiled(before) for before, _ in step.next_functions)


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("shape", [(12,), (0, 5), (2, 3, 4)])
def test_shapes_that_are_no_embeddings(make, shape):
    for call in (make(), lambda *sides: make().share(*sides, None, slice(0, 1))):
        with pytest.raises(ValueError, match="need embeddings of one shape"):
            call(torch.ones(shape), torch.ones(shape))
