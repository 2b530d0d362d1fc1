"""A training that is killed goes on where it was, to the bit, and takes nothing for its own."""

import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold
from skorch.callbacks import Callback

from sklearn_ape import APEAligner, LiTAligner, load_pretrained
from sklearn_ape.aligners import _checkpoint, _training_file
from sklearn_ape.persistence import _one_file
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
    monkeypatch.setattr(_one_file, "_sync", lambda path: None)


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


@pytest.mark.usefixtures("every_epoch")
class TestBits:
    @pytest.mark.parametrize("case", script.CASES)
    def test_killed_again_and_again(self, case, whole, steps, tmp_path):
        """Every 13th step, so at all places of epochs and in both trainings."""
        aligner = script.aligner(case, checkpoint=tmp_path)
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
            aligner = script.aligner(case, checkpoint=tmp_path / case)
            first = clone(aligner).fit(X, Y)
            counted = steps(None)
            assert_same(clone(aligner).fit(X, Y), first)
            assert counted.n_done == 0
            assert_same(first, whole(case))

    def test_the_second_training_alone_is_done_again(self, steps, whole, tmp_path):
        aligner = script.aligner("plain", checkpoint=tmp_path)
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
        script.aligner("plain", checkpoint=tmp_path).fit(X, Y)
        assert len(written) == 3  # the first epoch, the end of the search, the result


@pytest.fixture(scope="module")
def forks():
    """Forks processes that train and are killed; says how they ended."""
    if not hasattr(os, "fork"):
        pytest.skip("forks processes")
    server = subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert server.stdout.readline() == "ready\n"

    def run(*jobs):
        server.stdin.write(json.dumps([{**job, "folder": str(job["folder"])} for job in jobs]))
        server.stdin.write("\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield run
    server.stdin.close()
    server.wait(timeout=30)


class TestKills:
    @pytest.mark.parametrize(
        ("number", "moment"), [(1, "middle"), (5, "middle"), (5, "before"), (5, "after")]
    )
    def test_while_a_state_is_written(self, number, moment, forks, whole, tmp_path):
        job = {"case": "plain", "folder": tmp_path}
        assert forks({**job, "write": [number, moment]}) == [-9]
        kept = files(tmp_path / "checkpoint")
        assert kept == ([] if number == 1 else ["training.safetensors"])
        assert forks(job) == [0]
        assert_same(load_pretrained(tmp_path / "model0"), whole("plain"))
        left = os.listdir(tmp_path / "checkpoint")
        assert not [name for name in left if name.endswith(".unfinished")]

    def test_at_random_moments(self, forks, whole, tmp_path):
        rng = random.Random(0)
        job = {"case": "mixup", "folder": tmp_path}
        for _ in range(4):
            assert forks({**job, "seconds": rng.uniform(0, 0.5)}) in ([-9], [0])
        assert forks(job) == [0]
        assert_same(load_pretrained(tmp_path / "model0"), whole("mixup"))

    def test_several_processes_that_train_as_one(self, forks, tmp_path):
        """The first writes, and all go on; the result is that of two that nobody killed."""
        folders = [tmp_path / name for name in ("killed", "whole")]
        jobs = [
            [{"case": "mixup", "folder": folder, "rank": rank} for rank in range(2)]
            for folder in folders
        ]
        meeting = {"processes": str(tmp_path / "meeting"), "step": 11}
        assert -9 in forks(*({**job, **meeting} for job in jobs[0]))
        for number, together in enumerate(jobs):
            meeting = {"processes": str(tmp_path / f"end{number}")}
            assert forks(*({**job, **meeting} for job in together)) == [0, 0]
        first, *others = (
            load_pretrained(folder / f"model{rank}") for folder in folders for rank in range(2)
        )
        for other in others:
            assert_same(first, other)

    def test_two_processes_at_one_training(self, forks, whole, tmp_path):
        jobs = [{"case": "plain", "folder": tmp_path, "rank": rank} for rank in range(2)]
        assert forks(*jobs) == [0, 0]
        for rank in range(2):
            assert_same(load_pretrained(tmp_path / f"model{rank}"), whole("plain"))
        assert files(tmp_path / "checkpoint") == ["trained.safetensors"]

    def test_of_a_text_tower(self, forks, tmp_path):
        pytest.importorskip("transformers")
        model, images, captions = _small_tower(tmp_path)
        job = {"case": "", "tower": [model, images, captions]}
        assert forks({**job, "folder": tmp_path / "a", "step": 10}) == [-9]
        assert forks({**job, "folder": tmp_path / "a", "write": [3, "before"]}) == [-9]
        assert forks({**job, "folder": tmp_path / "a"}) == [0]
        assert forks({**job, "folder": tmp_path / "b"}) == [0]
        one, other = (load_pretrained(tmp_path / name / "model0") for name in "ab")
        assert isinstance(one, LiTAligner)
        assert_same(one, other)
        # And from what is finished.
        shutil.rmtree(tmp_path / "a" / "model0")
        assert forks({**job, "folder": tmp_path / "a"}) == [0]
        assert_same(load_pretrained(tmp_path / "a" / "model0"), other)


def _small_tower(folder):
    lit = beside("test_lit")
    model = folder / "tower"
    lit.saved(model)
    rng = np.random.default_rng(0)
    np.save(folder / "images.npy", rng.standard_normal((120, 12)).astype(np.float32))
    captions = [f"a {lit.ADJECTIVES[i % 12]} {lit.NOUNS[i // 12]}" for i in range(120)]
    return str(model), str(folder / "images.npy"), captions


@pytest.mark.usefixtures("every_epoch")
class TestFolder:
    def test_a_search_goes_on_with_the_fit_that_was_killed(self, steps, tmp_path):
        def search(checkpoint):
            aligner = script.aligner(
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
        aligner = script.aligner("plain", checkpoint=tmp_path, random_state=None)
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
                aligner = script.aligner("plain", checkpoint=tmp_path, max_epochs=1)
                fingerprints.append(aligner.set_params(random_state=random).fit(X, Y).fingerprint_)
        assert fingerprints[:2] == fingerprints[2:]
        assert fingerprints[0] != fingerprints[1]
        assert files(tmp_path) == ["trained.safetensors"] * 2

    def test_an_interrupted_training_goes_on(self, whole, tmp_path):
        class Interrupt(Callback):
            def on_epoch_begin(self, net, **kwargs):
                if len(net.history) == 4:
                    raise KeyboardInterrupt

        aligner = script.aligner("plain", checkpoint=tmp_path)
        with pytest.warns(UserWarning, match="stopped after 3 of 8 epochs"):
            clone(aligner).set_params(callbacks=[Interrupt()]).fit(X, Y)
        assert files(tmp_path) == ["training.safetensors"]
        assert_same(clone(aligner).fit(X, Y), whole("plain"))

    def test_one_that_diverged_is_forgotten(self, tmp_path):
        aligner = script.aligner("plain", checkpoint=tmp_path, learning_rate=1e30, warmup=0)
        with pytest.raises(FloatingPointError):
            aligner.fit(X, Y)
        assert files(tmp_path) == []

    def test_settings_of_the_machine_are_of_no_account(self, steps, whole, tmp_path, capsys):
        aligner = script.aligner("plain", checkpoint=tmp_path)
        killed(aligner, steps, 30)
        again = clone(aligner).set_params(
            verbose=1, device="auto", callbacks=[Callback()], checkpoint=str(tmp_path)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same(again.fit(X, Y), whole("plain"))
        assert "8/8" in capsys.readouterr().err

    def test_it_is_not_saved_with_the_aligner(self, tmp_path):
        aligner = script.aligner("plain", checkpoint=tmp_path / "secret", max_epochs=1).fit(X, Y)
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
        aligner = script.aligner("plain", checkpoint=tmp_path)
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
                trained = script.aligner("plain", checkpoint=tmp_path).fit(X, Y)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        assert_same(trained, whole("plain"))
        assert_same(script.aligner("plain", checkpoint=tmp_path).fit(X, Y), trained)


@pytest.mark.usefixtures("every_epoch")
class TestRefusals:
    @pytest.fixture
    def unfinished(self, steps, tmp_path):
        """A killed training, and its file."""
        aligner = script.aligner("plain", checkpoint=tmp_path)
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
        with pytest.raises(ValueError, match=r"is of another training: depth=2 \(here 1\)"):
            other.fit(X, Y)

    def test_another_format(self, unfinished, monkeypatch):
        aligner, _ = unfinished
        monkeypatch.setattr(_training_file, "_FORMAT", 2)
        with pytest.raises(ValueError, match=r"is of format 1, and this .* format 2. Delete it"):
            clone(aligner).fit(X, Y)

    def test_other_versions_are_told(self, unfinished, whole, monkeypatch):
        aligner, _ = unfinished
        monkeypatch.setattr(_training_file, "_versions", lambda: {"torch": "99"})
        with pytest.warns(UserWarning, match="may differ in the last digits"):
            assert_same(clone(aligner).fit(X, Y), whole("plain"))

    def test_a_folder_of_other_things(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(FileExistsError, match=r"holds thesis\.txt and no training"):
            script.aligner("plain", checkpoint=tmp_path).fit(X, Y)
        assert os.listdir(tmp_path) == ["thesis.txt"]

    @pytest.mark.parametrize("place", ["file", "file/below"])
    def test_a_place_that_cannot_be_written_to(self, place, steps, tmp_path):
        (tmp_path / "file").write_text("mine")
        counted = steps(None)
        with pytest.raises(OSError, match="pass a"):
            script.aligner("plain", checkpoint=tmp_path / place).fit(X, Y)
        assert counted.n_done == 0

    def test_no_path(self):
        for checkpoint in (3, "", True):
            with pytest.raises(TypeError, match="checkpoint must be None or the path"):
                script.aligner("plain", checkpoint=checkpoint).fit(X, Y)


def _with_seed(aligner, seed):
    """Fit as if ``random_state=None`` had drawn a seed."""

    class Drawn(np.random.RandomState):
        def randint(self, *args, **kwargs):
            return seed

    return clone(aligner).set_params(checkpoint=None, random_state=Drawn()).fit(X, Y)
