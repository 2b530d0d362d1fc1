"""Group of faults: disks that are full from some byte on, and are then enlarged."""

import errno
import re
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager

import numpy as np

from sklearn_ape import load_pretrained
from sklearn_ape.cli import _output
from sklearn_ape.features.feature_file import FeatureFile
from tests.robustness.child_processes import expect, judge_in_child, run_in_child
from tests.robustness.faults import hooks
from tests.robustness.faults.commands import EncodeCommand, FitCommand, command
from tests.robustness.faults.world import BATCH

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def can_mount(folder):
    with disk(folder / "trial", 64) as mounted:
        return mounted is not None


@contextmanager
def disk(folder, kibibytes):
    """Mount a file system in memory; yield None if that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    if not mount or _mount("-t", "tmpfs", "-o", f"size={kibibytes}k,mode=777", "tmpfs", folder):
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def grow(folder, kibibytes=65536):
    assert _mount("-o", f"remount,size={kibibytes}k", folder) == 0


def lock(folder):
    assert _mount("-o", "remount,ro", folder) == 0


def _mount(*arguments):
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode


def call_with_size_limit(kibibytes, work):
    """Call `work` with a limit on file sizes, which replaces full disks if mounting fails."""
    import resource

    sys.dont_write_bytecode = True  # Python would cut compiled modules off at the limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kibibytes, 1024 * kibibytes))
    return work()


_SIZES = 2  # disk sizes per workload in the tests


def _kibibytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir()) // 1024


class Cache:
    """Features are returned, and no file counts as damaged."""

    name = "transform with a cache"
    sizes = (4, 200)

    def __init__(self, inputs):
        self.inputs = inputs

    def begin(self, place):
        pass

    def run_on_full_disk(self, place):
        encoder = self.inputs.encoder(place / "cache")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.inputs.check_rows(encoder.transform(self.inputs.paths))
        messages = {str(warning.message) for warning in caught}
        expect(all("The feature cache" in text for text in messages), f"{messages}")
        if not messages:
            return "right"
        expect(len(messages) == 1, f"several warnings: {messages}")
        return "error"

    def run_after_enlarging(self, place):
        encoder = self.inputs.encoder(place / "cache")
        self.inputs.check_rows(encoder.transform(self.inputs.paths))
        before = encoder.cache_info().misses
        self.inputs.check_rows(encoder.transform(self.inputs.paths))
        expect(encoder.cache_info().misses == before, "not kept", "lost")
        expect(not list(place.rglob("*.damaged*")), "an undamaged file was renamed")


class ToFile:
    """The error names the file and the finished chunks; the next run resumes."""

    name = "encode_to"
    sizes = (0, 32)

    def __init__(self, inputs):
        self.inputs = inputs
        self.n_chunks = -(-len(inputs.paths) // BATCH)

    def begin(self, place):
        pass

    def _encode(self, place):
        encoder = self.inputs.encoder(None)
        return encoder.encode_to(place / "f.npy", self.inputs.paths, chunk_size=BATCH)

    def run_on_full_disk(self, place):
        try:
            self.inputs.check_rows(self._encode(place))
        except OSError as error:
            expect(error.errno in FULL, f"{error!r}")
            expect(str(place / "f.npy") in str(error), f"names no file: {error}")
            kept = re.search(r"(\d+) of \d+ chunks are finished", str(error))
            expect(kept is not None, f"does not say what is kept: {error}")
            return "error", int(kept[1])
        return "right", self.n_chunks

    def run_after_enlarging(self, place, n_kept):
        written = []
        hooks.wrap_method(FeatureFile, "write", lambda file, number, *_: written.append(number))
        self.inputs.check_rows(self._encode(place))
        n_written = len(written)
        expect(n_written == self.n_chunks - n_kept, f"{n_written} written, {n_kept} kept", "lost")


class Save:
    """The error names the folder, which contains only the complete older model."""

    name = "save_pretrained over an older model"

    def __init__(self, inputs):
        self.inputs = inputs
        self.old, self.new = inputs.aligners()[:2]
        self.old.save_pretrained(inputs.folder / "older")
        size = _kibibytes(inputs.folder / "older")
        self.sizes = (size + 12, 2 * size + 40)

    def begin(self, place):
        self.old.save_pretrained(place / "model")

    def run_on_full_disk(self, place):
        before = sorted(place.rglob("*"))
        try:
            self.new.save_pretrained(place / "model")
        except OSError as error:
            expect(error.errno in FULL, f"{error!r}")
            expect(str(place / "model") in str(error), f"names no folder: {error}")
            expect(sorted(place.rglob("*")) == before, "something is left behind")
            model = load_pretrained(place / "model")
            expect(model.fingerprint_ == self.old.fingerprint_, "not the older model")
            return "error"
        return "right"

    def run_after_enlarging(self, place):
        self.new.save_pretrained(place / "model")
        model = load_pretrained(place / "model")
        expect(model.fingerprint_ == self.new.fingerprint_, "not the new model")


class FirstSave(Save):
    """The error names the folder, and no files are left behind."""

    name = "save_pretrained, the first"

    def __init__(self, inputs):
        super().__init__(inputs)
        self.sizes = (0, self.sizes[0])

    def begin(self, place):
        pass

    def run_on_full_disk(self, place):
        try:
            self.new.save_pretrained(place / "model")
        except OSError as error:
            expect(error.errno in FULL, f"{error!r}")
            expect(str(place / "model") in str(error), f"names no folder: {error}")
            expect(not list(place.iterdir()), "something is left behind")
            return "error"
        return "right"


class CommandCase:
    """The command prints one line that names the output and exits with 1; the next run resumes."""

    def __init__(self, work, sizes):
        self.work = work
        self.name = work.name
        self.sizes = sizes

    def begin(self, place):
        self.work.begin(place)

    def run_on_full_disk(self, place):
        # The check of free space is disabled, as if another program filled the disk later.
        _output._MIN_FREE_BYTES = 0
        _output.shutil.disk_usage = lambda folder: type("Usage", (), {"free": 2**40})
        log = place.with_suffix(".log")
        code = command(self.work.arguments(place), log)
        output = log.read_text()
        expect("Traceback" not in output, output[-600:], "crash")
        if code == 0:
            return "right"
        expect(code == 1, f"exit code {code}: {output}")
        expect(str(place) in output and output.count("sklearn-ape: ") <= 2, output)
        return "error"

    def run_after_enlarging(self, place):
        self.work.check_again(place, None)


class Encode(EncodeCommand):
    """`EncodeCommand` whose check counts the missing chunks itself."""

    def check_again(self, place, state):
        super().check_again(place, len(_missing(self, place)))


def _missing(work, place):
    return set(range(-(-len(work.inputs.paths) // work._chunk))) - work._finished(place)


def outcomes(folder, amount, inputs):
    kinds = [
        Cache(inputs),
        ToFile(inputs),
        Save(inputs),
        FirstSave(inputs),
        CommandCase(Encode(inputs), (0, 32)),
    ]
    fit = FitCommand(inputs)
    size = _kibibytes(inputs.folder / "models" / "asif" / "model")
    kinds.append(CommandCase(fit, (size + 12, 2 * size + 200)))
    mounts = can_mount(folder)
    for kind in kinds:
        sizes = np.linspace(*kind.sizes, round(amount * _SIZES), dtype=int)
        for n, size in enumerate(sizes.tolist()):
            name = f"{kind.name}, full at {size} KiB"
            place = folder / f"{type(kind).__name__} {kind.name} {n}"
            yield judge_in_child(name, lambda k=kind, p=place, s=size: _run_case(k, p, s, mounts))


def _run_case(kind, place, size, mounts):
    if not mounts:
        place.mkdir()
        kind.begin(place)
        result = run_in_child(
            lambda: call_with_size_limit(max(1, size), lambda: kind.run_on_full_disk(place))
        )
    else:
        # The size includes the files that exist before.
        with disk(place, max(4, size)) as mounted:
            expect(mounted is not None, "no disk", "crash")
            kind.begin(place)
            result = run_in_child(lambda: kind.run_on_full_disk(place))
            grow(place)
            return _run_again(kind, place, result)
    return _run_again(kind, place, result)


def _run_again(kind, place, result):
    outcome, *state = result if isinstance(result, tuple) else (result,)
    run_in_child(lambda: kind.run_after_enlarging(place, *state))
    return outcome
