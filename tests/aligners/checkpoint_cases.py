"""Cases and fixtures for training with a checkpoint, uninterrupted or killed."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sklearn_ape import APEAligner
from sklearn_ape.aligners import _checkpoint
from sklearn_ape.persistence import files as _one_file
from sklearn_ape.training import AlignmentNet

COMMON = {"width": 32, "max_epochs": 8, "batch_size": 64, "random_state": 0, "device": "cpu"}
CASES = {
    "plain": {"init": None},
    "auto": {},
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
    """Return 300 pairs, some of them with several captions, whose relation is no straight line."""
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
    """Stands in for a kill where a process of its own would take too long."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that are killed; several threads wait for one another on so little."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def every_epoch(monkeypatch):
    """Write after every epoch, at the pace of memory: disks are waited for in `TestKills`."""
    monkeypatch.setattr(_checkpoint, "_PAUSE_OF_WRITING", 0)
    monkeypatch.setattr(_one_file, "sync", lambda path: None)


@pytest.fixture
def steps(monkeypatch):
    """Counts steps of training, and kills at one."""

    class Steps:
        n_done = 0
        last = None

    train_step = AlignmentNet.train_step

    def counted(net, batch, **kwargs):
        Steps.n_done += 1
        if Steps.n_done == Steps.last:
            raise Killed
        return train_step(net, batch, **kwargs)

    monkeypatch.setattr(AlignmentNet, "train_step", counted)

    def until(number):
        Steps.n_done, Steps.last = 0, number
        return Steps

    return until


@pytest.fixture(scope="module")
def whole():
    """Trainings that nothing interrupted, made when they are first asked for."""
    found = {}

    def of(case):
        if case not in found:
            found[case] = aligner(case).fit(X, Y)
        return found[case]

    return of


def course(aligner):
    return [{key: row[key] for key in row if key != "dur"} for row in aligner.history_]


def assert_same(one, other):
    assert one.fingerprint_ == other.fingerprint_
    assert one.logit_scale_ == other.logit_scale_
    assert course(one) == course(other)
    assert one.best_epoch_ == other.best_epoch_
    assert one.n_epochs_ == other.n_epochs_
    assert one.n_parameters_ == other.n_parameters_
    if isinstance(one, APEAligner):
        np.testing.assert_array_equal(one.transform(X), other.transform(X))
        np.testing.assert_array_equal(one.transform_text(Y), other.transform_text(Y))
        np.testing.assert_array_equal(one.bank_.text, other.bank_.text)


def files(folder):
    return sorted(path.name.partition(".")[2] for path in folder.glob("[!.]*"))


def killed(aligner, steps, number):
    steps(number)
    with pytest.raises(Killed):
        clone(aligner).fit(X, Y)
    return steps(None)
