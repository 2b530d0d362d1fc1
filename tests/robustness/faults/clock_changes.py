"""Group of faults: changes of the clock and arbitrary file times must not give stale features."""

import hashlib
import os
import random
import stat
import time
from pathlib import Path
from types import SimpleNamespace

from PIL import Image

from sklearn_ape.encoders import weights as _registry
from sklearn_ape.encoders.images import digest_image
from tests.robustness.child_processes import expect, judge_in_child
from tests.robustness.faults.kill_injection import ignore_report
from tests.robustness.faults.workloads import EncodeTo, Images, RawWrites, Saves

_RESOLUTIONS = (
    1e-9,
    4e-3,
    1.0,
    2.0,
)  # resolutions of file times, from nanoseconds to those of FAT
_STEPS = 150


class SimulatedClock:
    """Simulated clock, and file times that follow it."""

    def __init__(self, resolution, rng):
        self.resolution, self.rng = resolution, rng
        self.wall, self.steady = 1.7e9 + 1000 * rng.random(), 1000.0
        self.times = {}  # path -> (mtime, ctime)
        self._stat = os.stat
        time.time = lambda: self.wall
        time.monotonic = lambda: self.steady
        os.stat = self.stat

    def now(self):
        ticks = round(1e9 * self.resolution)
        return int(1e9 * self.wall) // ticks * ticks

    def stat(self, path, **options):
        status = self._stat(path, **options)
        file_times = self.times.get(os.fspath(path))
        if file_times is None or not stat.S_ISREG(status.st_mode):
            return status
        names = [name for name in dir(status) if name.startswith("st_")]
        values = {name: getattr(status, name) for name in names}
        for name, at in zip(("mtime", "ctime"), file_times, strict=True):
            values |= {f"st_{name}_ns": at, f"st_{name}": at / 1e9}
        return SimpleNamespace(**values)

    def write(self, path, content):
        Path(path).write_bytes(content)
        self.times[str(path)] = (self.now(), self.now())

    def touch(self, path):
        """Set the time of a file to the future, the past or its old value."""
        mtime = self.times[str(path)][0] + self.rng.choice((0, 10**12, -(10**12), 10**9))
        self.times[str(path)] = (mtime, self.now())

    def advance(self):
        seconds = self.rng.choice((0, 0.001, 0.5, 1.0, 2.0, 3.5, 10.0))
        self.wall += seconds
        self.steady += seconds

    def set(self):
        self.wall += self.rng.choice((-10.0, -3.5, -2.0, -1.0, 3600.0, 5.0))


def _stale_digests(folder, resolution, seed):
    """Read, change and touch files at random, while the clock advances and is set."""
    rng = random.Random(seed)
    clock = SimulatedClock(resolution, rng)
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(3)]
    content = {}

    def write(path):
        content[path] = rng.choice((b"aaaa", b"bbbb", b"cccc"))
        clock.write(path, content[path])

    def check(path):
        digest = hashlib.sha256(b"file" + content[path]).digest()
        expect(digest_image(path) == digest, f"a stale digest, resolution {resolution} s")
        folder_digest = hashlib.sha256()
        for member in paths:
            name = member.name.encode()
            folder_digest.update(name + b"\0" + hashlib.sha256(content[member]).digest())
        expect(
            _registry.digest_folder(folder) == folder_digest.hexdigest(),
            "a stale digest of a folder",
        )

    for path in paths:
        write(path)
    for _ in range(_STEPS):
        path = rng.choice(paths)
        action = rng.choice(("write", "touch", "check", "check", "advance", "advance", "set"))
        if action == "write":
            write(path)
        elif action == "touch":
            clock.touch(path)
        elif action == "advance":
            clock.advance()
        elif action == "set":
            clock.set()
            check(path)  # two changes that cancel out between checks cannot be detected
        else:
            check(path)
    return "right"


def _changed_images(inputs, folder, mtimes):
    """Replace an image in place by others of the same size, with the given file times."""
    folder.mkdir()
    images = [Image.open(path).convert("RGB").resize((64, 64)) for path in inputs.paths[:6]]
    path = folder / "image.bmp"
    expected = []
    for image in images:
        image.save(folder / "alone.bmp")
        expected.append(inputs.encoder(None).transform([(folder / "alone.bmp").read_bytes()])[0])
    encoder = inputs.encoder(folder / "cache")
    for number in (0, 1, 2, 3, 4, 5, 1, 0):
        with open(path, "r+b" if path.exists() else "wb") as file:
            images[number].save(file, format="bmp")
        os.utime(path, ns=(mtimes(number), mtimes(number)))
        feature = encoder.transform([path])[0]
        apart = abs(feature - expected[number]).max()
        expect(apart < inputs.tolerance, f"stale feature of image {number}")
    return "right"


_NOW = 1_700_000_000 * 10**9
_MTIMES = {
    "all equal": lambda number: _NOW,
    "in the future": lambda number: 4 * _NOW // 2 + number,
    "going back": lambda number: _NOW - number * 10**9,
    "before 1970": lambda number: -(10**18),
}


def _run_with_clock_going_back(kind, place):
    """Run a workload and its checks while each reading of the clock goes back by 7 s."""
    times = iter(range(2_000_000_000, 0, -7))
    time.time = lambda: float(next(times))
    place.mkdir()
    kind.begin(place)
    kind.work(place, ignore_report)
    state = kind.check_killed(place, SimpleNamespace(values=lambda word: []))
    kind.check_again(place, state)
    return "right"


def outcomes(folder, amount, inputs):
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
            lambda n=name, m=mtimes: _changed_images(inputs, folder / n, m),
        )
    kinds = [Images(inputs), RawWrites("float32"), EncodeTo(inputs, False), Saves(inputs)]
    for kind in kinds:
        place = folder / kind.name
        name = f"{kind.name}, the clock going back"
        yield judge_in_child(name, lambda k=kind, p=place: _run_with_clock_going_back(k, p))
