"""Group: all kinds of work, killed."""

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

# Of each kind in the suite; a benchmark does many times as many.
_KILLS = 1


def outcomes(folder, amount, world):
    kinds = [
        Images(world),
        RawWrites("float32"),
        RawWrites("float16"),
        EncodeTo(world, over_another=False),
        EncodeTo(world, over_another=True),
        Saves(world),
        FirstSave(world),
        Training(world),
        EncodeCommand(world),
        FitCommand(world),
    ]
    n_kills = round(amount * _KILLS)
    amounts = dict.fromkeys(kinds, n_kills)
    if amount > 1:  # importing everything takes seconds, each time
        started = [EncodeCommand(world, True), FitCommand(world, True)]
        amounts |= dict.fromkeys(started, n_kills // 5)
    for number, (kind, n_kills) in enumerate(amounts.items()):
        place = folder / f"kind {number}"
        yield from kills(kind, place, n_kills)
        shutil.rmtree(place, ignore_errors=True)
