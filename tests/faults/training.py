"""Training with a checkpoint, killed."""

import warnings

import numpy as np
from faults import hooks
from faults.child import called, expect
from faults.kills import Kind

from sklearn_ape import APEAligner
from sklearn_ape.aligners._checkpoint import TrainingFile
from sklearn_ape.training import AlignmentNet


class Training(Kind):
    """`fit` with `checkpoint`: the same weights to the bit, whenever it was killed."""

    name = "fit with a checkpoint"

    def __init__(self, world):
        self.world = world
        self.n_steps, self.embeddings = called(lambda: self._counted(None))

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
