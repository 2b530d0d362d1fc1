"""Cases and fixtures for the tests of training checkpoints."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sklearn_ape import APEAligner
from sklearn_ape.aligners import checkpoint
from sklearn_ape.aligners._head_training import LinearCorrection
from sklearn_ape.training import AlignmentNet
from sklearn_ape.utils import files as file_utils

COMMON = {"depth": 2, "width": 32, "learning_rate": 1e-3, "max_epochs": 8, "batch_size": 64,
          "random_state": 0, "device": "cpu"}  # fmt: skip
CASES = {
    "plain": {"init": None},
    "auto": {"depth": 3, "dropout": 0.1, "learning_rate": 0.01},
    "auto, closed form kept": {"learning_rate": 1e-9, "n_iter_no_change": 6, "random_state": 2},
    "auto, all pairs": {"early_stopping": False, "dropout": 0.1},
    "patience": {"init": None, "n_iter_no_change": 1, "learning_rate": 0.05, "max_epochs": 40},
    "mixup": {"init": None, "mixup": 0.5, "dropout": 0.5, "side": "both", "refit": False},
    "residual": {
        "init": "linear",
        "early_stopping": False,
        "loss_params": {"structure_weight": 0.1},
    },
    "norms": {
        "init": None,
        "head": "batchnorm_mlp",
        "optimizer": "adam",
        "optimizer_params": {"clip_norm": 0.5},
        "loss_params": {"learn_logit_scale": False},
        "early_stopping": False,
    },
    "sigmoid": {
        "init": None,
        "loss": "sigmoid",
        "loss_params": {"tile_size": 16},
        "optimizer_params": {"warmup": 7},
    },
}


def pairs():
    """Return 300 pairs with a nonlinear relation; 50 images have two captions."""
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((300, 6))
    image = (concepts @ rng.standard_normal((6, 24))).astype(np.float32)
    text = np.sin(concepts @ rng.standard_normal((6, 16)) * 2).astype(np.float32)
    image[250:] = image[:50]
    return image, text


def aligner(case, **parameters):
    return APEAligner(**{**COMMON, **CASES[case], **parameters})


X, Y = pairs()


class Killed(BaseException):
    """Simulates a kill within the process, because starting another process takes too long."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread, as the killed processes do; more threads are slower on such small data."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def every_epoch(monkeypatch):
    """Write after each epoch without waiting for the disk; `TestKills` tests real writes."""
    monkeypatch.setattr(checkpoint, "_PAUSE_OF_WRITING", 0)
    monkeypatch.setattr(file_utils, "sync", lambda path: None)


@pytest.fixture
def steps(monkeypatch):
    """Return a function that counts training steps and kills the training at a given step.

    The steps of tuning are not counted: like the closed form, it is repeated.
    """

    class Steps:
        n_done = 0
        last = None

    train_step = AlignmentNet.train_step

    def count(net, batch, **kwargs):
        Steps.n_done += not isinstance(net.module_.text_head, LinearCorrection)
        if Steps.n_done == Steps.last:
            raise Killed
        return train_step(net, batch, **kwargs)

    monkeypatch.setattr(AlignmentNet, "train_step", count)

    def restart(last):
        Steps.n_done, Steps.last = 0, last
        return Steps

    return restart


@pytest.fixture(scope="module")
def whole():
    """Return a function that gives the aligner of a case fitted without interruption."""
    aligners = {}

    def fit_once(case):
        if case not in aligners:
            aligners[case] = aligner(case).fit(X, Y)
        return aligners[case]

    return fit_once


def history(aligner):
    return [{key: row[key] for key in row if key != "dur"} for row in aligner.history_]


def assert_same(actual, expected):
    assert actual.fingerprint_ == expected.fingerprint_
    assert actual.logit_scale_ == expected.logit_scale_
    assert history(actual) == history(expected)
    assert actual.best_epoch_ == expected.best_epoch_
    assert actual.n_epochs_ == expected.n_epochs_
    assert actual.n_parameters_ == expected.n_parameters_
    if isinstance(actual, APEAligner):
        np.testing.assert_array_equal(actual.transform(X), expected.transform(X))
        np.testing.assert_array_equal(actual.transform_text(Y), expected.transform_text(Y))
        np.testing.assert_array_equal(actual.bank_.text, expected.bank_.text)


def files(folder):
    """Return the kinds of the checkpoint files in a folder."""
    return sorted(path.name.partition(".")[2] for path in folder.glob("[!.]*"))


def kill(aligner, steps, step):
    """Fit until the training is killed at a step; return a new count of steps."""
    steps(step)
    with pytest.raises(Killed):
        clone(aligner).fit(X, Y)
    return steps(None)
