"""Group of faults: kills of all workloads."""

import shutil

from tests.robustness.faults.commands import EncodeCommand, FitCommand
from tests.robustness.faults.kill_injection import kills
from tests.robustness.faults.workloads import (
    EncodeTo,
    FirstSave,
    Images,
    RawWrites,
    Saves,
    Training,
)

# Kills per workload in the tests; the benchmark multiplies them.
_KILLS = 1


def outcomes(folder, amount, inputs):
    workloads = [
        Images(inputs),
        RawWrites("float32"),
        RawWrites("float16"),
        EncodeTo(inputs, over_another=False),
        EncodeTo(inputs, over_another=True),
        Saves(inputs),
        FirstSave(inputs),
        Training(inputs),
        EncodeCommand(inputs),
        FitCommand(inputs),
    ]
    n_kills = round(amount * _KILLS)
    amounts = dict.fromkeys(workloads, n_kills)
    if amount > 1:  # each new process imports packages for seconds
        new_processes = [EncodeCommand(inputs, True), FitCommand(inputs, True)]
        amounts |= dict.fromkeys(new_processes, n_kills // 5)
    for number, (workload, n_kills) in enumerate(amounts.items()):
        place = folder / f"workload {number}"
        yield from kills(workload, place, n_kills)
        shutil.rmtree(place, ignore_errors=True)
