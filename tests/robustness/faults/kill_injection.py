"""Kill work of one kind at random moments of its whole course; judge what is left each time."""

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


class Kind:
    """Work that can be killed: how to begin, to do and to check it."""

    name = ""

    def begin(self, place):
        """Put into an empty folder what is there before."""

    def work(self, place, say):
        """Do all of it, saying stages and what is finished."""
        raise NotImplementedError

    def check_killed(self, place, said):
        """Raise CaseError if anything is wrong or lost; return what the next check must know."""
        raise NotImplementedError

    def check_again(self, place, state):
        """Do the work again, to its end this time, and raise CaseError if anything is wrong."""
        raise NotImplementedError


def silent(word, value=None):
    """Say nothing."""


def _never(said):
    return None


def kills(kind, folder, n_kills, seed=0):
    """Return an outcome for each kill."""
    rng = random.Random(f"{kind.name} {seed}")
    folder = Path(folder)
    place = folder / "undisturbed"
    _begin(kind, place)
    course = run_and_kill(partial(kind.work, place), _never)
    if course.failed or not course.ended:
        return [Outcome(kind.name, "crash", f"undisturbed: {course.failed or 'hangs'}")]
    done = [
        judge_in_child(
            f"{kind.name}, undisturbed", lambda: kind.check_killed(place, course) and None
        )
    ]
    if done[0].kind != "right":
        return done
    done.clear()
    kept = None
    for number in range(5 * n_kills + 20):
        if len(done) == n_kills:
            break
        place = folder / str(number)
        if kept is not None and rng.random() < 0.4:
            kept.rename(place)  # the next run of what was killed is killed as well
        else:
            _begin(kind, place)
            if kept is not None:
                shutil.rmtree(kept)
        kept = None
        said = run_and_kill(partial(kind.work, place), _moment(course, rng))
        if not said.ended or said.failed:
            kept = folder / f"{number} kept"
            done.append(_judged(kind, place, said, kept))
            kept = kept if kept.exists() else None
        shutil.rmtree(place, ignore_errors=True)
    return done


def _begin(kind, place):
    place.mkdir(parents=True)
    kind.begin(place)


def _moment(course, rng):
    """Draw a moment: of the whole course, or of one of its stages, however short that is."""
    if rng.random() < 0.5:
        at = course.n_seconds * rng.random()
        return lambda said: at
    stages = course.stages()
    name = rng.choice(sorted({name for name, _, _ in stages}))
    number = rng.choice([n for n, stage in enumerate(stages) if stage[0] == name])
    delay = (stages[number][2] - stages[number][1]) * rng.random()

    def when(said):
        marks = [0.0] + [at for word, _, at in said.messages if word == "stage"]
        return marks[number] + delay if number < len(marks) else None

    return when


def _judged(kind, place, said, kept):
    name = f"{kind.name}, after {said.n_seconds:.3f} s"
    if said.failed:
        return Outcome(name, "crash", said.failed, said.stage)
    try:
        state = run_in_child(lambda: kind.check_killed(place, said))
    except CaseError as error:
        return Outcome(name, error.kind, f"left behind: {error}", said.stage)
    shutil.copytree(place, kept)
    return judge_in_child(name, lambda: kind.check_again(place, state), stage=said.stage)
