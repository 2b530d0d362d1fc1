"""Distributed training: agreement with one process, and failures of a rank."""

import os
import socket
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("distributed_training.py")
_spec = spec_from_file_location("distributed_training", SCRIPT)
script = module_from_spec(_spec)
_spec.loader.exec_module(script)
SINGLE_THREADED = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    np.save(folder / "image.npy", script.pairs("plain")[0])
    return folder


@pytest.fixture(scope="module")
def launched(folder):
    """Results of two ranks, and the standard error of their launcher."""
    pytest.importorskip("accelerate")
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    # Without MPI, --cpu would start a single process, so the script selects the CPU itself.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", str(port)]
    process = subprocess.run(
        [*command, str(SCRIPT), "fit_all", str(folder)],
        env=SINGLE_THREADED,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)], process.stderr


@pytest.mark.parametrize("name", script.CASES)
def test_two_ranks_equal_one_process_with_the_joint_batch(launched, folder, name):
    """Losses and weights are equal within rounding, and both ranks are bitwise identical."""
    (first, second), _ = launched
    for key in first:
        if key.startswith(name):
            np.testing.assert_array_equal(first[key], second[key])
    reference = script.fit(name, folder)
    losses = [row["train_loss"] for row in reference.history_ if row["epoch"]]
    np.testing.assert_allclose(first[f"{name} loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(first[name], script.weights(reference), atol=1e-4)
    assert first[f"{name} scale"] == pytest.approx(reference.logit_scale_, rel=1e-5)


def test_only_rank_0_shows_progress(launched):
    _, stderr = launched
    assert stderr.count("align:   0%") == 1


def test_exit_of_a_rank_ends_the_others_with_a_message(folder):
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), "fail", str(folder)],
            env={**SINGLE_THREADED, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, 3]
    assert "Rank 0 of 2 got no answer from the other ranks" in errors[0]


def test_ranks_with_different_pairs_raise(launched):
    for results in launched[0]:
        error = results["errors"][1]
        assert "Ranks 1 got different data or parameters than rank 0" in error


def test_interrupting_a_rank_stops_all_and_keeps_the_best_epoch(launched):
    (first, second), stderr = launched
    np.testing.assert_array_equal(first["interrupted"], second["interrupted"])
    assert "stopped after 1 of 4 epochs" in stderr


def test_lit_aligner_raises_in_distributed_training(launched):
    for results in launched[0]:
        error = results["errors"][0]
        assert "LiTAligner does not support distributed training" in error
        assert "set up for 2 ranks" in error
