"""Start of the server, and limits on requests."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

from ._limits import Limits, in_words
from ._model import load_model
from ._session import AppService, Session
from ._ui import DEFAULT_LABELS, import_gradio, page_of

_Scope = MutableMapping[str, Any]


_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


_UPLOADS = re.compile(r"/upload/?$")


# Of a multipart body, beside the file itself.
_AROUND_UPLOAD = 2**16


# A file that is named by an address, which the server would have to fetch.
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]+:", re.IGNORECASE)


_CLOSED = re.compile(r"/(process_recording|stream|proxy=|component_server|monitoring|vibe|mcp)")


class RequestLimitMiddleware:
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


_LOOPBACK = ("127.0.0.1", "localhost", "::1")


_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]


_MONO = ["ui-monospace", "Consolas", "monospace"]


class Running(NamedTuple):
    """A page that was started without waiting for its end.

    Parameters
    ----------
    url : str
        Where it is.
    close : callable
        Stops it and removes what visitors sent.
    """

    url: str
    close: Any


def serve(
    aligner: Any = None,
    images: Any = None,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    open_browser: bool = False,
    *,
    labels: Sequence[str] | None = None,
    limits: Limits | None = None,
    block: bool = True,
    verbose: int = 1,
) -> Running:
    """Start a page on this computer on which an aligner is tried, until it is interrupted.

    Parameters
    ----------
    aligner, images : object
        See `build_app`.
    host : str, default="127.0.0.1"
        The address it listens at. The default is this computer alone; with any other, everyone
        who can reach it can use the page, and see the images in it.
    port : int or None, default=7860
        The port; None takes a free one.
    open_browser : bool, default=False
        Whether to open it in the browser.
    labels, limits : object
        See `build_app`.
    block : bool, default=True
        Whether to wait until it is interrupted (Ctrl-C). False returns at once; call ``close()``
        of what is returned.
    verbose : int, default=1
        0 prints nothing but warnings.

    Returns
    -------
    running : Running
        Where it is, and how to stop it.

    Raises
    ------
    ImportError
        When gradio is not installed.
    OSError
        When the port is taken.
    ValueError, NotFittedError
        When the aligner cannot be used, see `build_app`.

    See Also
    --------
    build_app : The page alone, to be put elsewhere.

    Notes
    -----
    Nothing is fetched from the net, and nothing is sent there. Uploads and what is made of them
    lie in a temporary folder that is removed at the end.

    Examples
    --------
    >>> from sklearn_ape.app import serve
    >>> page = serve(port=None, block=False, verbose=0)  # doctest: +SKIP
    >>> page.url  # doctest: +SKIP
    'http://127.0.0.1:7860/'
    >>> page.close()  # doctest: +SKIP
    """
    limits = Limits() if limits is None else limits
    if host not in _LOOPBACK:
        print(
            f"Warning: the page listens at {host}, not at this computer alone. Everyone who can "
            "reach it can use it without a password and see its images.",
            file=sys.stderr,
        )
    stack = contextlib.ExitStack()
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(stack.close)
        folder = stack.enter_context(_own_folder())
        gr = import_gradio()
        model = load_model(aligner)
        studio = AppService(model, images, limits)
        page = page_of(studio, labels or model.labels or DEFAULT_LABELS)
        stack.callback(page.close, verbose=False)
        page.launch(
            server_name=host,
            server_port=port or _free_port(host),
            inbrowser=open_browser,
            theme=gr.themes.Soft(font=_FONTS, font_mono=_MONO),
            css=_CSS,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            show_error=False,
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            footer_links=[],
            allowed_paths=[],
            max_file_size=limits.upload_bytes,
            state_session_capacity=limits.sessions,
            app_kwargs={"middleware": _middleware(host, limits, folder), "docs_url": None},
        )
        on_failure.pop_all()
    running = Running(str(page.local_url), stack.close)
    stack.callback(_WarmUp(studio).close)
    if verbose:
        print(f"The page is at {running.url} (Ctrl-C ends it).", flush=True)
    if block:
        with _ended_by_signals(), contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        running.close()
    return running


_CSS = """
.gradio-container { max-width: 1180px !important; margin: auto; }
#search-gallery .grid-wrap { max-height: none; }
#search-gallery .caption-label { max-width: 96%; font-size: 0.8rem; }
@media (max-width: 640px) {
  #search-gallery .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
#align-result { padding: 0.5rem 1rem; }
"""


@contextlib.contextmanager
def _own_folder() -> Iterator[str]:
    """Let Gradio keep uploads in a folder of this server alone, removed at the end."""
    name = "GRADIO_TEMP_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="sklearn-ape-page-") as folder:
        os.environ[name] = folder
        try:
            yield folder
        finally:
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a polite kill end the page as Ctrl-C does, so that uploads are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _middleware(host: str, limits: Limits, folder: str) -> list[Any]:
    """Return what stands before Gradio."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    gate = [Middleware(RequestLimitMiddleware, limits=limits, folder=folder)]
    if host not in _LOOPBACK:
        return gate
    # A page of another site whose name is made to lead here must not read this one.
    names = ["localhost", "127.0.0.1", "[::1]"]
    return [Middleware(TrustedHostMiddleware, allowed_hosts=names), *gate]


def _free_port(host: str) -> int:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class _WarmUp:
    """Load the networks and embed the collection, so that the first visitor need not wait.

    Parameters
    ----------
    studio : Studio
        The one to prepare.
    """

    def __init__(self, studio: AppService) -> None:
        self._studio = studio
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it, at the latest after the images that are being encoded."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(Exception):  # whoever asks for it is told what is wrong
            self._studio.prepare(Session(), self._report)

    def _report(self, share: float, what: str) -> None:
        if self._ended.is_set():
            raise InterruptedError
