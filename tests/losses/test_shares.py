"""What processes add up to, and that no loss of a large batch holds a matrix of all pairs."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sklearn_ape import APEAligner
from sklearn_ape.losses import InfoNCELoss, SigmoidLoss
from sklearn_ape.training.data import rank_rows

LOSSES = [InfoNCELoss, SigmoidLoss]


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
