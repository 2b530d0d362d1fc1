"""Base classes of losses: the logit scale and shares of a batch."""

import inspect

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sklearn_ape import APEAligner
from sklearn_ape.losses import LOSSES as LOSS_BY_NAME
from sklearn_ape.losses import InfoNCELoss, SigmoidLoss, StructureLoss
from sklearn_ape.losses import _base as _scaled
from sklearn_ape.training.data import rank_rows

LOSSES = list(LOSS_BY_NAME.values())
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
    names = {SigmoidLoss: {"log_scale", "bias"}}
    for make in LOSSES:
        options = {"bias": -3.0} if make is SigmoidLoss else {}
        loss = make(logit_scale=7.0, learn_scale=learn_scale, **options)
        assert loss.state_dict().keys() == names.get(make, {"log_scale"})
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
    monkeypatch.setattr(_scaled, "MAX_DENSE_ROWS", 12)
    assert not is_tiled(make()(image, text).grad_fn)
    monkeypatch.setattr(_scaled, "MAX_DENSE_ROWS", 11)
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


def gradients(loss, image, text, compute):
    inputs = [side.clone().requires_grad_() for side in (image, text)]
    value = compute(loss, *inputs)
    return value, torch.autograd.grad(value, [*inputs, *loss.parameters()])


class TestShares:
    @pytest.mark.parametrize("make", LOSSES)
    @pytest.mark.parametrize("tile_size", ["auto", None, 1, 5])
    @pytest.mark.parametrize("n_ranks", [1, 2, 5, 13])
    def test_sum_to_the_loss_and_its_gradients(
        self, embeddings, positive, make, tile_size, n_ranks
    ):
        """13 processes share 12 pairs: one has none."""
        for given in (None, positive, positive.nonzero()):
            whole = gradients(
                make(), *embeddings, lambda loss, x, y, given=given: loss(x, y, given)
            )
            parts = [
                gradients(
                    make(tile_size=tile_size),
                    *embeddings,
                    lambda loss, x, y, given=given, rank=rank: loss.share(
                        x, y, given, rank_rows(12, rank, n_ranks)
                    ),
                )
                for rank in range(n_ranks)
            ]
            torch.testing.assert_close(sum(value for value, _ in parts), whole[0])
            for number, expected in enumerate(whole[1]):
                found = sum(slopes[number] for _, slopes in parts)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    def test_a_row_without_a_positive_is_named(self, embeddings, positive):
        positive[7] = False
        with pytest.raises(ValueError, match="Image 7 of the batch has no positive"):
            InfoNCELoss().share(*embeddings, positive, slice(0, 4))
        alone = torch.eye(12, dtype=torch.bool)
        alone[3, 3] = False
        alone[3, 5] = True  # image 3 has one, caption 3 has none
        with pytest.raises(ValueError, match="Caption 3 of the batch has no positive"):
            InfoNCELoss().share(*embeddings, alone, slice(0, 4))
        with pytest.raises(ValueError, match="Image 3 of the batch has no positive"):
            InfoNCELoss().share(*embeddings, alone.T, slice(0, 4))

    def test_parts_are_all_rows_once_and_of_equal_size(self):
        for n_pairs, n_ranks in ((12, 5), (3, 4), (8, 2), (1, 1)):
            parts = [rank_rows(n_pairs, rank, n_ranks) for rank in range(n_ranks)]
            rows = [row for part in parts for row in range(n_pairs)[part]]
            assert rows == list(range(n_pairs))
            sizes = [part.stop - part.start for part in parts]
            assert sizes == sorted(sizes, reverse=True)
            assert sizes[0] - sizes[-1] <= 1


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest result of any operation holds."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.found = max(self.found, result.numel())
        return result


class TestMemory:
    @pytest.mark.exhaustive
    @pytest.mark.parametrize("make", LOSSES)
    def test_a_large_batch_makes_no_square_matrix(self, make):
        """8,192 pairs: 67 million logits, of which a tile has one million."""
        sides = [torch.randn(8192, 4).requires_grad_() for _ in range(2)]
        with Largest() as largest:
            make()(*sides).backward()
        assert 2**16 < largest.found <= 2**20
        with Largest() as largest:
            make(tile_size=None)(*(side[:3000] for side in sides)).backward()
        assert largest.found == 3000**2  # what the test would see

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("make", LOSSES)
    def test_a_process_holds_tiles_of_its_own_rows(self, make):
        sides = [torch.randn(8192, 4).requires_grad_() for _ in range(2)]
        with Largest() as largest:
            make().share(*sides, None, rank_rows(8192, 1, 4)).backward()
        assert 2**18 < largest.found <= 2**20
        with Largest() as largest:
            make(tile_size=64).share(*sides, None, rank_rows(8192, 1, 4)).backward()
        assert largest.found <= 8192 * 4  # the embeddings themselves

    def test_full_batch_training_makes_none_either(self):
        rng = np.random.default_rng(0)
        image, text = (rng.standard_normal((8192, 8), dtype=np.float32) for _ in range(2))
        shape = {"init": None, "width": 8, "max_epochs": 1, "early_stopping": False}
        with Largest() as largest:
            APEAligner(batch_size=8192, **shape).fit(image, text)
        assert largest.found <= 2**21
