"""Fits aligners in every process that starts it; `test_distributed_training.py` says how."""

import datetime
import os
import signal
import sys
from pathlib import Path

import numpy as np

COMMON = {"width": 32, "dropout": 0.0, "max_epochs": 4, "batch_size": 64, "random_state": 0}
CASES = {
    "plain": {"init": None, "side": "both", "early_stopping": False},
    "start": {"init": "linear", "early_stopping": False},
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
    """Return 207 pairs: batches of 64 and less, which two processes share unevenly."""
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((207, 8))
    image, text = (
        (concepts @ rng.standard_normal((8, width))).astype(np.float32) for width in (24, 16)
    )
    if name == "shared":  # captions of several images, far from each other
        text[100:] = text[:107]
    return image, text


def fit(name, folder, **more):
    from sklearn_ape import APEAligner

    image, text = pairs(name)
    if name == "plain":  # features that all processes map
        image = np.load(folder / "image.npy", mmap_mode="r")
    return APEAligner(**COMMON, **CASES[name], **more).fit(image, text)


def weights(aligner):
    return np.concatenate([p.detach().numpy().ravel() for p in aligner.module_.parameters()])


def fit_all(folder):
    """Train by `accelerate launch`, and keep what each process got."""
    from accelerate import Accelerator

    from sklearn_ape.features import memmap as _stored

    _stored._MIN_STORED_BYTES = 0
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    found = {}
    for name in CASES:
        aligner = fit(name, folder, verbose=int(name == "plain"))
        found[name] = weights(aligner)
        found[f"{name} loss"] = [row["train_loss"] for row in aligner.history_ if row["epoch"]]
        found[f"{name} recall"] = [row.get("valid_recall", 0.0) for row in aligner.history_]
        found[f"{name} scale"] = aligner.logit_scale_
    np.savez(folder / f"{rank}.npz", **found)
    accelerator.end_training()  # else gloo's threads may end the process with an abort


def fail(folder):
    """One process has other images, is interrupted, and ends: without a launcher around it."""
    from torch import distributed

    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=int(os.environ["RANK"]),
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    rank = distributed.get_rank()
    _fit_text_tower()
    _fit_on_other_pairs(rank)
    _fit_until_interrupted(folder, rank)
    _fit_until_one_ends(folder, rank)


def _fit_text_tower():
    from sklearn_ape import LiTAligner

    try:
        LiTAligner().fit(None, None)  # refused before it looks at the data
    except RuntimeError as error:
        print(error, file=sys.stderr)


def _fit_on_other_pairs(rank):
    from sklearn_ape import APEAligner

    image, text = pairs("dense")
    try:
        APEAligner(**COMMON).fit(image + rank, text)
    except ValueError as error:
        print(error, file=sys.stderr)


def _fit_until_interrupted(folder, rank):
    """The second process is interrupted in its second epoch, as by Ctrl-C."""
    from skorch.callbacks import Callback

    class Interrupt(Callback):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 2:
                signal.raise_signal(signal.SIGINT)

    aligner = fit("dense", folder, callbacks=[Interrupt()] if rank else None)
    np.save(folder / f"interrupted{rank}.npy", weights(aligner))


def _fit_until_one_ends(folder, rank):
    """The second process ends in its second epoch, without a word."""
    from skorch.callbacks import Callback

    class End(Callback):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 2:
                os._exit(3)

    fit("dense", folder, callbacks=[End()] if rank else None)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
