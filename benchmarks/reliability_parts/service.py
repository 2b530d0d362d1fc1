"""`sklearn-ape serve` under fifty clients at once, and commands that share one cache."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .rows import Row

_AT_ONCE = 50
_SECONDS = 60
_MOST_MIB_ADDED = 600
_COMMANDS, _ROUNDS = 6, 2


def measure(examples: int) -> list[Row]:
    """Ask for a minute whatever is right, wrong and too large; start commands side by side."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = _images(folder / "images", 60)
        return [_served(folder, images), _side_by_side(folder)]


def _images(folder: Path, n: int) -> list[Path]:
    from PIL import Image

    from sklearn_ape.datasets import load_openmoji

    folder.mkdir()
    paths = []
    for number, image in enumerate(load_openmoji().images[:n]):
        paths.append(folder / f"{number}.png")
        with Image.open(image) as opened:
            opened.convert("RGBA").resize((200, 200)).save(paths[-1])
    return paths


def _served(folder: Path, images: list[Path]) -> Row:
    command = [sys.executable, "-u", "-m", "sklearn_ape", "serve", "--port", "0"]
    with subprocess.Popen(
        [*command, "--images", str(folder / "images")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            found = None
            while found is None:
                found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
                assert server.poll() is None, "the page did not start"
            kinds = _asked(found[0], images, server.pid)
            if server.poll() is not None:
                kinds["crash"] += 1
        finally:
            server.terminate()
            server.wait(60)
    return Row.of("service", f"requests to the page, {_AT_ONCE} at once", kinds, kinds.total())


def _asked(url: str, images: list[Path], pid: int) -> Counter[str]:
    from tests.app.visitor import Visitor

    Visitor(url).answer("search", "warm up", None, 3)
    before = _mebibytes(pid)
    end = time.monotonic() + _SECONDS

    def client(number: int) -> Counter[str]:
        rng = random.Random(number)
        visitor = Visitor(url)
        kinds: Counter[str] = Counter()
        while time.monotonic() < end:
            asked = rng.choice(_REQUESTS)
            try:
                kind = asked(visitor, rng, images)
            except Exception as error:
                kind = "hang" if "imeout" in type(error).__name__ else "lost"
            if kind not in ("right", "error"):
                print(f"{kind}: {asked.__name__}", file=sys.stderr)
            kinds[kind] += 1
        return kinds

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        kinds = sum(pool.map(client, range(_AT_ONCE)), Counter())
    added = _mebibytes(pid) - before
    print(f"memory of the page: {before:.0f} MiB, and {added:.0f} more at its highest")
    kinds["greedy"] += int(added > _MOST_MIB_ADDED)
    return kinds


def _classify(visitor, rng, images) -> str:
    names = [f"thing {rng.randrange(1000)}" for _ in range(2)] + ["a face"]
    image = visitor.upload(rng.choice(images).read_bytes())
    if image.status_code != 200:
        return _refusal(image)
    file = {"path": image.json()[0], "meta": {"_type": "gradio.FileData"}}
    answer = visitor.answer("classify", file, ", ".join(names), "simple", 0)
    if answer[0] != "complete":
        return _unfinished(answer)
    labels = {entry["label"] for entry in answer[1][0]["confidences"]}
    return "right" if labels == set(names) else "wrong"


def _search(visitor, rng, images) -> str:
    k = rng.randrange(1, 9)
    answer = visitor.answer("search", f"thing {rng.randrange(1000)}", None, k)
    if answer[0] != "complete":
        return _unfinished(answer)
    return "right" if len(answer[1][1]) == k else "wrong"


def _no_image(visitor, rng, images) -> str:
    (place,) = visitor.upload(rng.randbytes(2000)).json()
    file = {"path": place, "meta": {"_type": "gradio.FileData"}}
    return _unfinished(visitor.answer("classify", file, "cat, dog", "simple", 0))


def _file_of_the_server(visitor, rng, images) -> str:
    file = {"path": str(rng.choice(images)), "meta": {"_type": "gradio.FileData"}}
    return _unfinished(visitor.answer("classify", file, "cat, dog", "simple", 0))


def _too_large(visitor, rng, images) -> str:
    return _unfinished(visitor.answer("classify", None, "x" * 2**21, "simple", 0))


def _without_length(visitor, rng, images) -> str:
    response = visitor.http.post(
        "gradio_api/upload",
        content=iter([b"--x\r\nContent-Disposition: form-data; name=files\r\n\r\n"]),
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    return _refusal(response)


def _too_many_names(visitor, rng, images) -> str:
    names = ", ".join(f"name {number}" for number in range(5000))
    return _unfinished(visitor.answer("classify", None, names, "simple", 0))


def _broken(visitor, rng, images) -> str:
    body = rng.choice([b"", b"{", b"[]", b'{"data": 1}', rng.randbytes(100), b"[" * 50_000])
    response = visitor.http.post(
        "gradio_api/call/classify", content=body, headers={"content-type": "application/json"}
    )
    return _refusal(response)


_REQUESTS: list[Callable[..., str]] = [
    _classify, _classify, _search, _search, _no_image, _file_of_the_server, _too_large,
    _without_length, _too_many_names, _broken,
]  # fmt: skip


def _unfinished(answer: tuple) -> str:
    """Tell a refusal with a reason from an answer, which would be wrong, and from none."""
    kind, *what = answer
    if kind == "refused":
        return "error" if 400 <= what[0] < 500 and what[1] else "wrong"
    if kind == "error":
        return "error" if what[0] else "unclear"
    return "lost" if kind == "lost" else "wrong"


def _refusal(response) -> str:
    return "error" if 400 <= response.status_code < 500 and response.content else "wrong"


def _mebibytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _side_by_side(folder: Path) -> Row:
    """Classify the same images by several commands at once: each must answer as one alone."""

    def started(cache: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "sklearn_ape", "classify", str(folder / "images"),
             "--labels", "a face,an animal,food", "--cache", str(cache), "--format", "json",
             "--quiet"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    truth = _answers(started(folder / "alone"))
    kinds: Counter[str] = Counter()
    for turn in range(_ROUNDS):
        for command in [started(folder / f"cache-{turn}") for _ in range(_COMMANDS)]:
            answers = _answers(command)
            kinds[answers if isinstance(answers, str) else _compared(answers, truth)] += 1
    what = f"commands on one cache, {_COMMANDS} at once"
    return Row.of("service", what, kinds, _COMMANDS * _ROUNDS)


def _answers(command: subprocess.Popen[bytes]) -> Any:
    """Return what a command printed, or what became of it."""
    try:
        printed, told = command.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        command.kill()
        return "hang"
    if command.returncode:
        print(told.decode()[-500:], file=sys.stderr)
        return "crash"
    return json.loads(printed)


def _compared(answers: Any, truth: Any) -> str:
    if len(answers) != len(truth):
        return "lost"
    return "right" if answers == truth else "wrong"
