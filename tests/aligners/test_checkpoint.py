"""Checkpoints of training: resumed exactly, or refused."""

import os
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold
from skorch.callbacks import Callback, EpochScoring

from sklearn_ape import load_pretrained
from sklearn_ape.aligners import _checkpoint
from sklearn_ape.aligners import _checkpoint as _training_file
from sklearn_ape.encoders import HeadPairs
from sklearn_ape.persistence import files as _one_file
from tests.aligners import checkpoint_cases as cases
from tests.aligners.checkpoint_cases import (
    Killed,
    X,
    Y,
    assert_same,
    every_epoch,
    files,
    killed,
    one_thread,
    steps,
    whole,
)

__all__ = ["every_epoch", "one_thread", "steps", "whole"]  # fixtures


@pytest.mark.usefixtures("every_epoch")
class TestBits:
    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("case", cases.CASES)
    def test_killed_again_and_again(self, case, whole, steps, tmp_path):
        """Every 13th step, so at all places of epochs and in both trainings."""
        aligner = cases.aligner(case, checkpoint=tmp_path)
        n_kills = 0
        while True:
            steps(13)
            try:
                trained = clone(aligner).fit(X, Y)
                break
            except Killed:
                n_kills += 1
            assert files(tmp_path) == ["training.safetensors"]
        assert n_kills > 1
        steps(None)
        assert_same(trained, whole(case))
        assert files(tmp_path) == ["trained.safetensors"]

    def test_fitting_again_trains_nothing_and_gives_the_same(self, whole, steps, tmp_path):
        for case in ("plain", "auto", "residual", "norms"):
            aligner = cases.aligner(case, checkpoint=tmp_path / case)
            first = clone(aligner).fit(X, Y)
            counted = steps(None)
            assert_same(clone(aligner).fit(X, Y), first)
            assert counted.n_done == 0
            assert_same(first, whole(case))

    def test_the_second_training_alone_is_done_again(self, steps, whole, tmp_path):
        aligner = cases.aligner("plain", checkpoint=tmp_path)
        counted = steps(None)
        clone(aligner).set_params(checkpoint=None).fit(X, Y)
        n_steps = counted.n_done
        counted = killed(aligner, steps, n_steps - 1)
        resumed = clone(aligner).fit(X, Y)
        assert counted.n_done <= 5  # those of an epoch
        assert_same(resumed, whole("plain"))

    def test_few_states_are_written_where_writing_takes_long(self, monkeypatch, tmp_path):
        """A twentieth of the time at most, here of none."""
        monkeypatch.setattr(_checkpoint, "_PAUSE_OF_WRITING", 1e9)
        written = []
        write = _training_file.write_file
        monkeypatch.setattr(
            _training_file, "write_file", lambda *args: written.append(write(*args))
        )
        cases.aligner("plain", checkpoint=tmp_path).fit(X, Y)
        assert len(written) == 3  # the first epoch, the end of the search, the result


@pytest.mark.usefixtures("every_epoch")
class TestFolder:
    def test_a_search_goes_on_with_the_fit_that_was_killed(self, steps, tmp_path):
        def search(checkpoint):
            aligner = cases.aligner(
                "plain", max_epochs=2, early_stopping=False, checkpoint=checkpoint
            )
            grid = {"depth": [1, 2], "dropout": [0.0, 0.2]}
            return GridSearchCV(aligner, grid, cv=KFold(3), error_score="raise")

        counted = steps(None)
        whole = search(None).fit(X, Y)
        n_steps = counted.n_done
        steps(n_steps * 7 // 12)
        with pytest.raises(Killed):
            search(tmp_path).fit(X, Y)
        n_finished = files(tmp_path).count("trained.safetensors")
        assert 4 <= n_finished < 12
        counted = steps(None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = search(tmp_path).fit(X, Y)
        assert counted.n_done < n_steps * 8 // 12
        assert again.best_params_ == whole.best_params_
        np.testing.assert_array_equal(
            again.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"]
        )
        assert_same(again.best_estimator_, whole.best_estimator_)
        assert files(tmp_path) == ["trained.safetensors"] * 13

    def test_without_a_seed_a_killed_training_keeps_its_own(self, steps, tmp_path):
        aligner = cases.aligner("plain", checkpoint=tmp_path, random_state=None)
        killed(aligner, steps, 30)
        (file,) = tmp_path.glob("*.training.safetensors")
        seed = _one_file.read_file(file)["seed"]
        resumed = clone(aligner).fit(X, Y)
        assert_same(resumed, _with_seed(aligner, seed))
        # What is finished is no seed's: the next fit draws another.
        assert files(tmp_path) == []
        assert clone(aligner).fit(X, Y).fingerprint_ != resumed.fingerprint_

    def test_a_generator_draws_a_seed_for_every_fit(self, tmp_path):
        fingerprints = []
        for _ in range(2):
            random = np.random.RandomState(3)
            for _ in range(2):
                aligner = cases.aligner("plain", checkpoint=tmp_path, max_epochs=1)
                fingerprints.append(aligner.set_params(random_state=random).fit(X, Y).fingerprint_)
        assert fingerprints[:2] == fingerprints[2:]
        assert fingerprints[0] != fingerprints[1]
        assert files(tmp_path) == ["trained.safetensors"] * 2

    def test_an_interrupted_training_goes_on(self, whole, tmp_path):
        class Interrupt(Callback):
            at_epoch = 4

            def on_epoch_begin(self, net, **kwargs):
                if len(net.history) == Interrupt.at_epoch:
                    raise KeyboardInterrupt

        aligner = cases.aligner("plain", callbacks=[Interrupt()], checkpoint=tmp_path)
        with pytest.warns(UserWarning, match="stopped after 3 of 8 epochs"):
            clone(aligner).fit(X, Y)
        assert files(tmp_path) == ["training.safetensors"]
        Interrupt.at_epoch = None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(clone(aligner).fit(X, Y), whole("plain"))
        assert files(tmp_path) == []

    def test_one_that_diverged_is_forgotten(self, tmp_path):
        aligner = cases.aligner(
            "plain", checkpoint=tmp_path, learning_rate=1e30, optimizer_params={"warmup": 0}
        )
        with pytest.raises(FloatingPointError):
            aligner.fit(X, Y)
        assert files(tmp_path) == []

    def test_settings_of_the_machine_are_of_no_account(self, steps, whole, tmp_path, capsys):
        aligner = cases.aligner("plain", checkpoint=tmp_path)
        killed(aligner, steps, 30)
        again = clone(aligner).set_params(
            verbose=1, device="auto", callbacks=[], checkpoint=str(tmp_path)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(again.fit(X, Y), whole("plain"))
        assert "8/8" in capsys.readouterr().err

    def test_it_is_not_saved_with_the_aligner(self, tmp_path):
        aligner = cases.aligner("plain", checkpoint=tmp_path / "secret", max_epochs=1).fit(X, Y)
        aligner.save_pretrained(tmp_path / "model")
        assert load_pretrained(tmp_path / "model").checkpoint is None
        for path in (tmp_path / "model").iterdir():
            assert b"secret" not in path.read_bytes()

    def test_a_full_disk_costs_no_training(self, whole, monkeypatch, tmp_path):
        """One warning; what was written before is whole, and the next fit goes on from there."""
        written = []

        def write_some(*args):
            written.append(args)
            if len(written) > 3:
                raise OSError(28, "No space left on device")
            write(*args)

        write = _training_file.write_file
        monkeypatch.setattr(_training_file, "write_file", write_some)
        aligner = cases.aligner("plain", checkpoint=tmp_path)
        with pytest.warns(RuntimeWarning, match="No space left") as told:
            assert_same(clone(aligner).fit(X, Y), whole("plain"))
        assert len([w for w in told if "checkpoint" in str(w.message)]) == 1
        monkeypatch.undo()
        assert files(tmp_path) == ["training.safetensors"]
        assert_same(clone(aligner).fit(X, Y), whole("plain"))

    @pytest.mark.skipif(sys.platform == "win32", reason="limits of Unix")
    def test_a_file_that_may_not_grow(self, whole, tmp_path):
        """The real error of the writer of safetensors."""
        import resource
        import signal

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.warns(RuntimeWarning, match="cannot be written"):
                trained = cases.aligner("plain", checkpoint=tmp_path).fit(X, Y)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        assert_same(trained, whole("plain"))
        assert_same(cases.aligner("plain", checkpoint=tmp_path).fit(X, Y), trained)


class Scale(Callback):
    """Changes weights after every epoch."""

    calls = 0

    def __init__(self, factor=0.5):
        self.factor = factor

    def on_epoch_end(self, net, **kwargs):
        Scale.calls += 1
        with torch.no_grad():
            for parameter in net.module_.parameters():
                parameter.mul_(self.factor)


@pytest.mark.usefixtures("every_epoch")
class TestCallbacks:
    def test_a_finished_training_without_callbacks_is_not_returned_for_one_with(self, tmp_path):
        plain = cases.aligner("plain", early_stopping=False, checkpoint=tmp_path)
        before = clone(plain).fit(X, Y)
        scaled = clone(plain).set_params(callbacks=[("scale", Scale())])
        expected = clone(scaled).set_params(checkpoint=None).fit(X, Y)
        for _ in range(2):  # nor is its own result, as callbacks must be called
            Scale.calls = 0
            assert_same(clone(scaled).fit(X, Y), expected)
            assert Scale.calls == 8
        assert expected.fingerprint_ != before.fingerprint_
        assert files(tmp_path) == ["trained.safetensors"]
        assert_same(clone(plain).fit(X, Y), before)

    @pytest.mark.parametrize(
        "others",
        [None, [Scale(0.9)], [Scale(), Scale()], [Callback()]],
        ids=["none", "other parameter", "twice", "other class"],
    )
    def test_a_killed_training_is_resumed_only_with_the_same_callbacks(
        self, others, steps, tmp_path
    ):
        aligner = cases.aligner("plain", early_stopping=False, checkpoint=tmp_path)
        aligner.set_params(callbacks=[Scale()])
        expected = clone(aligner).set_params(checkpoint=None).fit(X, Y)
        killed(aligner, steps, 22)
        other = clone(aligner).set_params(callbacks=others)
        with pytest.warns(UserWarning, match="unfinished training with other callbacks"):
            found = clone(other).fit(X, Y)
        assert_same(found, clone(other).set_params(checkpoint=None).fit(X, Y))
        Scale.calls = 0
        assert_same(clone(aligner).fit(X, Y), expected)
        assert 0 < Scale.calls < 8

    def test_what_cannot_be_pickled_counts_by_its_type(self, steps, tmp_path):
        def aligner(scoring):
            callback = EpochScoring(scoring, name="mine", on_train=True)
            return cases.aligner("plain", callbacks=[callback], checkpoint=tmp_path)

        killed(aligner(lambda net, X, y: 1), steps, 30)
        counted = steps(None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            aligner(lambda net, X, y: 1).fit(X, Y)
        resumed = counted.n_done
        counted = steps(None)
        cases.aligner("plain").fit(X, Y)
        assert resumed < counted.n_done

    def test_callbacks_of_scikit_learn_are_called_whether_or_not_it_was_trained(
        self, whole, tmp_path
    ):
        callback = pytest.importorskip("sklearn.callback", reason="scikit-learn >= 1.9")
        aligner = cases.aligner("plain", checkpoint=tmp_path)
        monitor = callback.ScoringMonitor(scoring=lambda estimator, X, y: {"one": 1.0})
        clone(aligner).fit(X, Y)
        assert_same(clone(aligner).set_callbacks(monitor).fit(X, Y), whole("plain"))
        assert len(monitor.get_logs().data) == 1 + 8

    def test_a_progress_bar_does_not_train_again(self, steps, tmp_path):
        callback = pytest.importorskip("sklearn.callback", reason="scikit-learn >= 1.9")
        aligner = cases.aligner("plain", checkpoint=tmp_path)
        first = clone(aligner).fit(X, Y)
        counted = steps(None)
        assert_same(clone(aligner).set_callbacks(callback.ProgressBar()).fit(X, Y), first)
        assert counted.n_done == 0

    def test_a_callback_of_scikit_learn_that_stops_a_finished_training(self, tmp_path):
        pytest.importorskip("sklearn.callback", reason="scikit-learn >= 1.9")

        class StopAt2:
            n_epochs = 0

            def setup(self, estimator, context):
                pass

            def teardown(self, estimator, context):
                pass

            def on_fit_task_begin(self, estimator, context):
                pass

            def on_fit_task_end(self, estimator, context):
                self.n_epochs += context.task_name == "epoch"
                return self.n_epochs == 2

        aligner = cases.aligner("plain", checkpoint=tmp_path)
        clone(aligner).fit(X, Y)
        with pytest.warns(UserWarning, match="stopped after 2 of 8 epochs"):
            assert clone(aligner).set_callbacks(StopAt2()).fit(X, Y).n_epochs_ == 2


@pytest.mark.parametrize(
    "parameters",
    [
        {"learning_rate": np.float64(0.001), "depth": np.int64(2), "refit": np.bool_(True)},
        {"verbose": 2, "device": "cpu"},
    ],
)
def test_parameters_that_are_equal_are_those_of_the_same_training(parameters, steps, tmp_path):
    aligner = cases.aligner("plain", max_epochs=2, checkpoint=tmp_path)
    aligner.fit(X, Y)
    counted = steps(None)
    clone(aligner).set_params(**parameters).fit(X, Y)
    assert counted.n_done == 0


def test_pairs_of_a_classification_head_are_of_the_training(steps, tmp_path):
    rng = np.random.default_rng(0)
    fingerprints = set()
    for seed in (None, 1, 2):
        pairs = None
        if seed is not None:
            features = rng.standard_normal((9, X.shape[1])).astype(np.float32)
            texts = rng.standard_normal((9, Y.shape[1])).astype(np.float32)
            pairs = HeadPairs(features, texts)
        aligner = cases.aligner("plain", max_epochs=1, head_pairs=pairs, checkpoint=tmp_path)
        fingerprints.add(aligner.fit(X, Y).fingerprint_)
    assert len(fingerprints) == 3


def _with_seed(aligner, seed):
    """Fit as if ``random_state=None`` had drawn a seed."""

    class Drawn(np.random.RandomState):
        def randint(self, *args, **kwargs):
            return seed

    return clone(aligner).set_params(checkpoint=None, random_state=Drawn()).fit(X, Y)


@pytest.mark.usefixtures("every_epoch")
class TestRefusals:
    @pytest.fixture
    def unfinished(self, steps, tmp_path):
        """A killed training, and its file."""
        aligner = cases.aligner("plain", checkpoint=tmp_path)
        killed(aligner, steps, 30)
        (file,) = tmp_path.glob("*.training.safetensors")
        return aligner, file

    def test_other_parameters_begin_at_the_beginning_and_say_so(self, unfinished):
        aligner, file = unfinished
        before = file.read_bytes()
        other = clone(aligner).set_params(learning_rate=0.002, depth=np.int64(3))
        with pytest.warns(UserWarning, match=r"depth=2 \(here 3\), learning_rate=0.001 \(here"):
            other.fit(X, Y)
        with pytest.warns(UserWarning, match="unfinished training with other pairs"):
            clone(aligner).fit(X, Y + 1)
        with pytest.warns(UserWarning, match="with other random_state"):
            clone(aligner).set_params(random_state=1).fit(X, Y)
        assert file.read_bytes() == before

    @pytest.mark.parametrize("where", [3, 5000, -100])
    def test_damage(self, where, unfinished):
        aligner, file = unfinished
        damaged = bytearray(file.read_bytes())
        damaged[where] ^= 255
        digit = bytearray(file.read_bytes())
        at = digit.index(b"valid_recall") + 20
        digit[at] = ord("7") if digit[at] != ord("7") else ord("6")
        for content in (
            bytes(digit),
            bytes(damaged),
            damaged[: len(damaged) // 2],
            b"",
            b"\x80\x04pickle",
        ):
            file.write_bytes(content)
            with pytest.raises(ValueError, match="Delete it to train from the beginning"):
                clone(aligner).fit(X, Y)
            assert file.read_bytes() == content

    def test_the_file_of_another_training(self, unfinished, tmp_path):
        aligner, file = unfinished
        other = clone(aligner).set_params(depth=1)
        with pytest.warns(UserWarning, match="depth=2"):
            other.fit(X, Y)
        (of_other,) = tmp_path.glob("*.trained.safetensors")
        shutil.copy(file, of_other)
        with pytest.raises(ValueError, match=r"belongs to another training: depth=2 \(here 1\)"):
            other.fit(X, Y)

    def test_another_format(self, unfinished, monkeypatch):
        aligner, _ = unfinished
        monkeypatch.setattr(_training_file, "_FORMAT", 2)
        with pytest.raises(ValueError, match=r"has format 1, and this .* format 2. Delete it"):
            clone(aligner).fit(X, Y)

    @pytest.mark.exhaustive
    def test_other_versions_are_told(self, unfinished, whole, monkeypatch):
        aligner, _ = unfinished
        monkeypatch.setattr(_training_file, "_versions", lambda: {"torch": "99"})
        with pytest.warns(UserWarning, match="may differ in the last digits"):
            assert_same(clone(aligner).fit(X, Y), whole("plain"))

    def test_a_folder_of_other_things(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(FileExistsError, match=r"contains thesis\.txt and no checkpoint"):
            cases.aligner("plain", checkpoint=tmp_path).fit(X, Y)
        assert os.listdir(tmp_path) == ["thesis.txt"]

    @pytest.mark.parametrize("place", ["file", "file/below"])
    def test_a_place_that_cannot_be_written_to(self, place, steps, tmp_path):
        (tmp_path / "file").write_text("mine")
        counted = steps(None)
        with pytest.raises(OSError, match="Pass a"):
            cases.aligner("plain", checkpoint=tmp_path / place).fit(X, Y)
        assert counted.n_done == 0

    def test_no_path(self):
        for checkpoint in (3, "", True):
            with pytest.raises(TypeError, match="checkpoint must be None or the path"):
                cases.aligner("plain", checkpoint=checkpoint).fit(X, Y)
