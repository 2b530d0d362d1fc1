"""Diverging training raises an informative error and leaves no fitted aligner."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Callback

from sklearn_ape import APEAligner, LiTAligner
from sklearn_ape.encoders import EncodingError, TransformersTextEncoder
from tests.robustness.numerics.estimators import IMAGE, SENTENCES, TEXT, _tiny_text_folder

HEADS = {"init": None, "width": 16, "max_epochs": 4, "random_state": 0}
DIVERGING = {
    "learning rate": {"learning_rate": 1e30, "optimizer": "adam"},
    "learning rate, no early stopping": {"learning_rate": 1e30, "early_stopping": False},
    "learning rate, kernel initialization": {"init": "kernel", "learning_rate": 1e35},
    "learning rate, blend": {"init": "auto", "learning_rate": 1e35},
    "learning rate, sigmoid loss": {"learning_rate": 1e30, "loss": "sigmoid"},
    "learning rate, tiles": {"learning_rate": 1e30, "loss_params": {"tile_size": 8}},
}
MESSAGE = (
    r"diverged in epoch \d+: .*not finite.*Lower learning_rate \(now 1e\+\d+\) or logit_scale"
)


class SetWeightsToNan(Callback):
    """Callback that sets weights to NaN after an epoch, as faulty GPU memory could."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, net, **kwargs):
        if net.history[-1, "epoch"] == self.epoch:
            with torch.no_grad():
                next(net.module_.parameters()).fill_(np.nan)


@pytest.mark.parametrize("name", DIVERGING)
def test_divergence_raises_with_epoch_and_remedy(name):
    with pytest.raises(FloatingPointError, match=MESSAGE):
        APEAligner(**(HEADS | DIVERGING[name])).fit(IMAGE, TEXT)


@pytest.mark.parametrize("init", [None, "auto"])
def test_logit_scale_of_zero_raises(init):
    """Loss and weights are finite, but all logits are 0."""
    aligner = APEAligner(**(HEADS | {"init": init}), learning_rate=100)
    with pytest.raises(FloatingPointError, match=r"scale is almost 0.*rate \(now 100\)"):
        aligner.fit(IMAGE, TEXT)


def test_nan_weights_of_a_later_epoch_raise():
    """The error names the epoch in which the weights became NaN, or the next one."""
    aligner = APEAligner(**HEADS, callbacks=[SetWeightsToNan(2)])
    with pytest.raises(FloatingPointError, match=r"diverged in epoch [23]\b"):
        aligner.fit(IMAGE, TEXT)


def test_divergence_keeps_previous_fit():
    """An unfitted aligner remains unfitted, and a fitted one gives the results of before."""
    aligner = APEAligner(**HEADS, learning_rate=1e30, optimizer="adam")
    with pytest.raises(FloatingPointError):
        aligner.fit(IMAGE, TEXT)
    with pytest.raises(NotFittedError):
        aligner.transform(IMAGE)
    before = aligner.set_params(learning_rate=1e-3).fit(IMAGE, TEXT).transform(IMAGE)
    with pytest.raises(FloatingPointError):
        aligner.set_params(learning_rate=1e30).fit(IMAGE, TEXT)
    np.testing.assert_array_equal(aligner.transform(IMAGE), before)


def test_invalid_data_leave_no_fitted_aligner():
    aligner = APEAligner(**HEADS)
    with pytest.raises(ValueError, match="infinity"):
        aligner.fit(np.where(np.eye(*IMAGE.shape) > 0, np.inf, IMAGE), TEXT)
    with pytest.raises(NotFittedError):
        aligner.transform(IMAGE)


def test_divergence_of_text_tower_raises():
    encoder = TransformersTextEncoder(_tiny_text_folder(), cache=None, engine="torch")
    aligner = LiTAligner(
        text_encoder=encoder, max_epochs=3, learning_rate=1e30, batch_size=60, random_state=0
    )
    with pytest.raises(FloatingPointError, match=r"diverged in epoch .*head_learning_rate"):
        aligner.fit(IMAGE[:60], SENTENCES)
    with pytest.raises(NotFittedError):
        aligner.transform(IMAGE)


def test_feature_that_overflows_in_half_precision_raises_with_row(tmp_path):
    """The error names a text whose feature exceeds float16; in float32 it is encoded."""
    from safetensors.torch import load_file, save_file

    from tests.encoders.tiny_networks import text_folder

    folder = tmp_path / "large"
    folder.mkdir()
    text_folder(folder)
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("output.LayerNorm.weight"))
    last = [key for key in weights if key.endswith("output.LayerNorm.weight")]
    weights |= {key: 1e30 * torch.ones_like(weights[name]) for key in last}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = TransformersTextEncoder(
        str(folder), cache=None, engine="torch", normalize=False, dtype="bfloat16"
    )
    with pytest.raises(EncodingError, match=r"row \d: '.*' .*NaN or infinite in bfloat16"):
        encoder.transform(["a cat", "the dog"])
