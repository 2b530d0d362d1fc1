"""What every request passes before Gradio sees it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ._limits import Limits, in_words

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_UPLOADS = re.compile(r"/upload/?$")
# Of a multipart body, beside the file itself.
_AROUND_UPLOAD = 2**16
# A file that is named by an address, which the server would have to fetch.
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+:", re.IGNORECASE)
_CLOSED = re.compile(r"/(process_recording|stream|proxy=|component_server|monitoring|vibe|mcp)")


class Gate:
    """Refuse requests that are too large or ask the server to fetch something, with a reason.

    Parameters
    ----------
    app : ASGI application
        What is behind the gate.
    limits : Limits
        Bounds on the size of requests.
    folder : str
        Where uploads are kept.
    """

    def __init__(self, app: Any, limits: Limits, folder: str) -> None:
        self.app = app
        self.limits = limits
        self.folder = folder

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if _CLOSED.search(path):
            await _answer(send, 404, "This page has no such part.")
            return
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        if _UPLOADS.search(path):
            await self._upload(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    async def _upload(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Stop an upload at its limit, whatever size it said it had."""
        limit = self.limits.upload_bytes + _AROUND_UPLOAD
        too_large = (
            f"The file is larger than {in_words(self.limits.upload_bytes)}, the limit for "
            "uploads. Send a smaller one."
        )
        declared = _declared(scope)
        if declared is None:
            await _answer(send, 411, "An upload has to say its length (Content-Length).")
        elif declared > limit:
            # Servers hold a body to the length that was declared.
            await _answer(send, 413, too_large)
        elif _size_of(self.folder) + declared > self.limits.stored_bytes + _AROUND_UPLOAD:
            why = "The page keeps as many uploads as it can. Try again in some minutes."
            await _answer(send, 429, why, ((b"retry-after", b"600"),))
        else:
            await self.app(scope, receive, send)

    async def _request(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Read the whole of a small request, look at it and pass it on."""
        limit = self.limits.request_bytes
        body = bytearray()
        more = (_declared(scope) or 0) <= limit
        too_large = not more
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                too_large, more = True, False
        if too_large:
            await _answer(
                send,
                413,
                f"The request is larger than {in_words(limit)}, the limit: send less text, and "
                "images as uploads.",
            )
            return
        if _names_an_address(body):
            await _answer(
                send, 400, "A file is given by an address. Download it and upload the file."
            )
            return
        sent = False

        async def replay() -> MutableMapping[str, Any]:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, replay, _busy_is_429(send, self.limits))


def _names_an_address(body: bytes | bytearray) -> bool:
    """Say whether a request has a file whose path is an address; Gradio would download it."""
    try:
        inside = [json.loads(body)]
    except (ValueError, RecursionError):
        return False  # Gradio says what is wrong with it
    while inside:
        item = inside.pop()
        if isinstance(item, dict):
            path = item.get("path")
            # One letter and a colon is a drive.
            if isinstance(path, str) and _ADDRESS.match(path) and path[1:2] != ":":
                return True
            inside += item.values()
        elif isinstance(item, list):
            inside += item
    return False


def _size_of(folder: str) -> int:
    """Return the size of all files in a folder, of which some may go meanwhile."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.path.getsize(os.path.join(top, name))
    return total


def _declared(scope: _Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
    return None


def _busy_is_429(send: _Send, limits: Limits) -> _Send:
    """Turn Gradio's answer of a full queue into one that says what to do."""
    busy = False

    async def changed(message: MutableMapping[str, Any]) -> None:
        nonlocal busy
        if message["type"] == "http.response.start" and message["status"] == 503:
            busy = True
            await _answer(
                send,
                429,
                f"{limits.waiting} requests are waiting already. Try again in a moment.",
                ((b"retry-after", b"5"),),
            )
        elif not busy:
            await send(message)

    return changed


async def _answer(
    send: _Send, status: int, why: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    body = json.dumps({"detail": why, "error": why}).encode()
    start = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*start, *headers]})
    await send({"type": "http.response.body", "body": body})
