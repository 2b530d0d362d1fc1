"""Group: the clock is set back or forth, and files say any time; no feature may be stale."""

import hashlib
import os
import random
import stat
import time
from pathlib import Path
from types import SimpleNamespace

from PIL import Image

from sklearn_ape.encoders import weights as _registry
from sklearn_ape.encoders.images import image_digest
from tests.robustness.child_processes import expect, judge_in_child
from tests.robustness.faults.kill_injection import silent
from tests.robustness.faults.workloads import EncodeTo, Images, RawWrites, Saves

_RESOLUTIONS = (1e-9, 4e-3, 1.0, 2.0)  # of clocks of file systems, down to FAT's
_STEPS = 150


class Machine:
    """A clock of one's own, and a file system whose times are those of this clock."""

    def __init__(self, resolution, rng):
        self.resolution, self.rng = resolution, rng
        self.wall, self.steady = 1.7e9 + 1000 * rng.random(), 1000.0
        self.times = {}  # by path: (mtime, ctime)
        self._stat = os.stat
        time.time = lambda: self.wall
        time.monotonic = lambda: self.steady
        os.stat = self.stat

    def now(self):
        ticks = round(1e9 * self.resolution)
        return int(1e9 * self.wall) // ticks * ticks

    def stat(self, path, **options):
        found = self._stat(path, **options)
        known = self.times.get(os.fspath(path))
        if known is None or not stat.S_ISREG(found.st_mode):
            return found
        names = [name for name in dir(found) if name.startswith("st_")]
        values = {name: getattr(found, name) for name in names}
        for name, at in zip(("mtime", "ctime"), known, strict=True):
            values |= {f"st_{name}_ns": at, f"st_{name}": at / 1e9}
        return SimpleNamespace(**values)

    def write(self, path, content):
        Path(path).write_bytes(content)
        self.times[str(path)] = (self.now(), self.now())

    def touch(self, path):
        """Set the time of a file to any other: ahead, long ago or what it was."""
        mtime = self.times[str(path)][0] + self.rng.choice((0, 10**12, -(10**12), 10**9))
        self.times[str(path)] = (mtime, self.now())

    def go_on(self):
        seconds = self.rng.choice((0, 0.001, 0.5, 1.0, 2.0, 3.5, 10.0))
        self.wall += seconds
        self.steady += seconds

    def set(self):
        self.wall += self.rng.choice((-10.0, -3.5, -2.0, -1.0, 3600.0, 5.0))


def _stale_digests(folder, resolution, seed):
    """Read, change and touch files at random, while the clock runs and is set."""
    rng = random.Random(seed)
    machine = Machine(resolution, rng)
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(3)]
    content = {}

    def write(path):
        content[path] = rng.choice((b"aaaa", b"bbbb", b"cccc"))
        machine.write(path, content[path])

    def check(path):
        right = hashlib.sha256(b"file" + content[path]).digest()
        expect(image_digest(path) == right, f"a stale digest, resolution {resolution} s")
        whole = hashlib.sha256()
        for each in paths:
            name = each.name.encode()
            whole.update(name + b"\0" + hashlib.sha256(content[each]).digest())
        expect(_registry.digest_folder(folder) == whole.hexdigest(), "a stale digest of a folder")

    for path in paths:
        write(path)
    for _ in range(_STEPS):
        path = rng.choice(paths)
        what = rng.choice(("write", "touch", "check", "check", "go on", "go on", "set"))
        if what == "write":
            write(path)
        elif what == "touch":
            machine.touch(path)
        elif what == "go on":
            machine.go_on()
        elif what == "set":
            machine.set()
            check(path)  # a clock set back and forth again, unseen, cannot be told
        else:
            check(path)
    return "right"


def _changed_images(world, folder, mtimes):
    """Images that are replaced in place, of the same size and with the times given."""
    folder.mkdir()
    images = [Image.open(path).convert("RGB").resize((64, 64)) for path in world.paths[:6]]
    path = folder / "image.bmp"
    truth = []
    for image in images:
        image.save(folder / "alone.bmp")
        truth.append(world.encoder(None).transform([(folder / "alone.bmp").read_bytes()])[0])
    encoder = world.encoder(folder / "cache")
    for number in (0, 1, 2, 3, 4, 5, 1, 0):
        with open(path, "r+b" if path.exists() else "wb") as file:
            images[number].save(file, format="bmp")
        os.utime(path, ns=(mtimes(number), mtimes(number)))
        found = encoder.transform([path])[0]
        apart = abs(found - truth[number]).max()
        expect(apart < world.tolerance, f"the feature of what was there before: {number}")
    return "right"


_NOW = 1_700_000_000 * 10**9
_MTIMES = {
    "all equal": lambda number: _NOW,
    "in the future": lambda number: 4 * _NOW // 2 + number,
    "going back": lambda number: _NOW - number * 10**9,
    "before 1970": lambda number: -(10**18),
}


def _with_a_clock_going_back(kind, place):
    """All of the work, and all checks, while the clock goes back by seconds at every look."""
    shown = iter(range(2_000_000_000, 0, -7))
    time.time = lambda: float(next(shown))
    place.mkdir()
    kind.begin(place)
    kind.work(place, silent)
    state = kind.check_killed(place, SimpleNamespace(values=lambda word: []))
    kind.check_again(place, state)
    return "right"


def outcomes(folder, amount, world):
    for resolution in _RESOLUTIONS:
        for seed in range(round(3 * amount)):
            place = folder / f"{resolution} {seed}"
            name = f"files and clock, steps of {resolution} s, {seed}"
            yield judge_in_child(
                name, lambda p=place, r=resolution, s=seed: _stale_digests(p, r, s)
            )
    for name, mtimes in _MTIMES.items():
        yield judge_in_child(
            f"changed images, times {name}",
            lambda n=name, m=mtimes: _changed_images(world, folder / n, m),
        )
    kinds = [Images(world), RawWrites("float32"), EncodeTo(world, False), Saves(world)]
    for kind in kinds:
        place = folder / kind.name
        name = f"{kind.name}, the clock going back"
        yield judge_in_child(name, lambda k=kind, p=place: _with_a_clock_going_back(k, p))
