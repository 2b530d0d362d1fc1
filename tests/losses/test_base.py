"""Behaviour that all losses share: logit scale, tiles, shares of a batch and memory."""

import inspect

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sklearn_ape import APEAligner
from sklearn_ape.losses import LOSSES as LOSS_BY_NAME
from sklearn_ape.losses import InfoNCELoss, SigmoidLoss, StructureLoss, _base
from sklearn_ape.training.data import rank_rows

LOSSES = list(LOSS_BY_NAME.values())
TILE_SIZES = [None, 5]


@pytest.mark.parametrize(
    ("loss_class", "documented"),
    [
        (InfoNCELoss, {"max_logit_scale": 100.0, "learn_logit_scale": True, "tile_size": "auto"}),
        (
            SigmoidLoss,
            {
                "logit_scale": 10.0,
                "max_logit_scale": 100.0,
                "learn_logit_scale": True,
                "bias": None,
                "tile_size": "auto",
            },
        ),
        (StructureLoss, {"temperature": 0.1, "levels": 1, "max_rows": 1024}),
    ],
)
def test_docstring_has_the_defaults(loss_class, documented):
    parameters = inspect.signature(loss_class).parameters
    assert {name: parameters[name].default for name in documented} == documented
    for name, value in documented.items():
        assert f"{name} : " in loss_class.__doc__
        default = f'"{value}"' if isinstance(value, str) else str(value)
        assert f"default={default}" in loss_class.__doc__.split(f"{name} : ")[1].split("\n")[0]


@pytest.mark.parametrize("learn_logit_scale", [True, False])
def test_state_dict_restores_scale_and_bias(learn_logit_scale):
    """The state has both learned and fixed values."""
    names = {SigmoidLoss: {"log_scale", "bias"}}
    for loss_class in LOSSES:
        options = {"bias": -3.0} if loss_class is SigmoidLoss else {}
        loss = loss_class(logit_scale=7.0, learn_logit_scale=learn_logit_scale, **options)
        assert loss.state_dict().keys() == names.get(loss_class, {"log_scale"})
        restored = loss_class(learn_logit_scale=learn_logit_scale)
        restored.load_state_dict(loss.state_dict())
        assert restored.logit_scale.item() == pytest.approx(7.0)
        if loss_class is SigmoidLoss:
            assert restored.bias.item() == -3.0


@pytest.mark.parametrize("loss_class", LOSSES)
@pytest.mark.parametrize("tile_size", TILE_SIZES)
def test_loss_does_not_depend_on_the_default_device(embeddings, positive, loss_class, tile_size):
    """Tensors are created on the device of the embeddings."""
    loss = loss_class(tile_size=tile_size)
    rows = slice(0, 12)
    positives = (None, positive, positive.nonzero())
    expected = [loss(*embeddings, positive) for positive in positives]
    shares = [loss.share(*embeddings, positive, rows) for positive in positives]
    with torch.device("meta"):
        assert [loss(*embeddings, positive) for positive in positives] == expected
        assert [loss.share(*embeddings, positive, rows) for positive in positives] == shares


@pytest.mark.parametrize("loss_class", LOSSES)
@pytest.mark.parametrize("tile_size", [1, 5])
def test_float64_is_not_rounded_to_float32(embeddings, positive, loss_class, tile_size):
    """The targets of three positives are thirds, which float32 would round."""
    sides = [torch.nn.functional.normalize(side.double(), dim=1) for side in embeddings]
    dense = loss_class(tile_size=None).double()
    tiled = loss_class(tile_size=tile_size).double()
    expected = dense(*sides, positive)
    assert tiled(*sides, positive).item() == pytest.approx(expected.item(), rel=1e-13)
    share = tiled.share(*sides, positive, slice(0, 12))
    assert share.item() == pytest.approx(expected.item(), rel=1e-13)


@pytest.mark.parametrize("loss_class", LOSSES)
@pytest.mark.parametrize("tile_size", TILE_SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_embeddings_of_different_types_are_promoted(embeddings, loss_class, tile_size, dtype):
    """NumPy arrays are float64 by default, and encoders in half precision return bfloat16."""
    image, text = embeddings[0], embeddings[1].to(dtype)
    loss = loss_class(tile_size=tile_size)
    promoted = torch.promote_types(image.dtype, dtype)
    for compute in (loss, lambda *sides: loss.share(*sides, None, slice(0, 12))):
        expected = compute(image.to(promoted), text.to(promoted))
        assert torch.equal(compute(image, text), expected)
        assert torch.equal(compute(text, image), compute(text.to(promoted), image.to(promoted)))


@pytest.mark.parametrize("loss_class", LOSSES)
def test_tile_size_auto_tiles_only_large_batches(embeddings, loss_class, monkeypatch):
    """Dense computation is faster for small batches and takes too much memory for large ones."""
    image, text = (side.requires_grad_() for side in embeddings)
    monkeypatch.setattr(_base, "MAX_DENSE_ROWS", 12)
    assert not is_tiled(loss_class()(image, text).grad_fn)
    monkeypatch.setattr(_base, "MAX_DENSE_ROWS", 11)
    assert is_tiled(loss_class()(image, text).grad_fn)


def is_tiled(step):
    """Return whether the graph of a loss has a tiled function."""
    if step is None:
        return False
    return "Tiled" in str(step) or any(is_tiled(before) for before, _ in step.next_functions)


@pytest.mark.parametrize("loss_class", LOSSES)
@pytest.mark.parametrize("shape", [(12,), (0, 5), (2, 3, 4)])
def test_invalid_shapes_raise(loss_class, shape):
    for call in (loss_class(), lambda *sides: loss_class().share(*sides, None, slice(0, 1))):
        with pytest.raises(ValueError, match="need embeddings of one shape"):
            call(torch.ones(shape), torch.ones(shape))


@pytest.mark.parametrize("loss_class", LOSSES)
@pytest.mark.parametrize("tile_size", [True, 0, 2.0, "all"])
def test_invalid_tile_size_raises(loss_class, tile_size):
    with pytest.raises(ValueError, match="tile_size must be None, 'auto' or an integer >= 1"):
        loss_class(tile_size=tile_size)


def gradients(loss, image, text, compute):
    inputs = [side.clone().requires_grad_() for side in (image, text)]
    value = compute(loss, *inputs)
    return value, torch.autograd.grad(value, [*inputs, *loss.parameters()])


class TestShares:
    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("loss_class", LOSSES)
    @pytest.mark.parametrize("tile_size", ["auto", None, 1, 5])
    @pytest.mark.parametrize("n_ranks", [1, 2, 5, 13])
    def test_shares_sum_to_the_loss_and_its_gradients(
        self, embeddings, positive, loss_class, tile_size, n_ranks
    ):
        """With 13 ranks and 12 pairs, one rank has no pair."""
        for positives in (None, positive, positive.nonzero()):
            loss, slopes = gradients(
                loss_class(),
                *embeddings,
                lambda loss, x, y, positives=positives: loss(x, y, positives),
            )
            shares = [
                gradients(
                    loss_class(tile_size=tile_size),
                    *embeddings,
                    lambda loss, x, y, positives=positives, rank=rank: loss.share(
                        x, y, positives, rank_rows(12, rank, n_ranks)
                    ),
                )
                for rank in range(n_ranks)
            ]
            torch.testing.assert_close(sum(value for value, _ in shares), loss)
            for i, expected in enumerate(slopes):
                total = sum(gradient[i] for _, gradient in shares)
                torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("loss_class", LOSSES)
    def test_shares_of_unequal_size_sum_to_the_loss(self, embeddings, positive, loss_class):
        loss = loss_class()
        parts = slice(0, 1), slice(1, 12)
        total = sum(loss.share(*embeddings, positive, rows) for rows in parts)
        torch.testing.assert_close(total, loss(*embeddings, positive))

    def test_row_without_positive_raises(self, embeddings, positive):
        positive[7] = False
        with pytest.raises(ValueError, match="Image 7 of the batch has no positive"):
            InfoNCELoss().share(*embeddings, positive, slice(0, 4))
        shifted = torch.eye(12, dtype=torch.bool)
        shifted[3, 3] = False
        shifted[3, 5] = True  # image 3 has a positive, caption 3 has none
        with pytest.raises(ValueError, match="Caption 3 of the batch has no positive"):
            InfoNCELoss().share(*embeddings, shifted, slice(0, 4))
        with pytest.raises(ValueError, match="Image 3 of the batch has no positive"):
            InfoNCELoss().share(*embeddings, shifted.T, slice(0, 4))

    def test_rank_rows_partition_the_batch_evenly(self):
        for n_pairs, n_ranks in ((12, 5), (3, 4), (8, 2), (1, 1)):
            parts = [rank_rows(n_pairs, rank, n_ranks) for rank in range(n_ranks)]
            rows = [row for part in parts for row in range(n_pairs)[part]]
            assert rows == list(range(n_pairs))
            sizes = [part.stop - part.start for part in parts]
            assert sizes == sorted(sizes, reverse=True)
            assert sizes[0] - sizes[-1] <= 1


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest result of any operation."""

    n_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.n_elements = max(self.n_elements, result.numel())
        return result


class TestMemory:
    @pytest.mark.exhaustive
    @pytest.mark.parametrize("loss_class", LOSSES)
    def test_large_batch_allocates_no_square_matrix(self, loss_class):
        """A tile has one million of the 25 million logits of 5,000 pairs."""
        sides = [torch.randn(5000, 4).requires_grad_() for _ in range(2)]
        with LargestTensor() as largest:
            loss_class()(*sides).backward()
        assert 2**16 < largest.n_elements <= 2**20
        with LargestTensor() as largest:
            loss_class(tile_size=None)(*(side[:2000] for side in sides)).backward()
        assert largest.n_elements == 2000**2  # the test detects a square matrix

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("loss_class", LOSSES)
    def test_rank_allocates_only_tiles_of_its_rows(self, loss_class):
        sides = [torch.randn(4096, 4).requires_grad_() for _ in range(2)]
        with LargestTensor() as largest:
            loss_class().share(*sides, None, rank_rows(4096, 1, 4)).backward()
        assert 2**18 < largest.n_elements <= 2**20
        with LargestTensor() as largest:
            loss_class(tile_size=64).share(*sides, None, rank_rows(4096, 1, 4)).backward()
        assert largest.n_elements <= 4096 * 4  # the size of the embeddings

    @pytest.mark.exhaustive
    def test_full_batch_training_allocates_no_square_matrix(self):
        rng = np.random.default_rng(0)
        image, text = (rng.standard_normal((8192, 8), dtype=np.float32) for _ in range(2))
        parameters = {"init": None, "width": 8, "max_epochs": 1, "early_stopping": False}
        with LargestTensor() as largest:
            APEAligner(batch_size=8192, **parameters).fit(image, text)
        assert largest.n_elements <= 2**21
