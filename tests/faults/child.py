"""Work in a child process, which may be killed, die or hang."""

import json
import os
import pickle
import select
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field

SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """What came of a case: right, error (a clear one), wrong, lost, crash or hang."""

    name: str
    kind: str
    message: str = ""
    stage: str = ""
    count: int = 1
    group: str = ""

    def line(self):
        return json.dumps(asdict(self))


class Mistake(AssertionError):
    """What was found to be wrong or lost."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def expect(holds, message, kind="wrong"):
    if not holds:
        raise Mistake(kind, message)


@dataclass
class Said:
    """What a child said before its end, and when."""

    words: list = field(default_factory=list)  # (word, value, time)
    n_seconds: float = 0.0
    ended: bool = False
    failed: str = ""

    def values(self, word):
        return [(value, at) for said, value, at in self.words if said == word]

    @property
    def stage(self):
        return next((v for w, v, _ in reversed(self.words) if w == "stage"), "starting")

    def stages(self):
        """Return the stages as (name, begin, end), in seconds from the start."""
        marks = [("starting", 0.0)]
        marks += [(value, at) for word, value, at in self.words if word == "stage"]
        ends = [at for _, at in marks[1:]] + [self.n_seconds]
        return [(name, at, end) for (name, at), end in zip(marks, ends, strict=True)]


def _forked(work, channel):
    """Fork; the child calls `work` and ends, with 0 when nothing was raised."""
    child = os.fork()
    if child:
        os.close(channel)
        return child
    code = 1
    try:
        work()
        code = 0
    except SystemExit as ended:
        code = 0 if not ended.code else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def killed(work, when):
    """Call ``work(say)`` in a child, kill it, and return what it said.

    `when` is called with what was said so far and returns the seconds until the kill, from the
    start, or None to wait for more; the child may end before.
    """
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)  # its end is that of what the child becomes
    began = time.monotonic()

    def say(word, value=None):
        line = json.dumps([word, value, time.monotonic() - began]) + "\n"
        os.write(writer, line.encode())

    child = _forked(lambda: work(say), writer)
    said = Said()
    buffer = b""
    try:
        while True:
            now = time.monotonic() - began
            moment = when(said)
            left = SECONDS - now if moment is None else moment - now
            if left <= 0:
                break
            if select.select([reader], [], [], left)[0]:
                some = os.read(reader, 65536)
                if not some:
                    said.ended = True
                    break
                buffer = _heard(buffer + some, said)
    finally:
        said.n_seconds = time.monotonic() - began
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if not said.ended:
        while some := os.read(reader, 65536):
            buffer = _heard(buffer + some, said)
    os.close(reader)
    if os.WIFEXITED(status):  # in the moment before the kill
        said.ended = True
        if os.WEXITSTATUS(status):
            said.failed = f"exit code {os.WEXITSTATUS(status)}"
    elif os.WTERMSIG(status) != signal.SIGKILL:
        said.failed = f"signal {os.WTERMSIG(status)}"
    return said


def _heard(buffer, said):
    *lines, rest = buffer.split(b"\n")
    said.words += [tuple(json.loads(line)) for line in lines]
    return rest


def called(work, seconds=SECONDS):
    """Call in a child and return what it returns; raise Mistake for a crash or a hang."""
    reader, writer = os.pipe()

    def answer():
        try:
            result = (True, work())
        except Mistake as mistake:
            result = (False, (mistake.kind, str(mistake)))
        except Exception as error:
            traceback.print_exc()
            result = (False, ("crash", f"{type(error).__name__}: {error}"))
        with os.fdopen(writer, "wb") as file:
            pickle.dump(result, file)

    child = _forked(answer, writer)
    deadline = time.monotonic() + seconds
    content = b""
    hangs = False
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            hangs = True
            break
        some = os.read(reader, 2**20)
        if not some:
            break
        content += some
    os.close(reader)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if hangs:
        raise Mistake("hang", f"no answer after {seconds:.0f} s")
    if not content:
        raise Mistake("crash", f"the process ended with status {status}")
    fine, result = pickle.loads(content)
    if not fine:
        raise Mistake(*result)
    return result


def judged(name, work, seconds=SECONDS, stage=""):
    """Call in a child and say what became of it; `work` returns "right" or "error"."""
    try:
        kind = called(work, seconds)
    except Mistake as mistake:
        return Outcome(name, mistake.kind, str(mistake), stage)
    return Outcome(name, kind or "right", "", stage)
