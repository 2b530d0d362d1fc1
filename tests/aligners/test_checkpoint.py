"""Training checkpoints: exact resumption, and errors for files that cannot be used."""

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
from sklearn_ape.aligners import checkpoint
from sklearn_ape.encoders import HeadPairs
from sklearn_ape.persistence import files as model_files
from sklearn_ape.training.net import AlignmentNet
from tests.aligners import checkpoint_cases as cases
from tests.aligners.checkpoint_cases import (
    Killed,
    X,
    Y,
    assert_same,
    every_epoch,
    files,
    kill,
    one_thread,
    steps,
    whole,
)

__all__ = ["every_epoch", "one_thread", "steps", "whole"]  # fixtures


@pytest.mark.usefixtures("every_epoch")
class TestResume:
    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("case", cases.CASES)
    def test_training_killed_repeatedly_gives_equal_results(self, case, whole, steps, tmp_path):
        """Kills at every 13th step cover all positions in an epoch, in search and refit."""
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

    @pytest.mark.sampled(5)
    @pytest.mark.parametrize(
        "case", ["auto", "plain", "auto, closed form kept", "residual", "norms"]
    )
    def test_fit_after_finished_training_returns_its_result(self, case, whole, steps, tmp_path):
        aligner = cases.aligner(case, checkpoint=tmp_path)
        first = clone(aligner).fit(X, Y)
        counted = steps(None)
        assert_same(clone(aligner).fit(X, Y), first)
        assert counted.n_done == 0
        assert_same(first, whole(case))

    def test_kill_during_refit_repeats_at_most_one_epoch(self, steps, whole, tmp_path):
        aligner = cases.aligner("plain", checkpoint=tmp_path)
        counted = steps(None)
        clone(aligner).set_params(checkpoint=None).fit(X, Y)
        n_steps = counted.n_done
        counted = kill(aligner, steps, n_steps - 1)
        resumed = clone(aligner).fit(X, Y)
        assert counted.n_done <= 5  # the steps of one epoch
        assert_same(resumed, whole("plain"))

    def test_slow_disk_reduces_number_of_writes(self, monkeypatch, tmp_path):
        """Writing takes at most a twentieth of the time, here only three writes."""
        monkeypatch.setattr(checkpoint, "_PAUSE_OF_WRITING", 1e9)
        written = []
        write = checkpoint.write_file
        monkeypatch.setattr(checkpoint, "write_file", lambda *args: written.append(write(*args)))
        cases.aligner("plain", checkpoint=tmp_path).fit(X, Y)
        assert len(written) == 3  # the first epoch, the end of the search, the result


@pytest.mark.usefixtures("every_epoch")
class TestFolder:
    def test_search_resumes_at_the_killed_fit(self, steps, tmp_path):
        def search(checkpoint):
            aligner = cases.aligner(
                "plain", max_epochs=2, early_stopping=False, checkpoint=checkpoint
            )
            grid = {"depth": [1, 2], "dropout": [0.0, 0.2]}
            return GridSearchCV(aligner, grid, cv=KFold(3), error_score="raise")

        counted = steps(None)
        reference = search(None).fit(X, Y)
        n_steps = counted.n_done
        steps(n_steps * 7 // 12)
        with pytest.raises(Killed):
            search(tmp_path).fit(X, Y)
        n_finished = files(tmp_path).count("trained.safetensors")
        assert 4 <= n_finished < 12
        counted = steps(None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            resumed = search(tmp_path).fit(X, Y)
        assert counted.n_done < n_steps * 8 // 12
        assert resumed.best_params_ == reference.best_params_
        np.testing.assert_array_equal(
            resumed.cv_results_["mean_test_score"], reference.cv_results_["mean_test_score"]
        )
        assert_same(resumed.best_estimator_, reference.best_estimator_)
        assert files(tmp_path) == ["trained.safetensors"] * 13

    @pytest.mark.exhaustive
    def test_random_state_none_resumes_with_the_stored_seed(self, steps, tmp_path):
        aligner = cases.aligner("plain", checkpoint=tmp_path, random_state=None)
        kill(aligner, steps, 30)
        (file,) = tmp_path.glob("*.training.safetensors")
        seed = model_files.read_file(file)["seed"]
        resumed = clone(aligner).fit(X, Y)
        assert_same(resumed, _with_seed(aligner, seed))
        # A finished training without a seed leaves no file, and the next fit draws another seed.
        assert files(tmp_path) == []
        assert clone(aligner).fit(X, Y).fingerprint_ != resumed.fingerprint_

    def test_generator_gives_each_fit_its_own_checkpoint(self, tmp_path):
        fingerprints = []
        for _ in range(2):
            random = np.random.RandomState(3)
            for _ in range(2):
                aligner = cases.aligner("plain", checkpoint=tmp_path, max_epochs=1)
                fingerprints.append(aligner.set_params(random_state=random).fit(X, Y).fingerprint_)
        assert fingerprints[:2] == fingerprints[2:]
        assert fingerprints[0] != fingerprints[1]
        assert files(tmp_path) == ["trained.safetensors"] * 2

    def test_interrupted_training_is_resumed(self, whole, tmp_path):
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
            warnings.filterwarnings("ignore", ".*have the same features")
            assert_same(clone(aligner).fit(X, Y), whole("plain"))
        assert files(tmp_path) == []

    @pytest.mark.exhaustive
    def test_interruption_of_a_resumed_refit_raises(self, steps, whole, monkeypatch, tmp_path):
        """The checkpoint has the state of the refit, and not the heads of the search."""
        aligner = cases.aligner("plain", checkpoint=tmp_path)
        counted = steps(None)
        clone(aligner).set_params(checkpoint=None).fit(X, Y)
        kill(aligner, steps, counted.n_done - 1)

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        with monkeypatch.context() as context:
            context.setattr(AlignmentNet, "train_step", interrupt)
            with pytest.raises(KeyboardInterrupt):
                clone(aligner).fit(X, Y)
        assert files(tmp_path) == ["training.safetensors"]
        assert_same(clone(aligner).fit(X, Y), whole("plain"))

    def test_diverged_training_leaves_no_checkpoint(self, tmp_path):
        aligner = cases.aligner(
            "plain", checkpoint=tmp_path, learning_rate=1e30, optimizer_params={"warmup": 0}
        )
        with pytest.raises(FloatingPointError):
            aligner.fit(X, Y)
        assert files(tmp_path) == []

    def test_runtime_options_may_change_on_resume(self, steps, whole, tmp_path, capsys):
        aligner = cases.aligner("plain", checkpoint=tmp_path)
        kill(aligner, steps, 30)
        resumed = clone(aligner).set_params(
            verbose=1, device="auto", callbacks=[], checkpoint=str(tmp_path)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", ".*have the same features")
            assert_same(resumed.fit(X, Y), whole("plain"))
        assert "8/8" in capsys.readouterr().err

    def test_checkpoint_path_is_not_saved_with_the_aligner(self, tmp_path):
        aligner = cases.aligner("plain", checkpoint=tmp_path / "secret", max_epochs=1).fit(X, Y)
        aligner.save_pretrained(tmp_path / "model")
        assert load_pretrained(tmp_path / "model").checkpoint is None
        for path in (tmp_path / "model").iterdir():
            assert b"secret" not in path.read_bytes()

    def test_full_disk_warns_and_training_continues(self, whole, monkeypatch, tmp_path):
        """It warns once, and the next fit resumes from the last complete checkpoint."""
        written = []

        def write_three_times(*args):
            written.append(args)
            if len(written) > 3:
                raise OSError(28, "No space left on device")
            write(*args)

        write = checkpoint.write_file
        monkeypatch.setattr(checkpoint, "write_file", write_three_times)
        aligner = cases.aligner("plain", checkpoint=tmp_path)
        with pytest.warns(RuntimeWarning, match="No space left") as records:
            assert_same(clone(aligner).fit(X, Y), whole("plain"))
        assert len([w for w in records if "checkpoint" in str(w.message)]) == 1
        monkeypatch.undo()
        assert files(tmp_path) == ["training.safetensors"]
        assert_same(clone(aligner).fit(X, Y), whole("plain"))

    @pytest.mark.skipif(sys.platform == "win32", reason="limits of Unix")
    def test_file_size_limit_warns_and_training_continues(self, whole, tmp_path, monkeypatch):
        """The error is the one that safetensors raises when a write fails."""
        import resource
        import signal

        # Python would cut compiled modules off at the limit, without an error.
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
        try:
            with pytest.warns(RuntimeWarning, match="cannot be written"):
                trained = cases.aligner("plain", checkpoint=tmp_path).fit(X, Y)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, handler)
        assert_same(trained, whole("plain"))
        assert_same(cases.aligner("plain", checkpoint=tmp_path).fit(X, Y), trained)


class Scale(Callback):
    """Callback that scales the weights after each epoch."""

    calls = 0

    def __init__(self, factor=0.5):
        self.factor = factor

    def on_epoch_end(self, net, **kwargs):
        Scale.calls += 1
        with torch.no_grad():
            for parameter in net.module_.parameters():
                parameter.mul_(self.factor)


class RecordTensor(Callback):
    def on_epoch_end(self, net, **kwargs):
        net.history.record("weights", next(net.module_.text_head.parameters()))


@pytest.mark.usefixtures("every_epoch")
class TestCallbacks:
    @pytest.mark.exhaustive
    def test_callbacks_run_again_after_finished_training(self, tmp_path):
        plain = cases.aligner("plain", early_stopping=False, checkpoint=tmp_path)
        before = clone(plain).fit(X, Y)
        scaled = clone(plain).set_params(callbacks=[("scale", Scale())])
        expected = clone(scaled).set_params(checkpoint=None).fit(X, Y)
        for _ in range(2):  # a finished training with callbacks is repeated to call them
            Scale.calls = 0
            assert_same(clone(scaled).fit(X, Y), expected)
            assert Scale.calls == 8
        assert expected.fingerprint_ != before.fingerprint_
        assert files(tmp_path) == ["trained.safetensors"]
        assert_same(clone(plain).fit(X, Y), before)

    @pytest.mark.sampled(4)
    @pytest.mark.parametrize(
        "callbacks",
        [None, [Scale(0.9)], [Scale(), Scale()], [Callback()]],
        ids=["none", "other parameter", "twice", "other class"],
    )
    def test_resume_requires_equal_callbacks(self, callbacks, steps, tmp_path):
        aligner = cases.aligner("plain", early_stopping=False, checkpoint=tmp_path)
        aligner.set_params(callbacks=[Scale()])
        expected = clone(aligner).set_params(checkpoint=None).fit(X, Y)
        kill(aligner, steps, 22)
        other = clone(aligner).set_params(callbacks=callbacks)
        with pytest.warns(UserWarning, match="unfinished training with other callbacks"):
            restarted = clone(other).fit(X, Y)
        assert_same(restarted, clone(other).set_params(checkpoint=None).fit(X, Y))
        Scale.calls = 0
        assert_same(clone(aligner).fit(X, Y), expected)
        assert 0 < Scale.calls < 8

    @pytest.mark.exhaustive
    def test_callbacks_that_cannot_be_pickled_are_compared_by_type(self, steps, tmp_path):
        def aligner(scoring):
            callback = EpochScoring(scoring, name="own score", on_train=True)
            return cases.aligner("plain", callbacks=[callback], checkpoint=tmp_path)

        kill(aligner(lambda net, X, y: 1), steps, 30)
        counted = steps(None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", ".*have the same features")
            aligner(lambda net, X, y: 1).fit(X, Y)
        resumed = counted.n_done
        counted = steps(None)
        cases.aligner("plain").fit(X, Y)
        assert resumed < counted.n_done

    @pytest.mark.exhaustive
    def test_tensors_that_callbacks_record_do_not_end_training(self, steps, whole, tmp_path):
        aligner = cases.aligner("plain", callbacks=[RecordTensor()], checkpoint=tmp_path)
        counted = kill(aligner, steps, 30)
        resumed = clone(aligner).fit(X, Y)
        assert counted.n_done < 30
        assert_same(resumed, whole("plain"))

    @pytest.mark.exhaustive
    def test_scikit_learn_callbacks_are_called_after_finished_training(self, whole, tmp_path):
        callback = pytest.importorskip("sklearn.callback", reason="scikit-learn >= 1.9")
        aligner = cases.aligner("plain", checkpoint=tmp_path)
        monitor = callback.ScoringMonitor(scoring=lambda estimator, X, y: {"one": 1.0})
        clone(aligner).fit(X, Y)
        assert_same(clone(aligner).set_callbacks(monitor).fit(X, Y), whole("plain"))
        assert len(monitor.get_logs().data) == 1 + 8

    def test_progress_bar_does_not_repeat_finished_training(self, steps, tmp_path):
        callback = pytest.importorskip("sklearn.callback", reason="scikit-learn >= 1.9")
        aligner = cases.aligner("plain", checkpoint=tmp_path)
        first = clone(aligner).fit(X, Y)
        counted = steps(None)
        assert_same(clone(aligner).set_callbacks(callback.ProgressBar()).fit(X, Y), first)
        assert counted.n_done == 0

    def test_scikit_learn_callback_can_stop_repeated_training(self, tmp_path):
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
def test_equal_parameters_of_other_types_reuse_the_result(parameters, steps, tmp_path):
    aligner = cases.aligner("plain", max_epochs=2, checkpoint=tmp_path)
    aligner.fit(X, Y)
    counted = steps(None)
    clone(aligner).set_params(**parameters).fit(X, Y)
    assert counted.n_done == 0


def test_other_head_pairs_start_another_training(steps, tmp_path):
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
    """Fit with the seed that ``random_state=None`` would have drawn."""

    class FixedSeed(np.random.RandomState):
        def randint(self, *args, **kwargs):
            return seed

    return clone(aligner).set_params(checkpoint=None, random_state=FixedSeed()).fit(X, Y)


@pytest.mark.usefixtures("every_epoch")
class TestRejectedFiles:
    @pytest.fixture
    def unfinished(self, steps, tmp_path):
        """An aligner whose training was killed, and its checkpoint file."""
        aligner = cases.aligner("plain", checkpoint=tmp_path)
        kill(aligner, steps, 30)
        (file,) = tmp_path.glob("*.training.safetensors")
        return aligner, file

    def test_other_parameters_warn_and_start_a_new_training(self, unfinished):
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

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("position", [3, 5000, -100])
    def test_damaged_file_raises_and_is_kept(self, position, unfinished):
        aligner, file = unfinished
        damaged = bytearray(file.read_bytes())
        damaged[position] ^= 255
        # A changed digit leaves valid JSON, which only the checksum detects.
        changed = bytearray(file.read_bytes())
        digit = changed.index(b"valid_recall") + 20
        changed[digit] = ord("7") if changed[digit] != ord("7") else ord("6")
        for content in (
            bytes(changed),
            bytes(damaged),
            damaged[: len(damaged) // 2],
            b"",
            b"\x80\x04pickle",
        ):
            file.write_bytes(content)
            with pytest.raises(ValueError, match="Delete it to train from the beginning"):
                clone(aligner).fit(X, Y)
            assert file.read_bytes() == content

    @pytest.mark.exhaustive
    def test_file_of_another_training_raises(self, unfinished, tmp_path):
        aligner, file = unfinished
        other = clone(aligner).set_params(depth=1)
        with pytest.warns(UserWarning, match="depth=2"):
            other.fit(X, Y)
        (other_file,) = tmp_path.glob("*.trained.safetensors")
        shutil.copy(file, other_file)
        with pytest.raises(ValueError, match=r"belongs to another training: depth=2 \(here 1\)"):
            other.fit(X, Y)

    def test_other_format_raises(self, unfinished, monkeypatch):
        aligner, _ = unfinished
        monkeypatch.setattr(checkpoint, "_FORMAT", 2)
        with pytest.raises(ValueError, match=r"has format 1, and this .* format 2. Delete it"):
            clone(aligner).fit(X, Y)

    @pytest.mark.exhaustive
    def test_other_library_versions_warn(self, unfinished, whole, monkeypatch):
        aligner, _ = unfinished
        monkeypatch.setattr(checkpoint, "_list_versions", lambda: {"torch": "99"})
        with pytest.warns(UserWarning, match="may differ in the last digits"):
            assert_same(clone(aligner).fit(X, Y), whole("plain"))

    def test_folder_with_other_files_raises(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("text")
        with pytest.raises(FileExistsError, match=r"contains thesis\.txt and no checkpoint"):
            cases.aligner("plain", checkpoint=tmp_path).fit(X, Y)
        assert os.listdir(tmp_path) == ["thesis.txt"]

    @pytest.mark.parametrize("path", ["file", "file/below"])
    def test_unwritable_folder_raises_before_training(self, path, steps, tmp_path):
        (tmp_path / "file").write_text("text")
        counted = steps(None)
        with pytest.raises(OSError, match="Pass a"):
            cases.aligner("plain", checkpoint=tmp_path / path).fit(X, Y)
        assert counted.n_done == 0

    def test_invalid_type_raises(self):
        for folder in (3, "", True):
            with pytest.raises(TypeError, match="checkpoint must be None or the path"):
                cases.aligner("plain", checkpoint=folder).fit(X, Y)
