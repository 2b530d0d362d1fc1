"""Script of `test_distributed_training.py` that fits aligners in several processes."""

import datetime
import os
import signal
import sys
from pathlib import Path

import numpy as np

COMMON = {"width": 32, "dropout": 0.0, "max_epochs": 4, "batch_size": 64, "random_state": 0}
CASES = {
    "plain": {"init": None, "side": "both", "early_stopping": False},
    "linear": {"init": "linear", "early_stopping": False},
    "blend": {"learning_rate": 0.01},
    "all pairs blend": {"early_stopping": False},
    "shared": {
        "init": None,
        "mixup": 0.5,
        "loss_params": {"tile_size": 16, "structure_weight": 0.1},
        "optimizer_params": {"clip_norm": 1.0},
        "n_components": 12,
    },
    "dense": {
        "init": None,
        "loss_params": {"tile_size": None},
        "head": "residual",
        "refit": False,
    },
    "sigmoid": {"init": None, "loss": "sigmoid", "side": "image"},
}


def pairs(name):
    """Return 207 pairs, whose batches of at most 64 do not divide evenly between two ranks."""
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((207, 8))
    image, text = (
        (concepts @ rng.standard_normal((8, width))).astype(np.float32) for width in (24, 16)
    )
    if name == "shared":  # captions of two images, which are in different batches
        text[100:] = text[:107]
    return image, text


def fit(name, folder, **parameters):
    from sklearn_ape import APEAligner

    image, text = pairs(name)
    if name == "plain":  # a memory map that all ranks share
        image = np.load(folder / "image.npy", mmap_mode="r")
    return APEAligner(**COMMON, **CASES[name], **parameters).fit(image, text)


def weights(aligner):
    return np.concatenate([t.numpy().ravel() for t in aligner.module_.state_dict().values()])


def fit_all(folder):
    """Fit all cases under `accelerate launch` and save the result of each rank.

    Then test failures from which both ranks continue: other images, an interruption.
    """
    from accelerate import Accelerator

    from sklearn_ape.features import matrix

    matrix._MIN_STORED_BYTES = 0
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    results = {}
    for name in CASES:
        aligner = fit(name, folder, verbose=int(name == "plain"))
        results[name] = weights(aligner)
        results[f"{name} loss"] = [row["train_loss"] for row in aligner.history_ if row["epoch"]]
        results[f"{name} recall"] = [row.get("valid_recall", 0.0) for row in aligner.history_]
        results[f"{name} scale"] = aligner.logit_scale_
    results["errors"] = [_fit_text_tower(), _fit_on_other_pairs(rank)]
    results["interrupted"] = _fit_until_interrupted(folder, rank)
    np.savez(folder / f"{rank}.npz", **results)
    accelerator.end_training()
    # While the interpreter exits, a thread of gloo may still release a tensor, which aborts the
    # process (https://github.com/pytorch/pytorch/pull/179291). So skip the end of the interpreter.
    os._exit(0)


def fail(folder):
    """Test the exit of one rank without a launcher, which would stop the other one."""
    from torch import distributed

    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=int(os.environ["RANK"]),
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    _fit_until_one_exits(folder, distributed.get_rank())


def _fit_text_tower():
    from sklearn_ape import LiTAligner

    try:
        LiTAligner().fit(None, None)  # raises before it reads the data
    except RuntimeError as error:
        return str(error)


def _fit_on_other_pairs(rank):
    from sklearn_ape import APEAligner

    image, text = pairs("dense")
    try:
        APEAligner(**COMMON).fit(image + rank, text)
    except ValueError as error:
        return str(error)


def _fit_until_interrupted(folder, rank):
    """Interrupt rank 1 in its second epoch, as Ctrl-C does."""
    from skorch.callbacks import Callback

    class Interrupt(Callback):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 2:
                signal.raise_signal(signal.SIGINT)

    return weights(fit("dense", folder, callbacks=[Interrupt()] if rank else None))


def _fit_until_one_exits(folder, rank):
    """Exit rank 1 in its second epoch without a message."""
    from skorch.callbacks import Callback

    class Exit(Callback):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 2:
                os._exit(3)

    fit("dense", folder, callbacks=[Exit()] if rank else None)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
