"""Full disks: at the first byte or at any later one; then room is made."""

import errno
import re
import shutil
import subprocess
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
    with disk(folder / "tried", 64) as made:
        return made is not None


@contextmanager
def disk(folder, kibibytes):
    """Mount a file system in memory; yields None where that is not allowed."""
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


def limited(kibibytes, work):
    """Call in a process whose files cannot grow beyond so much: a full disk's poor relation."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kibibytes, 1024 * kibibytes))
    return work()


_SIZES = 2  # of disks, of each kind of work, in the suite


def _kibibytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir()) // 1024


class Cache:
    """Features are returned all the same, and no file is taken for damaged."""

    name = "transform with a cache"
    sizes = (4, 200)

    def __init__(self, world):
        self.world = world

    def begin(self, place):
        pass

    def full(self, place):
        encoder = self.world.encoder(place / "cache")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.world.check_rows(encoder.transform(self.world.paths))
        told = {str(warning.message) for warning in caught}
        expect(all("The feature cache" in text for text in told), f"{told}")
        if not told:
            return "right"
        expect(len(told) == 1, f"told more than once: {told}")
        return "error"

    def roomy(self, place):
        encoder = self.world.encoder(place / "cache")
        self.world.check_rows(encoder.transform(self.world.paths))
        before = encoder.cache_info().misses
        self.world.check_rows(encoder.transform(self.world.paths))
        expect(encoder.cache_info().misses == before, "not kept", "lost")
        expect(not list(place.rglob("*.damaged*")), "a sound file was moved aside")


class ToFile:
    """An error that names the file and says what is kept; the next run goes on from there."""

    name = "encode_to"
    sizes = (0, 32)

    def __init__(self, world):
        self.world = world
        self.n_chunks = -(-len(world.paths) // BATCH)

    def begin(self, place):
        pass

    def _encode(self, place):
        encoder = self.world.encoder(None)
        return encoder.encode_to(place / "f.npy", self.world.paths, chunk_size=BATCH)

    def full(self, place):
        try:
            self.world.check_rows(self._encode(place))
        except OSError as error:
            expect(error.errno in FULL, f"{error!r}")
            expect(str(place / "f.npy") in str(error), f"names no file: {error}")
            kept = re.search(r"(\d+) of \d+ chunks are kept", str(error))
            expect(kept is not None, f"does not say what is kept: {error}")
            return "error", int(kept[1])
        return "right", self.n_chunks

    def roomy(self, place, n_kept):
        written = []
        hooks.around(FeatureFile, "write", lambda file, number, *_: written.append(number))
        self.world.check_rows(self._encode(place))
        n_written = len(written)
        expect(n_written == self.n_chunks - n_kept, f"{n_written} written, {n_kept} kept", "lost")


class Save:
    """An error that names the folder; the older model is whole and nothing else is there."""

    name = "save_pretrained over an older model"

    def __init__(self, world):
        self.world = world
        self.old, self.new = world.aligners()[:2]
        self.old.save_pretrained(world.folder / "older")
        size = _kibibytes(world.folder / "older")
        self.sizes = (size + 12, 2 * size + 40)

    def begin(self, place):
        self.old.save_pretrained(place / "model")

    def full(self, place):
        before = sorted(place.rglob("*"))
        try:
            self.new.save_pretrained(place / "model")
        except OSError as error:
            expect(error.errno in FULL, f"{error!r}")
            expect(str(place / "model") in str(error), f"names no folder: {error}")
            expect(sorted(place.rglob("*")) == before, "something is left behind")
            found = load_pretrained(place / "model")
            expect(found.fingerprint_ == self.old.fingerprint_, "not the older model")
            return "error"
        return "right"

    def roomy(self, place):
        self.new.save_pretrained(place / "model")
        found = load_pretrained(place / "model")
        expect(found.fingerprint_ == self.new.fingerprint_, "not the new model")


class FirstSave(Save):
    """The same where there was no model: none is left."""

    name = "save_pretrained, the first"

    def __init__(self, world):
        super().__init__(world)
        self.sizes = (0, self.sizes[0])

    def begin(self, place):
        pass

    def full(self, place):
        try:
            self.new.save_pretrained(place / "model")
        except OSError as error:
            expect(error.errno in FULL, f"{error!r}")
            expect(str(place / "model") in str(error), f"names no folder: {error}")
            expect(not list(place.iterdir()), "something is left behind")
            return "error"
        return "right"


class OfCommand:
    """One line that names the output, and exit code 1; the next run goes on."""

    def __init__(self, work, sizes):
        self.work = work
        self.name = work.name
        self.sizes = sizes

    def begin(self, place):
        self.work.begin(place)

    def full(self, place):
        # The command looks before it begins; here another program fills the disk meanwhile.
        _output._MIN_FREE_BYTES = 0
        _output.shutil.disk_usage = lambda folder: type("Usage", (), {"free": 2**40})
        log = place.with_suffix(".log")
        code = command(self.work.arguments(place), log)
        told = log.read_text()
        expect("Traceback" not in told, told[-600:], "crash")
        if code == 0:
            return "right"
        expect(code == 1, f"exit code {code}: {told}")
        expect(str(place) in told and told.count("sklearn-ape: ") <= 2, told)
        return "error"

    def roomy(self, place):
        self.work.check_again(place, None)


class Encode(EncodeCommand):
    """Counts nothing that was written before."""

    def check_again(self, place, state):
        super().check_again(place, len(_missing(self, place)))


def _missing(work, place):
    return set(range(-(-len(work.world.paths) // work._chunk))) - work._finished(place)


def outcomes(folder, amount, world):
    kinds = [
        Cache(world),
        ToFile(world),
        Save(world),
        FirstSave(world),
        OfCommand(Encode(world), (0, 32)),
    ]
    fit = FitCommand(world)
    size = _kibibytes(world.folder / "models" / "asif" / "model")
    kinds.append(OfCommand(fit, (size + 12, 2 * size + 200)))
    mounts = can_mount(folder)
    for kind in kinds:
        sizes = np.linspace(*kind.sizes, round(amount * _SIZES), dtype=int)
        for n, size in enumerate(sizes.tolist()):
            name = f"{kind.name}, full at {size} KiB"
            place = folder / f"{type(kind).__name__} {kind.name} {n}"
            yield judge_in_child(name, lambda k=kind, p=place, s=size: _tried(k, p, s, mounts))


def _tried(kind, place, size, mounts):
    if not mounts:
        place.mkdir()
        kind.begin(place)
        found = run_in_child(lambda: limited(max(1, size), lambda: kind.full(place)))
    else:
        # Room for what is there before is part of the size.
        with disk(place, max(4, size)) as made:
            expect(made is not None, "no disk", "crash")
            kind.begin(place)
            found = run_in_child(lambda: kind.full(place))
            grow(place)
            return _again(kind, place, found)
    return _again(kind, place, found)


def _again(kind, place, found):
    what, *rest = found if isinstance(found, tuple) else (found,)
    run_in_child(lambda: kind.roomy(place, *rest))
    return what
