"""Kills of training processes at chosen and random moments, and resumption."""

import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from sklearn_ape import LiTAligner, load_pretrained
from tests.aligners import test_lit
from tests.aligners.checkpoint_cases import (
    assert_same,
    files,
    one_thread,
    whole,
)

__all__ = ["one_thread", "whole"]  # fixtures


@pytest.fixture(scope="module")
def run_jobs():
    """Return a function that trains in forked processes and returns their exit codes."""
    if not hasattr(os, "fork"):
        pytest.skip("run_jobs processes")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.robustness.killed_training"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert server.stdout.readline() == "ready\n"

    def run(*jobs):
        server.stdin.write(json.dumps([{**job, "folder": str(job["folder"])} for job in jobs]))
        server.stdin.write("\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    yield run
    server.stdin.close()
    server.wait(timeout=30)


class TestKills:
    @pytest.mark.sampled(4)
    @pytest.mark.parametrize(
        ("number", "moment"), [(1, "middle"), (5, "middle"), (5, "before"), (5, "after")]
    )
    def test_kill_while_state_is_written_keeps_previous_state(
        self, number, moment, run_jobs, whole, tmp_path
    ):
        job = {"case": "plain", "folder": tmp_path}
        assert run_jobs({**job, "write": [number, moment]}) == [-9]
        states = files(tmp_path / "checkpoint")
        assert states == ([] if number == 1 else ["training.safetensors"])
        assert run_jobs(job) == [0]
        assert_same(load_pretrained(tmp_path / "model0"), whole("plain"))
        names = os.listdir(tmp_path / "checkpoint")
        assert not [name for name in names if name.endswith(".unfinished")]

    def test_training_killed_at_random_moments_resumes(self, run_jobs, whole, tmp_path):
        rng = random.Random(0)
        job = {"case": "mixup", "folder": tmp_path}
        for _ in range(4):
            assert run_jobs({**job, "seconds": rng.uniform(0, 0.5)}) in ([-9], [0])
        assert run_jobs(job) == [0]
        assert_same(load_pretrained(tmp_path / "model0"), whole("mixup"))

    def test_killed_distributed_training_resumes(self, run_jobs, tmp_path):
        """Rank 0 writes the state, all ranks resume, and the result equals that without a kill."""
        folders = [tmp_path / name for name in ("killed", "whole")]
        jobs = [
            [{"case": "mixup", "folder": folder, "rank": rank} for rank in range(2)]
            for folder in folders
        ]
        meeting = {"processes": str(tmp_path / "meeting"), "step": 11}
        assert -9 in run_jobs(*({**job, **meeting} for job in jobs[0]))
        for number, together in enumerate(jobs):
            meeting = {"processes": str(tmp_path / f"end{number}")}
            assert run_jobs(*({**job, **meeting} for job in together)) == [0, 0]
        first, *others = (
            load_pretrained(folder / f"model{rank}") for folder in folders for rank in range(2)
        )
        for other in others:
            assert_same(first, other)

    def test_two_processes_with_one_checkpoint_both_finish(self, run_jobs, whole, tmp_path):
        jobs = [{"case": "plain", "folder": tmp_path, "rank": rank} for rank in range(2)]
        assert run_jobs(*jobs) == [0, 0]
        for rank in range(2):
            assert_same(load_pretrained(tmp_path / f"model{rank}"), whole("plain"))
        assert files(tmp_path / "checkpoint") == ["trained.safetensors"]

    def test_killed_training_of_text_tower_resumes(self, run_jobs, tmp_path):
        pytest.importorskip("transformers")
        model, images, captions = _small_tower(tmp_path)
        job = {"case": "", "tower": [model, images, captions]}
        assert run_jobs({**job, "folder": tmp_path / "a", "step": 10}) == [-9]
        assert run_jobs({**job, "folder": tmp_path / "a", "write": [3, "before"]}) == [-9]
        assert run_jobs({**job, "folder": tmp_path / "a"}) == [0]
        assert run_jobs({**job, "folder": tmp_path / "b"}) == [0]
        one, other = (load_pretrained(tmp_path / name / "model0") for name in "ab")
        assert isinstance(one, LiTAligner)
        assert_same(one, other)
        # A finished training is loaded from its checkpoint.
        shutil.rmtree(tmp_path / "a" / "model0")
        assert run_jobs({**job, "folder": tmp_path / "a"}) == [0]
        assert_same(load_pretrained(tmp_path / "a" / "model0"), other)


def _small_tower(folder):
    model = folder / "tower"
    test_lit.save_encoder(model)
    rng = np.random.default_rng(0)
    np.save(folder / "images.npy", rng.standard_normal((120, 12)).astype(np.float32))
    captions = [f"a {test_lit.ADJECTIVES[i % 12]} {test_lit.NOUNS[i // 12]}" for i in range(120)]
    return str(model), str(folder / "images.npy"), captions
