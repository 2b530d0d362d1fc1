"""`sklearn-ape serve` with fifty concurrent clients, and concurrent commands on one cache."""

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

from .._process import read_memory
from .._results import OutcomeCounts

_N_CLIENTS = 50
_DURATION = 60
_MAX_MIB_ADDED = 600
_N_COMMANDS, _N_ROUNDS = 6, 2


def measure(examples: int) -> list[OutcomeCounts]:
    """Send valid, invalid and too large requests for a minute; run concurrent commands."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = _write_images(folder / "images", 60)
        return [_run_server(folder, images), _run_commands(folder)]


def _write_images(folder: Path, n: int) -> list[Path]:
    from PIL import Image

    from sklearn_ape.datasets import load_openmoji

    folder.mkdir()
    paths = []
    for number, image in enumerate(load_openmoji().images[:n]):
        paths.append(folder / f"{number}.png")
        with Image.open(image) as opened:
            opened.convert("RGBA").resize((200, 200)).save(paths[-1])
    return paths


def _run_server(folder: Path, images: list[Path]) -> OutcomeCounts:
    command = [sys.executable, "-u", "-m", "sklearn_ape", "serve", "--port", "0"]
    with subprocess.Popen(
        [*command, "--images", str(folder / "images")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            url = None
            while url is None:
                url = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
                assert server.poll() is None, "the server did not start"
            kinds = _send_requests(url[0], images, server.pid)
            if server.poll() is not None:
                kinds["crash"] += 1
        finally:
            server.terminate()
            server.wait(60)
    return OutcomeCounts.count(
        f"requests to the server, {_N_CLIENTS} concurrent clients", kinds, kinds.total()
    )


def _send_requests(url: str, images: list[Path], pid: int) -> Counter[str]:
    from tests.app.visitor import Visitor

    Visitor(url).answer("search", "warm up", None, 3)
    before = read_memory("VmHWM", pid) / 2**20
    end = time.monotonic() + _DURATION

    def run_client(number: int) -> Counter[str]:
        rng = random.Random(number)
        visitor = Visitor(url)
        kinds: Counter[str] = Counter()
        while time.monotonic() < end:
            send = rng.choice(_REQUESTS)
            try:
                kind = send(visitor, rng, images)
            except Exception as error:
                kind = "hang" if "imeout" in type(error).__name__ else "lost"
            if kind not in ("right", "error"):
                print(f"{kind}: {send.__name__}", file=sys.stderr)
            kinds[kind] += 1
        return kinds

    with ThreadPoolExecutor(_N_CLIENTS) as pool:
        kinds = sum(pool.map(run_client, range(_N_CLIENTS)), Counter())
    added = read_memory("VmHWM", pid) / 2**20 - before
    print(f"memory of the server: {before:.0f} MiB, {added:.0f} MiB more at its peak")
    kinds["greedy"] += int(added > _MAX_MIB_ADDED)
    return kinds


def _send_valid_image(visitor, rng, images) -> str:
    names = [f"thing {rng.randrange(1000)}" for _ in range(2)] + ["a face"]
    image = visitor.upload(rng.choice(images).read_bytes())
    if image.status_code != 200:
        return _judge_refusal(image)
    file = {"path": image.json()[0], "meta": {"_type": "gradio.FileData"}}
    answer = visitor.answer("classify", file, ", ".join(names), "simple", 0)
    if answer[0] != "complete":
        return _judge_answer(answer)
    labels = {entry["label"] for entry in answer[1][0]["confidences"]}
    return "right" if labels == set(names) else "wrong"


def _send_query(visitor, rng, images) -> str:
    k = rng.randrange(1, 9)
    answer = visitor.answer("search", f"thing {rng.randrange(1000)}", None, k)
    if answer[0] != "complete":
        return _judge_answer(answer)
    return "right" if len(answer[1][1]) == k else "wrong"


def _send_non_image(visitor, rng, images) -> str:
    (path,) = visitor.upload(rng.randbytes(2000)).json()
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return _judge_answer(visitor.answer("classify", file, "cat, dog", "simple", 0))


def _request_server_file(visitor, rng, images) -> str:
    file = {"path": str(rng.choice(images)), "meta": {"_type": "gradio.FileData"}}
    return _judge_answer(visitor.answer("classify", file, "cat, dog", "simple", 0))


def _send_long_text(visitor, rng, images) -> str:
    return _judge_answer(visitor.answer("classify", None, "x" * 2**21, "simple", 0))


def _send_without_length(visitor, rng, images) -> str:
    response = visitor.http.post(
        "gradio_api/upload",
        content=iter([b"--x\r\nContent-Disposition: form-data; name=files\r\n\r\n"]),
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    return _judge_refusal(response)


def _send_many_names(visitor, rng, images) -> str:
    image = visitor.upload(rng.choice(images).read_bytes())
    if image.status_code != 200:
        return _judge_refusal(image)
    file = {"path": image.json()[0], "meta": {"_type": "gradio.FileData"}}
    names = ", ".join(f"name {number}" for number in range(5000))
    return _judge_answer(visitor.answer("classify", file, names, "simple", 0))


def _send_broken_json(visitor, rng, images) -> str:
    body = rng.choice([b"", b"{", b"[]", b'{"data": 1}', rng.randbytes(100), b"[" * 50_000])
    response = visitor.http.post(
        "gradio_api/call/classify", content=body, headers={"content-type": "application/json"}
    )
    return _judge_refusal(response)


_REQUESTS: list[Callable[..., str]] = [
    _send_valid_image, _send_valid_image, _send_query, _send_query, _send_non_image,
    _request_server_file, _send_long_text, _send_without_length, _send_many_names,
    _send_broken_json,
]  # fmt: skip


def _judge_answer(answer: tuple) -> str:
    """Return the outcome of an invalid request: a refusal must have a status and a reason."""
    kind, *details = answer
    if kind == "refused":
        return "error" if 400 <= details[0] < 500 and details[1] else "wrong"
    if kind == "error":
        return "error" if details[0] else "unclear"
    return "lost" if kind == "lost" else "wrong"


def _judge_refusal(response) -> str:
    return "error" if 400 <= response.status_code < 500 and response.content else "wrong"


def _run_commands(folder: Path) -> OutcomeCounts:
    """Classify the same images by concurrent commands: each must answer as a single command."""

    def start_command(cache: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "sklearn_ape", "classify", str(folder / "images"),
             "--labels", "a face,an animal,food", "--cache", str(cache), "--format", "json",
             "--quiet"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    truth = _read_answers(start_command(folder / "alone"))
    kinds: Counter[str] = Counter()
    for number in range(_N_ROUNDS):
        for command in [start_command(folder / f"cache-{number}") for _ in range(_N_COMMANDS)]:
            answers = _read_answers(command)
            kinds[answers if isinstance(answers, str) else _compare(answers, truth)] += 1
    name = f"{_N_COMMANDS} concurrent commands on one cache"
    return OutcomeCounts.count(name, kinds, _N_COMMANDS * _N_ROUNDS)


def _read_answers(command: subprocess.Popen[bytes]) -> Any:
    """Return the answers that a command prints, or "hang" or "crash"."""
    try:
        output, errors = command.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        command.kill()
        return "hang"
    if command.returncode:
        print(errors.decode()[-500:], file=sys.stderr)
        return "crash"
    return json.loads(output)


def _compare(answers: Any, truth: Any) -> str:
    if len(answers) != len(truth):
        return "lost"
    return "right" if answers == truth else "wrong"
