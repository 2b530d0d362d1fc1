"""Commands that are killed, in a child that has everything imported or as a user starts them."""

import csv
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np

from sklearn_ape import load_pretrained
from sklearn_ape.cli import app
from sklearn_ape.features.feature_file import FeatureFile
from tests.robustness.child_processes import expect, run_in_child
from tests.robustness.faults import hooks
from tests.robustness.faults.kill_injection import Kind, silent

_CHUNK = 16


def command(arguments, log):
    """Run a command in this process, which is a child; return its exit code."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.modules["sklearn_ape.cli.encode"]._CHUNK = _CHUNK
    try:
        app([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code or 0
    return 0


def check_ran(code, log):
    expect(code == 0, f"exit code {code}: {log.read_text()[-500:]}", "crash")


class Command(Kind):
    """A command, in a child of this process or in a process as a user starts it."""

    def __init__(self, world, in_own_process=False):
        self.world = world
        self.in_own_process = in_own_process
        self.name = f"sklearn-ape {self.arguments(world.folder)[0]}"
        if in_own_process:
            self.name += ", a process of its own"

    def arguments(self, place):
        raise NotImplementedError

    def hook(self, say):
        """Make it say its stages."""

    def work(self, place, say):
        log = place / "log"
        if not self.in_own_process:
            self.hook(say)
            check_ran(command(self.arguments(place), log), log)
            return
        line = [sys.executable, "-m", "sklearn_ape", *map(str, self.arguments(place))]
        if say is silent:
            with open(log, "ab") as file:
                code = subprocess.run(line, stdout=file, stderr=file, check=False).returncode
            check_ran(code, log)
            return
        # In the place of this child, so that it is the command itself that is killed.
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        say("stage", "a process")
        os.execv(line[0], line)


class EncodeCommand(Command):
    """`sklearn-ape encode`."""

    @property
    def _chunk(self):
        return 512 if self.in_own_process else _CHUNK

    def arguments(self, place):
        options = ("--encoder", self.world.network, "--device", "cpu", "--n-jobs", "1", "--quiet")
        return ["encode", self.world.images, "-o", place / "f.npy", *options]

    def hook(self, say):
        hooks.tell_of_file(say)
        listing = hooks.stage(say, "listing")
        hooks.around(sys.modules["sklearn_ape.cli.encode"], "Table", listing)

    def check_killed(self, place, said):
        if (place / "f.npy").exists():
            self.world.check_rows(np.load(place / "f.npy"), what="the file there")
        if (place / "f.csv").exists():
            self._check_list(place)
        finished = {number for number, _ in said.values("chunk")}
        kept = self._finished(place)
        expect(finished <= kept, f"chunks {finished - kept}", "lost")
        return -(-len(self.world.paths) // self._chunk) - len(kept)

    def _finished(self, place):
        source = self.world.encoder(None)._identity_digest().hex()
        path, n_rows = place / "f.npy", len(self.world.paths)
        if not path.exists() and not path.with_name("f.npy.partial").exists():
            return set()
        with FeatureFile(path, source, n_rows, self._chunk, "float32") as file:
            file.resume()
            return set(file.finished)

    def check_again(self, place, n_missing):
        written = []
        hooks.around(FeatureFile, "write", lambda file, number, *_: written.append(number))
        self.work(place, silent)
        if not self.in_own_process:
            n_written = len(written)
            expect(n_written == n_missing, f"{n_written} encoded, {n_missing} missing", "lost")
        self.world.check_rows(np.load(place / "f.npy"))
        self._check_list(place)
        left = {path.name for path in place.iterdir()}
        left -= {"f.npy", "f.npy.journal", "f.csv", "log"}
        expect(not left, f"left behind: {left}")

    def _check_list(self, place):
        with open(place / "f.csv", newline="") as file:
            listed = [row["path"] for row in csv.DictReader(file)]
        expect(listed == self.world.paths, "rows of other images in the list")


class FitCommand(Command):
    """`sklearn-ape fit --output` over an older model."""

    def __init__(self, world, in_own_process=False):
        super().__init__(world, in_own_process)
        self._models = world.folder / "models"
        if not self._models.exists():
            world.embeddings = run_in_child(self._prepared)

    def arguments(self, place, method="kernel"):
        options = ("--captions", "filename", "--method", method, "--test-size", "0")
        encoders = ("--image-encoder", self.world.network, "--cache", place / "cache")
        machine = ("--device", "cpu", "--n-jobs", "1", "--quiet")
        fit = ("fit", self.world.images, "-o", place / "model")
        return [*fit, *options, *encoders, *machine]

    def _prepared(self):
        """Fit the older model, then the new one, and return what they answer."""
        answers = []
        for method in ("asif", "kernel"):
            place = self._models / method
            place.mkdir(parents=True)
            check_ran(command(self.arguments(place, method), place / "log"), place / "log")
            answers.append(self._embeddings(place))
        return answers

    def begin(self, place):
        shutil.copytree(self._models / "asif" / "model", place / "model")

    def hook(self, say):
        hooks.tell_of_cache(say, self.world.numbers)
        hooks.tell_of_saving(say)

    def _embeddings(self, place):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_pretrained(place / "model").transform(self.world.paths[::20])

    def check_killed(self, place, said):
        found = self._embeddings(place)
        expect(any(_same(found, a) for a in self.world.embeddings), "neither old nor new")

    def check_again(self, place, state):
        self.work(place, silent)
        expect(_same(self._embeddings(place), self.world.embeddings[1]), "another model")
        left = {path.name for path in place.rglob("*") if path.parent.name != "cache"}
        left -= {"model", "config.json", "model.safetensors", "README.md", "cache", "log"}
        expect(not left, f"left behind: {sorted(left)}")


def _same(ours, theirs):
    return ours.shape == theirs.shape and np.allclose(ours, theirs, atol=2e-3)
