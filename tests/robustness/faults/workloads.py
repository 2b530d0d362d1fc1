"""Workloads that are killed, except commands."""

import shutil
import warnings

import numpy as np

from sklearn_ape import APEAligner, load_pretrained
from sklearn_ape.aligners.checkpoint import TrainingFile
from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.features.feature_file import FeatureFile
from sklearn_ape.training import AlignmentNet
from tests.robustness.child_processes import expect, run_in_child
from tests.robustness.faults import hooks
from tests.robustness.faults.kill_injection import Workload, ignore_report
from tests.robustness.faults.world import BATCH

# A cache may lose the work of 0.25 s; the rest is a tolerance for busy machines.
_LOST_SECONDS = 0.25 + 0.1


def check_not_lost(puts, features):
    """Check that only entries that were put in during the last 0.25 s are missing."""
    lost = [at for numbers, at in puts if not features.issuperset(numbers)]
    if lost:
        span = puts[-1][1] - min(lost)
        expect(span <= _LOST_SECONDS, f"{len(lost)} batches, {span:.2f} s of work", "lost")


class Images(Workload):
    """`transform` of images with a cache on disk."""

    name = "transform with a cache"

    def __init__(self, inputs):
        self.inputs = inputs

    def work(self, place, report):
        hooks.report_cache_stages(report, self.inputs.numbers)
        self.inputs.encoder(place / "cache").transform(self.inputs.paths)

    def check_killed(self, place, log):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a kill must not damage the file
            with DiskFeatureCache(place / "cache") as cache:
                features = cache.get_many(self.inputs.numbers)
        rows = [self.inputs.numbers[key] for key in features]
        if rows:
            self.inputs.check_rows(np.array(list(features.values())), rows, "left in the cache")
        check_not_lost(log.values("put"), set(rows))
        return len(self.inputs.paths) - len(rows)

    def check_again(self, place, n_missing):
        encoder = self.inputs.encoder(place / "cache")
        before = encoder.cache_info().misses
        self.inputs.check_rows(encoder.transform(self.inputs.paths))
        n_encoded = encoder.cache_info().misses - before
        expect(n_encoded == n_missing, f"{n_encoded} encoded, {n_missing} missing", "lost")


class RawWrites(Workload):
    """Writes of entries and batches of all sizes to a cache."""

    n_batches = 100

    def __init__(self, dtype):
        self.dtype = dtype
        self.name = f"writes to a cache of {dtype}"

    def _batch(self, number):
        rng = np.random.default_rng(number)
        width = int(rng.integers(1, 1500))
        size = int(rng.integers(1, 20))
        return {
            (20 * number + n).to_bytes(32, "little"): rng.normal(size=width).astype(np.float32)
            for n in range(size)
        }

    def _is_correct(self, key, feature):
        expected = self._batch(int.from_bytes(key, "little") // 20)[key]
        return np.array_equal(feature, expected.astype(self.dtype).astype(np.float32))

    def work(self, place, report):
        hooks.report_cache_stages(report)
        with DiskFeatureCache(place / "cache", self.dtype) as cache:
            for number in range(self.n_batches):
                batch = self._batch(number)
                cached = cache.get_many(batch)
                expect(all(self._is_correct(*entry) for entry in cached.items()), "an entry")
                if len(cached) < len(batch):
                    cache.put_many(batch)

    def check_killed(self, place, log):
        numbers = range(20 * self.n_batches)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with DiskFeatureCache(place / "cache", self.dtype) as cache:
                features = cache.get_many(number.to_bytes(32, "little") for number in numbers)
        expect(all(self._is_correct(*entry) for entry in features.items()), "an entry is wrong")
        cached_numbers = {int.from_bytes(key, "little") for key in features}
        check_not_lost(log.values("put"), cached_numbers)
        for number in range(self.n_batches):  # batches are atomic
            batch = {int.from_bytes(key, "little") for key in self._batch(number)}
            expect(
                batch <= cached_numbers or not batch & cached_numbers, f"half of batch {number}"
            )

    def check_again(self, place, state):
        self.work(place, ignore_report)
        with DiskFeatureCache(place / "cache", self.dtype) as cache:
            for number in range(self.n_batches):
                batch = self._batch(number)
                features = cache.get_many(batch)
                expect(features.keys() == batch.keys(), f"batch {number} is missing", "lost")
                expect(
                    all(self._is_correct(*entry) for entry in features.items()),
                    "an entry is wrong",
                )


class EncodeTo(Workload):
    """`encode_to`, optionally over a file of other images."""

    def __init__(self, inputs, over_another):
        self.inputs = inputs
        self.over_another = over_another
        self.name = "encode_to over another file" if over_another else "encode_to"

    def begin(self, place):
        if self.over_another:
            self.inputs.encoder(None).encode_to(place / "f.npy", self.inputs.paths[:20])

    def _encode(self, place):
        return self.inputs.encoder(None).encode_to(
            place / "f.npy",
            self.inputs.paths,
            chunk_size=BATCH,
            overwrite=self.over_another,
        )

    def work(self, place, report):
        hooks.report_file_stages(report)
        self._encode(place)

    def check_killed(self, place, log):
        path = place / "f.npy"
        finished = {number for number, _ in log.values("chunk")}
        n_rows = len(self.inputs.paths)
        if path.exists():
            features = np.load(path)
            rows = slice(0, 20 if len(features) == 20 and self.over_another else n_rows)
            self.inputs.check_rows(features, rows, "the file there")
            if rows.stop == n_rows:
                return 0
        else:
            expect(not self.over_another, "the other file is gone", "lost")
        source = self.inputs.encoder(None)._digest_identity().hex()
        kept = set()
        if path.with_name("f.npy.partial").exists():
            with FeatureFile(path, source, n_rows, BATCH, "float32") as file:
                try:
                    file.resume()
                    kept = set(file.finished)
                except FileExistsError:  # not started: the file is still that of other images
                    expect(self.over_another, "not to be resumed", "lost")
        expect(finished <= kept, f"chunks {finished - kept}", "lost")
        return -(-n_rows // BATCH) - len(kept)

    def check_again(self, place, n_missing):
        written = []
        hooks.wrap_method(FeatureFile, "write", lambda file, number, *_: written.append(number))
        self.inputs.check_rows(self._encode(place))
        self.inputs.check_rows(np.load(place / "f.npy"))
        expect(len(written) == n_missing, f"{len(written)} encoded, {n_missing} missing", "lost")
        names = {path.name for path in place.iterdir()} - {"f.npy", "f.npy.journal"}
        expect(not names, f"left behind: {names}")


class Saves(Workload):
    """`save_pretrained` of fitted aligners, each over the previous one."""

    name = "save_pretrained over an older model"
    n_saves = 8

    def __init__(self, inputs):
        self.inputs = inputs
        self.aligners = inputs.aligners()

    def begin(self, place):
        self.aligners[-1].save_pretrained(place / "model")

    def _aligner(self, number):
        return self.aligners[number % len(self.aligners)]

    def work(self, place, report):
        hooks.report_saving_stages(report)
        for number in range(self.n_saves):
            report("stage", "starting")
            self._aligner(number).save_pretrained(place / "model")
            report("saved", number)

    def check_killed(self, place, log):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an older config warns
            model = load_pretrained(place / "model")
        saved = [number for number, _ in log.values("saved")]
        last = saved[-1] if saved else -1
        allowed = [self._aligner(number).fingerprint_ for number in (last, last + 1)]
        if not saved:  # the model may be that of an earlier, killed run
            allowed = [aligner.fingerprint_ for aligner in self.aligners]
        expect(model.fingerprint_ in allowed, "neither the model before nor the new one")

    def check_again(self, place, state):
        for aligner in self.aligners:
            aligner.save_pretrained(place / "model")
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model = load_pretrained(place / "model")
            expect(model.fingerprint_ == aligner.fingerprint_, "another model")
            ours, theirs = (a.transform(self.inputs.features[:9]) for a in (aligner, model))
            expect(np.array_equal(ours, theirs), "other embeddings")
        names = {path.name for path in place.rglob("*")}
        names -= {"model", "config.json", "model.safetensors", "README.md"}
        expect(not names, f"left behind: {sorted(names)}")


class FirstSave(Saves):
    """`save_pretrained` to a new folder."""

    name = "save_pretrained, the first"
    n_saves = 1

    def begin(self, place):
        shutil.rmtree(place / "model", ignore_errors=True)

    def check_killed(self, place, log):
        if log.values("saved") or (place / "model").exists():
            model = load_pretrained(place / "model")
            expect(model.fingerprint_ == self._aligner(0).fingerprint_, "not what was saved")


class Training(Workload):
    """`fit` with `checkpoint`: weights are bitwise identical after any kill."""

    name = "fit with a checkpoint"

    def __init__(self, inputs):
        self.inputs = inputs
        self.n_steps, self.embeddings = run_in_child(lambda: self._fit_and_count(None))

    def _fit(self, checkpoint):
        aligner = APEAligner(
            init=None, depth=1, width=32, batch_size=16, max_epochs=30, device="cpu",
            random_state=0, checkpoint=checkpoint,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few pairs warn
            return aligner.fit(self.inputs.features, self.inputs.texts)

    def _fit_and_count(self, checkpoint):
        steps = []
        hooks.wrap_method(AlignmentNet, "train_step", lambda *_, **__: steps.append(1))
        aligner = self._fit(checkpoint)
        return len(steps), aligner.transform(self.inputs.features)

    def work(self, place, report):
        n_steps = 0

        def step(*_, **__):
            nonlocal n_steps
            n_steps += 1

        def kept(*_, **__):
            report("kept", n_steps)
            report("stage", "computing")

        hooks.wrap_method(AlignmentNet, "train_step", after=step)
        hooks.wrap_method(TrainingFile, "open", hooks.stage(report, "opening"))
        hooks.wrap_method(TrainingFile, "write", hooks.stage(report, "writing"), kept)
        hooks.wrap_method(TrainingFile, "close", hooks.stage(report, "closing"))
        self._fit(place / "training")

    def check_killed(self, place, log):
        return max((steps for steps, _ in log.values("kept")), default=0)

    def check_again(self, place, n_kept):
        n_steps, embeddings = self._fit_and_count(place / "training")
        most = self.n_steps - n_kept
        expect(n_steps <= most, f"{n_steps} steps where {most} were left", "lost")
        expect(np.array_equal(embeddings, self.embeddings), "another training")
        names = [path.name for path in place.rglob("*") if path.name.startswith(".")]
        expect(not [name for name in names if not name.endswith(".lock")], f"left behind: {names}")
