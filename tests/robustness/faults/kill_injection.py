"""Kills of a workload at random moments, and checks of the files left behind."""

import random
import shutil
from functools import partial
from pathlib import Path

from tests.robustness.child_processes import (
    CaseError,
    Outcome,
    judge_in_child,
    run_and_kill,
    run_in_child,
)


class Workload:
    """Work that can be killed, with functions that prepare, run and check it."""

    name = ""

    def begin(self, place):
        """Write the files that exist before the work starts into an empty folder."""

    def work(self, place, report):
        """Run the work, and report stages and finished parts."""
        raise NotImplementedError

    def check_killed(self, place, log):
        """Raise CaseError if anything is wrong or lost; return a state for `check_again`."""
        raise NotImplementedError

    def check_again(self, place, state):
        """Repeat the work to its end, and raise CaseError if anything is wrong."""
        raise NotImplementedError


def ignore_report(word, value=None):
    """Report nothing."""


def _never(log):
    return None


def kills(workload, folder, n_kills, seed=0):
    """Return an outcome for each kill."""
    rng = random.Random(f"{workload.name} {seed}")
    folder = Path(folder)
    place = folder / "undisturbed"
    _begin(workload, place)
    full_log = run_and_kill(partial(workload.work, place), _never)
    if full_log.failed or not full_log.ended:
        return [Outcome(workload.name, "crash", f"undisturbed: {full_log.failed or 'hangs'}")]
    outcomes = [
        judge_in_child(
            f"{workload.name}, undisturbed",
            lambda: workload.check_killed(place, full_log) and None,
        )
    ]
    if outcomes[0].kind != "right":
        return outcomes
    outcomes.clear()
    survivor = None
    for number in range(5 * n_kills + 20):
        if len(outcomes) == n_kills:
            break
        place = folder / str(number)
        if survivor is not None and rng.random() < 0.4:
            survivor.rename(place)  # the resumed run is killed as well
        else:
            _begin(workload, place)
            if survivor is not None:
                shutil.rmtree(survivor)
        survivor = None
        log = run_and_kill(partial(workload.work, place), _draw_moment(full_log, rng))
        if not log.ended or log.failed:
            survivor = folder / f"{number} kept"
            outcomes.append(_judge(workload, place, log, survivor))
            survivor = survivor if survivor.exists() else None
        shutil.rmtree(place, ignore_errors=True)
    return outcomes


def _begin(workload, place):
    place.mkdir(parents=True)
    workload.begin(place)


def _draw_moment(full_log, rng):
    """Draw a moment: of the complete run or of one of its stages, which may be very short."""
    if rng.random() < 0.5:
        moment = full_log.n_seconds * rng.random()
        return lambda log: moment
    stages = full_log.stages()
    name = rng.choice(sorted({name for name, _, _ in stages}))
    number = rng.choice([n for n, stage in enumerate(stages) if stage[0] == name])
    delay = (stages[number][2] - stages[number][1]) * rng.random()

    def when(log):
        marks = [0.0] + [at for word, _, at in log.messages if word == "stage"]
        return marks[number] + delay if number < len(marks) else None

    return when


def _judge(workload, place, log, survivor):
    name = f"{workload.name}, after {log.n_seconds:.3f} s"
    if log.failed:
        return Outcome(name, "crash", log.failed, log.stage)
    try:
        state = run_in_child(lambda: workload.check_killed(place, log))
    except CaseError as error:
        return Outcome(name, error.kind, f"left behind: {error}", log.stage)
    shutil.copytree(place, survivor)
    return judge_in_child(name, lambda: workload.check_again(place, state), stage=log.stage)
