"""The kinds of work that are killed, except commands."""

import shutil
import warnings

import numpy as np

from sklearn_ape import APEAligner, load_pretrained
from sklearn_ape.aligners._checkpoint import TrainingFile
from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.features.feature_file import FeatureFile
from sklearn_ape.training import AlignmentNet
from tests.robustness.child_processes import expect, run_in_child
from tests.robustness.faults import hooks
from tests.robustness.faults.kill_injection import Kind, silent
from tests.robustness.faults.world import BATCH

# What may be lost of a cache is a quarter second's work; the rest is for a busy machine.
_LOST_SECONDS = 0.25 + 0.1


def check_not_lost(puts, found):
    """Of what was put in, nothing may be missing but at the end, from a quarter second at most."""
    lost = [at for numbers, at in puts if not found.issuperset(numbers)]
    if lost:
        span = puts[-1][1] - min(lost)
        expect(span <= _LOST_SECONDS, f"{len(lost)} batches, {span:.2f} s of work", "lost")


class Images(Kind):
    """`transform` of images with a cache on disk."""

    name = "transform with a cache"

    def __init__(self, world):
        self.world = world

    def work(self, place, say):
        hooks.tell_of_cache(say, self.world.numbers)
        self.world.encoder(place / "cache").transform(self.world.paths)

    def check_killed(self, place, said):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a kill damages nothing
            with DiskFeatureCache(place / "cache") as cache:
                found = cache.get_many(self.world.numbers)
        rows = [self.world.numbers[key] for key in found]
        if rows:
            self.world.check_rows(np.array(list(found.values())), rows, "left in the cache")
        check_not_lost(said.values("put"), set(rows))
        return len(self.world.paths) - len(rows)

    def check_again(self, place, n_missing):
        encoder = self.world.encoder(place / "cache")
        before = encoder.cache_info().misses
        self.world.check_rows(encoder.transform(self.world.paths))
        n_encoded = encoder.cache_info().misses - before
        expect(n_encoded == n_missing, f"{n_encoded} encoded, {n_missing} missing", "lost")


class RawWrites(Kind):
    """Entries of all sizes put into a cache, in batches of all sizes, of either dtype."""

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

    def _right(self, key, feature):
        truth = self._batch(int.from_bytes(key, "little") // 20)[key]
        return np.array_equal(feature, truth.astype(self.dtype).astype(np.float32))

    def work(self, place, say):
        hooks.tell_of_cache(say)
        with DiskFeatureCache(place / "cache", self.dtype) as cache:
            for number in range(self.n_batches):
                batch = self._batch(number)
                known = cache.get_many(batch)
                expect(all(self._right(*entry) for entry in known.items()), "an entry")
                if len(known) < len(batch):
                    cache.put_many(batch)

    def check_killed(self, place, said):
        numbers = range(20 * self.n_batches)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with DiskFeatureCache(place / "cache", self.dtype) as cache:
                found = cache.get_many(number.to_bytes(32, "little") for number in numbers)
        expect(all(self._right(*entry) for entry in found.items()), "an entry is wrong")
        known = {int.from_bytes(key, "little") for key in found}
        check_not_lost(said.values("put"), known)
        for number in range(self.n_batches):  # a batch is there as a whole, or not at all
            batch = {int.from_bytes(key, "little") for key in self._batch(number)}
            expect(batch <= known or not batch & known, f"half of batch {number}")

    def check_again(self, place, state):
        self.work(place, silent)
        with DiskFeatureCache(place / "cache", self.dtype) as cache:
            for number in range(self.n_batches):
                batch = self._batch(number)
                found = cache.get_many(batch)
                expect(found.keys() == batch.keys(), f"batch {number} is missing", "lost")
                expect(all(self._right(*entry) for entry in found.items()), "an entry is wrong")


class EncodeTo(Kind):
    """`encode_to`; what was made of other images is replaced in half of the runs."""

    def __init__(self, world, over_another):
        self.world = world
        self.over_another = over_another
        self.name = "encode_to over another file" if over_another else "encode_to"

    def begin(self, place):
        if self.over_another:
            self.world.encoder(None).encode_to(place / "f.npy", self.world.paths[:20])

    def _encode(self, place):
        return self.world.encoder(None).encode_to(
            place / "f.npy",
            self.world.paths,
            chunk_size=BATCH,
            overwrite=self.over_another,
        )

    def work(self, place, say):
        hooks.tell_of_file(say)
        self._encode(place)

    def check_killed(self, place, said):
        path = place / "f.npy"
        finished = {number for number, _ in said.values("chunk")}
        n_rows = len(self.world.paths)
        if path.exists():
            features = np.load(path)
            rows = slice(0, 20 if len(features) == 20 and self.over_another else n_rows)
            self.world.check_rows(features, rows, "the file there")
            if rows.stop == n_rows:
                return 0
        else:
            expect(not self.over_another, "the other file is gone", "lost")
        source = self.world.encoder(None)._identity_digest().hex()
        kept = set()
        if path.with_name("f.npy.partial").exists():
            with FeatureFile(path, source, n_rows, BATCH, "float32") as file:
                try:
                    file.resume()
                    kept = set(file.finished)
                except FileExistsError:  # nothing is begun: what is there is the other file
                    expect(self.over_another, "not to be resumed", "lost")
        expect(finished <= kept, f"chunks {finished - kept}", "lost")
        return -(-n_rows // BATCH) - len(kept)

    def check_again(self, place, n_missing):
        written = []
        hooks.around(FeatureFile, "write", lambda file, number, *_: written.append(number))
        self.world.check_rows(self._encode(place))
        self.world.check_rows(np.load(place / "f.npy"))
        expect(len(written) == n_missing, f"{len(written)} encoded, {n_missing} missing", "lost")
        left = {path.name for path in place.iterdir()} - {"f.npy", "f.npy.journal"}
        expect(not left, f"left behind: {left}")


class Saves(Kind):
    """`save_pretrained` of fitted aligners, each over the one before."""

    name = "save_pretrained over an older model"
    n_saves = 8

    def __init__(self, world):
        self.world = world
        self.aligners = world.aligners()

    def begin(self, place):
        self.aligners[-1].save_pretrained(place / "model")

    def _aligner(self, number):
        return self.aligners[number % len(self.aligners)]

    def work(self, place, say):
        hooks.tell_of_saving(say)
        for number in range(self.n_saves):
            say("stage", "starting")
            self._aligner(number).save_pretrained(place / "model")
            say("saved", number)

    def check_killed(self, place, said):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a config that is one save behind is told
            found = load_pretrained(place / "model")
        saved = [number for number, _ in said.values("saved")]
        last = saved[-1] if saved else -1
        wanted = [self._aligner(number).fingerprint_ for number in (last, last + 1)]
        if not saved:  # of an earlier run that was killed
            wanted = [aligner.fingerprint_ for aligner in self.aligners]
        expect(found.fingerprint_ in wanted, "neither the model before nor the new one")

    def check_again(self, place, state):
        for aligner in self.aligners:
            aligner.save_pretrained(place / "model")
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = load_pretrained(place / "model")
            expect(found.fingerprint_ == aligner.fingerprint_, "another model")
            ours, theirs = (a.transform(self.world.features[:9]) for a in (aligner, found))
            expect(np.array_equal(ours, theirs), "other embeddings")
        left = {path.name for path in place.rglob("*")}
        left -= {"model", "config.json", "model.safetensors", "README.md"}
        expect(not left, f"left behind: {sorted(left)}")


class FirstSave(Saves):
    """`save_pretrained` where there was nothing."""

    name = "save_pretrained, the first"
    n_saves = 1

    def begin(self, place):
        shutil.rmtree(place / "model", ignore_errors=True)

    def check_killed(self, place, said):
        if said.values("saved") or (place / "model").exists():
            found = load_pretrained(place / "model")
            expect(found.fingerprint_ == self._aligner(0).fingerprint_, "not what was saved")


class Training(Kind):
    """`fit` with `checkpoint`: the same weights to the bit, whenever it was killed."""

    name = "fit with a checkpoint"

    def __init__(self, world):
        self.world = world
        self.n_steps, self.embeddings = run_in_child(lambda: self._counted(None))

    def _fitted(self, checkpoint):
        aligner = APEAligner(
            init=None, depth=1, width=32, batch_size=16, max_epochs=30, device="cpu",
            random_state=0, checkpoint=checkpoint,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pairs are few
            return aligner.fit(self.world.features, self.world.texts)

    def _counted(self, checkpoint):
        steps = []
        hooks.around(AlignmentNet, "train_step", lambda *_, **__: steps.append(1))
        aligner = self._fitted(checkpoint)
        return len(steps), aligner.transform(self.world.features)

    def work(self, place, say):
        n_steps = 0

        def step(*_, **__):
            nonlocal n_steps
            n_steps += 1

        def kept(*_, **__):
            say("kept", n_steps)
            say("stage", "computing")

        hooks.around(AlignmentNet, "train_step", after=step)
        hooks.around(TrainingFile, "open", hooks.stage(say, "opening"))
        hooks.around(TrainingFile, "write", hooks.stage(say, "writing"), kept)
        hooks.around(TrainingFile, "close", hooks.stage(say, "closing"))
        self._fitted(place / "training")

    def check_killed(self, place, said):
        return max((steps for steps, _ in said.values("kept")), default=0)

    def check_again(self, place, n_kept):
        n_steps, embeddings = self._counted(place / "training")
        most = self.n_steps - n_kept
        expect(n_steps <= most, f"{n_steps} steps where {most} were left", "lost")
        expect(np.array_equal(embeddings, self.embeddings), "another training")
        left = [path.name for path in place.rglob("*") if path.name.startswith(".")]
        expect(not [name for name in left if not name.endswith(".lock")], f"left behind: {left}")
