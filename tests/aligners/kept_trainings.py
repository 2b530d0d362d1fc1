"""Trainings with a checkpoint, whole and killed, for the tests of it."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sklearn_ape import APEAligner
from sklearn_ape.aligners import _checkpoint
from sklearn_ape.persistence import files as _one_file
from sklearn_ape.training import AlignmentNet

SCRIPT = Path(__file__).with_name("train_and_die.py")


def beside(name):
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    found = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


script = beside("train_and_die")
X, Y = script.pairs()


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
            found[case] = script.aligner(case).fit(X, Y)
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
