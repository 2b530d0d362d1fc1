"""Workloads that run commands, in a forked child or in a new process."""

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
from tests.robustness.faults.kill_injection import Workload, ignore_report

_CHUNK = 16


def command(arguments, log):
    """Run a command in this process, which must be a child, and return its exit code."""
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


class Command(Workload):
    """A command, in a forked child or in a new process as a user starts it."""

    def __init__(self, inputs, in_new_process=False):
        self.inputs = inputs
        self.in_new_process = in_new_process
        self.name = f"sklearn-ape {self.arguments(inputs.folder)[0]}"
        if in_new_process:
            self.name += ", in a new process"

    def arguments(self, place):
        raise NotImplementedError

    def hook(self, report):
        """Patch classes so that they report stages."""

    def work(self, place, report):
        log = place / "log"
        if not self.in_new_process:
            self.hook(report)
            check_ran(command(self.arguments(place), log), log)
            return
        line = [sys.executable, "-m", "sklearn_ape", *map(str, self.arguments(place))]
        if report is ignore_report:
            with open(log, "ab") as file:
                code = subprocess.run(line, stdout=file, stderr=file, check=False).returncode
            check_ran(code, log)
            return
        # exec replaces this child, so that the kill hits the command itself.
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        report("stage", "a process")
        os.execv(line[0], line)


class EncodeCommand(Command):
    """`sklearn-ape encode`."""

    @property
    def _chunk(self):
        return 512 if self.in_new_process else _CHUNK

    def arguments(self, place):
        options = ("--encoder", self.inputs.network, "--device", "cpu", "--n-jobs", "1", "--quiet")
        return ["encode", self.inputs.images, "-o", place / "f.npy", *options]

    def hook(self, report):
        hooks.report_file_stages(report)
        listing = hooks.stage(report, "listing")
        hooks.wrap_method(sys.modules["sklearn_ape.cli.encode"], "Table", listing)

    def check_killed(self, place, log):
        if (place / "f.npy").exists():
            self.inputs.check_rows(np.load(place / "f.npy"), what="the file there")
        if (place / "f.csv").exists():
            self._check_list(place)
        finished = {number for number, _ in log.values("chunk")}
        kept = self._finished(place)
        expect(finished <= kept, f"chunks {finished - kept}", "lost")
        return -(-len(self.inputs.paths) // self._chunk) - len(kept)

    def _finished(self, place):
        source = self.inputs.encoder(None)._digest_identity().hex()
        path, n_rows = place / "f.npy", len(self.inputs.paths)
        if not path.exists() and not path.with_name("f.npy.partial").exists():
            return set()
        with FeatureFile(path, source, n_rows, self._chunk, "float32") as file:
            file.resume()
            return set(file.finished)

    def check_again(self, place, n_missing):
        written = []
        hooks.wrap_method(FeatureFile, "write", lambda file, number, *_: written.append(number))
        self.work(place, ignore_report)
        if not self.in_new_process:
            n_written = len(written)
            expect(n_written == n_missing, f"{n_written} encoded, {n_missing} missing", "lost")
        self.inputs.check_rows(np.load(place / "f.npy"))
        self._check_list(place)
        names = {path.name for path in place.iterdir()}
        names -= {"f.npy", "f.npy.journal", "f.csv", "log"}
        expect(not names, f"left behind: {names}")

    def _check_list(self, place):
        with open(place / "f.csv", newline="") as file:
            listed = [row["path"] for row in csv.DictReader(file)]
        expect(listed == self.inputs.paths, "rows of other images in the list")


class FitCommand(Command):
    """`sklearn-ape fit --output` over an older model."""

    def __init__(self, inputs, in_new_process=False):
        super().__init__(inputs, in_new_process)
        self._models = inputs.folder / "models"
        if not self._models.exists():
            inputs.embeddings = run_in_child(self._fit_models)

    def arguments(self, place, method="kernel"):
        options = ("--captions", "filename", "--method", method, "--test-size", "0")
        encoders = ("--image-encoder", self.inputs.network, "--cache", place / "cache")
        machine = ("--device", "cpu", "--n-jobs", "1", "--quiet")
        fit = ("fit", self.inputs.images, "-o", place / "model")
        return [*fit, *options, *encoders, *machine]

    def _fit_models(self):
        """Fit the older and the new model, and return their embeddings."""
        embeddings = []
        for method in ("asif", "kernel"):
            place = self._models / method
            place.mkdir(parents=True)
            check_ran(command(self.arguments(place, method), place / "log"), place / "log")
            embeddings.append(self._embeddings(place))
        return embeddings

    def begin(self, place):
        shutil.copytree(self._models / "asif" / "model", place / "model")

    def hook(self, report):
        hooks.report_cache_stages(report, self.inputs.numbers)
        hooks.report_saving_stages(report)

    def _embeddings(self, place):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_pretrained(place / "model").transform(self.inputs.paths[::20])

    def check_killed(self, place, log):
        features = self._embeddings(place)
        expect(any(_same(features, a) for a in self.inputs.embeddings), "neither old nor new")

    def check_again(self, place, state):
        self.work(place, ignore_report)
        expect(_same(self._embeddings(place), self.inputs.embeddings[1]), "another model")
        names = {path.name for path in place.rglob("*") if path.parent.name != "cache"}
        names -= {"model", "config.json", "model.safetensors", "README.md", "cache", "log"}
        expect(not names, f"left behind: {sorted(names)}")


def _same(first, second):
    return first.shape == second.shape and np.allclose(first, second, atol=2e-3)
