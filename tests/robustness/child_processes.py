"""Child processes that may be killed, crash or hang, and outcomes of the cases they run."""

import json
import multiprocessing
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# Before the first case, a spawned child imports the package and creates all cases.
_START_SECONDS = 240.0


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case.

    The kinds "right" and "error" (with a clear message) are correct results. The others are
    failures: "wrong", "lost", "unclear" (message), "greedy" (memory), "crash" and "hang".
    """

    name: str
    kind: str
    message: str = ""
    stage: str = ""
    count: int = 1
    group: str = ""
    mebibytes: float = 0.0
    seconds: float = 0.0

    def line(self):
        return json.dumps(asdict(self))


class CaseError(AssertionError):
    """Failure of a case: a wrong or lost result, a crash or a hang."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def expect(holds, message, kind="wrong"):
    if not holds:
        raise CaseError(kind, message)


@dataclass
class ChildLog:
    """The messages of a child with their times, and how it ended."""

    messages: list = field(default_factory=list)  # (word, value, time)
    n_seconds: float = 0.0
    ended: bool = False
    failed: str = ""

    def values(self, word):
        return [(value, at) for said, value, at in self.messages if said == word]

    @property
    def stage(self):
        return next((v for w, v, _ in reversed(self.messages) if w == "stage"), "starting")

    def stages(self):
        """Return the stages as (name, begin, end), in seconds from the start."""
        marks = [("starting", 0.0)]
        marks += [(value, at) for word, value, at in self.messages if word == "stage"]
        ends = [at for _, at in marks[1:]] + [self.n_seconds]
        return [(name, at, end) for (name, at), end in zip(marks, ends, strict=True)]


def fork(work, channel=None):
    """Fork and return the child's process ID; the child calls `work` and exits with 0 on success.

    `channel` is the child's end of a pipe, which the parent closes.
    """
    child = os.fork()
    if child:
        if channel is not None:
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


def kill(child):
    """Kill a forked child and return the status that `os.waitpid` gives."""
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def run_as_nobody(work):
    """Call `work` as a user without the rights of root."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    os.environ["HOME"] = "/nonexistent"
    return work()


def run_and_kill(work, when):
    """Call ``work(report)`` in a child, kill it, and return its log.

    `when` is called with the log so far and returns the seconds until the kill, from the start,
    or None to wait for more messages. The child may end earlier.
    """
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)  # the child may replace itself by exec
    began = time.monotonic()

    def report(word, value=None):
        line = json.dumps([word, value, time.monotonic() - began]) + "\n"
        os.write(writer, line.encode())

    child = fork(lambda: work(report), writer)
    log = ChildLog()
    buffer = b""
    try:
        while True:
            now = time.monotonic() - began
            moment = when(log)
            remaining = SECONDS - now if moment is None else moment - now
            if remaining <= 0:
                break
            if select.select([reader], [], [], remaining)[0]:
                block = os.read(reader, 65536)
                if not block:
                    log.ended = True
                    break
                buffer = _append_messages(buffer + block, log)
    finally:
        log.n_seconds = time.monotonic() - began
        status = kill(child)
    if not log.ended:
        while block := os.read(reader, 65536):
            buffer = _append_messages(buffer + block, log)
    os.close(reader)
    if os.WIFEXITED(status):  # it ended just before the kill
        log.ended = True
        if os.WEXITSTATUS(status):
            log.failed = f"exit code {os.WEXITSTATUS(status)}"
    elif os.WTERMSIG(status) != signal.SIGKILL:
        log.failed = f"signal {os.WTERMSIG(status)}"
    return log


def _append_messages(buffer, log):
    *lines, rest = buffer.split(b"\n")
    log.messages += [tuple(json.loads(line)) for line in lines]
    return rest


def run_in_child(work, seconds=SECONDS):
    """Call `work` in a child and return its result; raise CaseError for a crash or a hang."""
    reader, writer = os.pipe()

    def answer():
        try:
            result = (True, work())
        except CaseError as error:
            result = (False, (error.kind, str(error)))
        except Exception as error:
            traceback.print_exc()
            result = (False, ("crash", f"{type(error).__name__}: {error}"))
        with os.fdopen(writer, "wb") as file:
            pickle.dump(result, file)

    child = fork(answer, writer)
    deadline = time.monotonic() + seconds
    content = b""
    hangs = False
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([reader], [], [], remaining)[0]:
            hangs = True
            break
        block = os.read(reader, 2**20)
        if not block:
            break
        content += block
    os.close(reader)
    status = kill(child)
    if hangs:
        raise CaseError("hang", f"no answer after {seconds:.0f} s")
    if not content:
        raise CaseError("crash", f"the process ended with status {status}")
    succeeded, result = pickle.loads(content)
    if not succeeded:
        raise CaseError(*result)
    return result


def judge_in_child(name, work, seconds=SECONDS, stage=""):
    """Call `work`, which returns "right" or "error", in a child and return the outcome."""
    try:
        kind = run_in_child(work, seconds)
    except CaseError as error:
        return Outcome(name, error.kind, str(error), stage)
    return Outcome(name, kind or "right", "", stage)


def judge_one_by_one(target, arguments, seconds):
    """Run cases in a child, which is replaced if it crashes or hangs, and return all outcomes.

    Parameters
    ----------
    target : callable
        Called in a spawned process as ``target(connection, n_children, n_done, *arguments)``. It
        sends the list of all names, then "start" before and an `Outcome` after each case except
        the first `n_done`, and finally "end".
    arguments : tuple
        Further arguments of `target`.
    seconds : float
        Time that each case may take.
    """
    context = multiprocessing.get_context("spawn")
    done = []
    n_children = 0
    while True:
        here, there = context.Pipe()
        child = context.Process(
            target=target, args=(there, n_children, len(done), *arguments), daemon=True
        )
        n_children += 1
        child.start()
        there.close()
        names, finished = [], False
        try:
            while not finished:
                if not here.poll(seconds if names else _START_SECONDS):
                    if not names:
                        raise RuntimeError("The cases were not made in time.")
                    done.append(Outcome(names[len(done)], "hang", f"{seconds:.0f} s"))
                    break
                message = here.recv()
                if isinstance(message, list):
                    names = message
                elif isinstance(message, Outcome):
                    done.append(message)
                finished = message == "end"
        except EOFError:
            child.join()
            if not names:
                raise RuntimeError("The cases cannot be made: see above.") from None
            done.append(Outcome(names[len(done)], "crash", f"exit code {child.exitcode}"))
        finally:
            child.kill()
            child.join()
            here.close()
        if finished or len(done) == len(names):
            return done


def run_module(module, arguments, seconds):
    """Run ``python -m module REPORT *arguments``, which appends outcomes to a file of JSON lines.

    Returns the outcomes; the last one is a crash or a hang if the process ended early.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        **_ONE_THREAD,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONWARNINGS": "ignore",
    }
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.jsonl")
        command = [sys.executable, "-m", module, str(report), *arguments]
        hangs, code = False, 0
        try:
            code = subprocess.run(
                command, env=environment, timeout=seconds, cwd=folder, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            hangs = True
        lines = report.read_text().splitlines() if report.is_file() else []
    done = [Outcome(**json.loads(line)) for line in lines]
    if hangs:
        done.append(Outcome("all that follows", "hang", f"{seconds} s"))
    elif code and not any(outcome.kind == "crash" for outcome in done):
        done.append(Outcome("all that follows", "crash", f"exit code {code}"))
    return done
