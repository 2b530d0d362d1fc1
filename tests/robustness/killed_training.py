"""Training processes that are killed, for `test_checkpoint_kills.py`.

As a script, it reads lines of JSON from standard input, forks one process per job, so that
packages are imported only once, and prints the exit codes.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sklearn_ape import LiTAligner
from tests.aligners.checkpoint_cases import aligner, pairs
from tests.robustness.child_processes import fork


def write_every_epoch():
    from sklearn_ape.aligners import checkpoint

    checkpoint._PAUSE_OF_WRITING = 0


def at_step(number, action):
    """Call `action` after training step `number`, counted over all networks."""
    from sklearn_ape.training import AlignmentNet

    train_step, n_done = AlignmentNet.train_step, [0]

    def counted(net, batch, **kwargs):
        step = train_step(net, batch, **kwargs)
        n_done[0] += 1
        if n_done[0] == number:
            action()
        return step

    AlignmentNet.train_step = counted


def at_write(number, moment):
    """Kill this process in the middle of a write, or before or after the file is replaced."""
    import safetensors.numpy

    save_file, replace, n_done = safetensors.numpy.save_file, os.replace, [0]

    def save_and_kill(tensors, path, **kwargs):
        n_done[0] += 1
        save_file(tensors, path, **kwargs)
        if n_done[0] == number and moment == "middle":
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    def replace_and_kill(source, target):
        if n_done[0] == number and moment == "before":
            die()
        replace(source, target)
        if n_done[0] == number and moment == "after":
            die()

    safetensors.numpy.save_file = save_and_kill
    os.replace = replace_and_kill


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def train(case, folder, step=None, write=None, processes=None, rank=0, tower=None, seconds=None):
    """Fit and save in ``folder``, unless the process is killed before."""
    torch.set_num_threads(1)
    folder = Path(folder)
    if seconds is None:
        write_every_epoch()
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
        encoder, images, captions = tower
        model = LiTAligner(
            text_encoder=encoder,
            **{"max_epochs": 4, "batch_size": 32, "random_state": 0, "device": "cpu"},
        )
        model.checkpoint = folder / "checkpoint"
        model.fit(np.load(images), captions)
    else:
        model = aligner(case, checkpoint=folder / "checkpoint").fit(*pairs())
    model.save_pretrained(folder / f"model{rank}")


def _train(job):
    if job.get("tower"):
        from sklearn_ape.encoders import TransformersTextEncoder

        model, *rest = job["tower"]
        job["tower"] = [TransformersTextEncoder(model, cache=None), *rest]
    train(**job)


def serve():
    # The first optimizer imports modules for seconds, which each child would do again.
    torch.optim.SGD([torch.zeros(1)])
    print("ready", flush=True)
    for line in sys.stdin:
        jobs = json.loads(line)
        children = []
        for job in jobs:
            child = fork(partial(_train, job))
            children.append((child, job.get("seconds")))
        for child, seconds in children:
            if seconds is not None:
                time.sleep(seconds)
                os.kill(child, signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    serve()
