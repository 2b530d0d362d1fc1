"""Fits aligners that are killed; `test_checkpoint_kills.py` says when.

As a script it forks a process for each line of JSON on its standard input, so that packages are
imported once, and answers how that process ended.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

COMMON = {"width": 32, "max_epochs": 8, "batch_size": 64, "random_state": 0, "device": "cpu"}
CASES = {
    "plain": {"init": None},
    "auto": {},
    "patience": {"init": None, "n_iter_no_change": 1, "learning_rate": 0.05, "max_epochs": 40},
    "mixup": {"init": None, "mixup": 0.5, "dropout": 0.5, "side": "both", "refit": False},
    "residual": {
        "init": "linear",
        "early_stopping": False,
        "loss_params": {"structure_weight": 0.1},
    },
    "norms": {
        "init": None,
        "head": "batchnorm_mlp",
        "optimizer": "adam",
        "optimizer_params": {"clip_norm": 0.5},
        "loss_params": {"learn_logit_scale": False},
        "early_stopping": False,
    },
    "sigmoid": {
        "init": None,
        "loss": "sigmoid",
        "loss_params": {"tile_size": 16},
        "optimizer_params": {"warmup": 7},
    },
}


def pairs():
    """Return 300 pairs, some of them with several captions, whose relation is no straight line."""
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((300, 6))
    image = (concepts @ rng.standard_normal((6, 24))).astype(np.float32)
    text = np.sin(concepts @ rng.standard_normal((6, 16)) * 2).astype(np.float32)
    image[250:] = image[:50]
    return image, text


def aligner(case, **parameters):
    from sklearn_ape import APEAligner

    return APEAligner(**{**COMMON, **CASES[case], **parameters})


def every_epoch_is_written():
    from sklearn_ape.aligners import _checkpoint

    _checkpoint._PAUSE_OF_WRITING = 0


def at_step(number, do):
    """Do something after so many steps of training, of all nets together."""
    from sklearn_ape.training import AlignmentNet

    train_step, n_done = AlignmentNet.train_step, [0]

    def counted(net, batch, **kwargs):
        step = train_step(net, batch, **kwargs)
        n_done[0] += 1
        if n_done[0] == number:
            do()
        return step

    AlignmentNet.train_step = counted


def at_write(number, moment):
    """Be killed in the middle of a write, before its replacement or after it."""
    import safetensors.numpy

    save_file, replace, n_done = safetensors.numpy.save_file, os.replace, [0]

    def save_some(tensors, path, **kwargs):
        n_done[0] += 1
        save_file(tensors, path, **kwargs)
        if n_done[0] == number and moment == "middle":
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    def replace_some(source, target):
        if n_done[0] == number and moment == "before":
            die()
        replace(source, target)
        if n_done[0] == number and moment == "after":
            die()

    safetensors.numpy.save_file = save_some
    os.replace = replace_some


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def train(case, folder, step=None, write=None, processes=None, rank=0, tower=None, seconds=None):
    """Fit and save in ``folder``, unless it dies before."""
    import torch

    torch.set_num_threads(1)
    folder = Path(folder)
    if seconds is None:
        every_epoch_is_written()
    if step is not None:
        at_step(step, die)
    if write is not None:
        at_write(*write)
    if processes is not None:
        from torch import distributed

        distributed.init_process_group(
            "gloo", init_method=f"file://{processes}", rank=rank, world_size=2
        )
    if tower is not None:
        from sklearn_ape import LiTAligner

        encoder, images, captions = tower
        found = LiTAligner(
            text_encoder=encoder,
            **{"max_epochs": 4, "batch_size": 32, "random_state": 0, "device": "cpu"},
        )
        found.checkpoint = folder / "checkpoint"
        found.fit(np.load(images), captions)
    else:
        found = aligner(case, checkpoint=folder / "checkpoint").fit(*pairs())
    found.save_pretrained(folder / f"model{rank}")


def serve():
    from sklearn_ape import APEAligner, LiTAligner

    assert APEAligner
    assert LiTAligner
    print("ready", flush=True)
    for line in sys.stdin:
        jobs = json.loads(line)
        children = []
        for job in jobs:
            child = os.fork()
            if child == 0:
                try:
                    if job.get("tower"):
                        from sklearn_ape.encoders import TransformersTextEncoder

                        model, *rest = job["tower"]
                        job["tower"] = [TransformersTextEncoder(model, cache=None), *rest]
                    train(**job)
                    os._exit(0)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    os._exit(1)
            children.append((child, job.get("seconds")))
        for child, seconds in children:
            if seconds is not None:
                time.sleep(seconds)
                os.kill(child, signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    serve()
