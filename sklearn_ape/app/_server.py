"""Start of the web app, and request limits as ASGI middleware."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..utils.validation import check_sequence, to_list
from ._limits import Limits, format_size, get_max_visitors
from ._model import load_model
from ._session import AppService
from ._uploads import measure_folder, page_folders

if TYPE_CHECKING:
    import gradio
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Functions of Gradio that this page does not use and that would make the server more vulnerable.
_CLOSED_PATHS = re.compile(
    r"(/gradio_api)?/"
    r"(process_recording|stream|proxy=|component_server|monitoring|vibe|mcp|deep_link)"
)
# A multipart body is longer than the file: by the headers of its parts.
_MULTIPART_OVERHEAD = 2**16
# A single letter before the colon is a drive on Windows.
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]+:", re.IGNORECASE)

_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")

# Fonts of the system: the default theme loads fonts from another server.
_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
_MONOSPACE_FONTS = ["ui-monospace", "Consolas", "monospace"]

# The default colors of labels, hints, buttons and choices have less contrast than the 4.5:1 of
# WCAG.
_COLORS = {
    "background_fill_primary": "*neutral_50",  # of the theme Soft, which `set` would reset
    "block_label_text_color": "*primary_700",
    "block_title_text_color": "*primary_700",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "*neutral_300",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_700",
    "checkbox_label_background_fill_selected": "*primary_600",
}

_FOLDER = Path(__file__).parent


class RequestLimitMiddleware:
    """ASGI middleware that rejects too large requests, and paths that are not uploaded files."""

    def __init__(self, app: ASGIApp, limits: Limits, folder: str) -> None:
        self.app = app
        self.limits = limits
        self.folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Process one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if _CLOSED_PATHS.match(path):  # from the beginning: an upload may be named stream.png
            await _send_error(send, 404, "This function is not available on this page.")
        elif scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
        elif re.search(r"/upload/?$", path):
            await self._process_upload(scope, receive, send)
        else:
            await self._process_request(scope, receive, send)

    async def _process_upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject an upload by its declared length, which the server enforces."""
        length = _read_content_length(scope)
        if length is None:
            await _send_error(send, 411, "The length of the upload (Content-Length) is missing.")
        elif length > self.limits.upload_bytes + _MULTIPART_OVERHEAD:
            limit = format_size(self.limits.upload_bytes)
            reason = f"The file is larger than {limit}, the limit. Upload a smaller file."
            await _send_error(send, 413, reason)
        elif measure_folder(self.folder) + length > self.limits.stored_bytes + _MULTIPART_OVERHEAD:
            reason = "The storage for uploads is full. Try again in a few minutes."
            await _send_error(send, 429, reason, retry_after=600)
        else:
            await self.app(scope, receive, send)

    async def _process_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read a request that is not an upload as a whole, check it and forward it."""
        limit = self.limits.request_bytes
        body = bytearray()
        is_too_large = (_read_content_length(scope) or 0) > limit
        is_complete = False
        while not is_complete and not is_too_large:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            is_complete = not message.get("more_body", False)
            is_too_large = len(body) > limit
        if is_too_large:
            reason = f"The request is larger than {format_size(limit)}, the limit."
            reason += " Enter less text, and send images as uploads."
            await _send_error(send, 413, reason)
            return
        if problem := _find_file_problem(body, os.path.dirname(self.folder)):
            await _send_error(send, 400, problem)
            return
        replayed = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return replayed.pop() if replayed else await receive()

        await self.app(scope, replay, _explain_full_queue(send, self.limits))


def _find_file_problem(body: bytes | bytearray, folder: str) -> str | None:
    """Return why a file in a request is rejected, or None.

    Gradio would download a URL. It would accept any path in the folder of the uploads, to delete
    it later with other uploads. Deleting a folder raises an error, after which Gradio deletes
    nothing anymore.
    """
    try:
        values = [json.loads(body)]
    except (ValueError, RecursionError):
        return None  # Gradio rejects the request
    while values:
        value = values.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str):
                if _URL.match(path):
                    return (
                        "A file is given by a URL. Download the file, and upload it to this page."
                    )
                is_upload = Path(os.path.abspath(path)).is_relative_to(folder)
                if is_upload and not os.path.isfile(path):
                    return (
                        "The uploaded file is not on the server anymore: uploads are deleted "
                        "after a while. Upload it again."
                    )
            values += value.values()
        elif isinstance(value, list):
            values += value
    return None


def _read_content_length(scope: Scope) -> int | None:
    value = dict(scope["headers"]).get(b"content-length", b"")
    return int(value) if value.isdigit() else None


def _explain_full_queue(send: Send, limits: Limits) -> Send:
    """Replace Gradio's response to a full queue (503) by the status 429 and an explanation."""
    is_replaced = False

    async def send_or_replace(message: Message) -> None:
        nonlocal is_replaced
        if message["type"] == "http.response.start" and message["status"] == 503:
            is_replaced = True
            reason = f"{limits.waiting} requests are already waiting. Try again in a moment."
            await _send_error(send, 429, reason, retry_after=5)
        elif not is_replaced:
            await send(message)

    return send_or_replace


async def _send_error(send: Send, status: int, reason: str, retry_after: int = 0) -> None:
    # Gradio's client reads "detail" for some requests and "error" for others.
    body = json.dumps({"detail": reason, "error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if retry_after:
        headers.append((b"retry-after", b"%d" % retry_after))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Running(NamedTuple):
    """A running web app.

    Parameters
    ----------
    url : str
        Address of the page.
    close : callable
        Stops the page and deletes all uploads.
    """

    url: str
    close: Any


def build_app(
    aligner: Any = None,
    *,
    images: Any = None,
    labels: Sequence[str] | None = None,
    limits: Limits | None = None,
) -> gradio.Blocks:
    """Build the web app to try an aligner, for use within another application.

    Parameters
    ----------
    aligner : None, str, path-like or estimator, default=None
        Aligner for images and texts. None is the starter model, and ``"open_clip:..."`` a CLIP
        model. Any other str is the folder of a saved model or a Hub id, which
        `sklearn_ape.load_pretrained` reads. An estimator is a fitted aligner, a classifier or
        retriever that contains one, or a Pipeline or search of any of these.
    images : path-like, sequence of paths or None, default=None
        Images to search: a folder or paths. None shows drawings of OpenMoji.
    labels : sequence of str or None, default=None
        Initial labels on the page. None uses the labels of the classifier if `aligner` is one,
        the names of the subfolders if `images` is a folder with several, and example labels
        otherwise.
    limits : Limits or None, default=None
        Limits on the requests of visitors. None uses the default values.

    Returns
    -------
    page : gradio.Blocks
        The page, not started. `serve` starts it with all request limits; ``page.launch()`` and
        ``gradio.mount_gradio_app`` do not limit uploads.

    Raises
    ------
    ImportError
        If gradio is not installed.
    NotFittedError
        If the aligner is not fitted.
    ValueError
        If the aligner was fitted on features, so that it cannot encode images and texts, or
        `labels` are not texts.

    See Also
    --------
    serve : Build and start the page.

    Examples
    --------
    >>> from sklearn_ape.app import build_app
    >>> build_app(labels=["cat", "dog"])
    Gradio Blocks instance: ...
    """
    from ._ui import build_page  # imports Gradio, which takes seconds

    limits = Limits() if limits is None else limits
    labels = _check_labels(labels)
    page = build_page(AppService(load_model(aligner), images, limits), labels)
    # Gradio sets this at the launch, which a page within another application does not have.
    # Without it, visitors can pass any file of the server instead of an upload.
    page.has_launched = True
    return page


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
    """Start a web app on this computer to try an aligner.

    Parameters
    ----------
    aligner, images : object
        Aligner and images to search, see `build_app`.
    host : str, default="127.0.0.1"
        Address at which the server listens. By default, only this computer can open the page.
        With any other address, everyone who can reach it can use the page and see the images.
    port : int or None, default=7860
        Port of the server. None selects a free port.
    open_browser : bool, default=False
        Whether to open the page in the browser.
    labels, limits : object
        Initial labels and request limits, see `build_app`.
    block : bool, default=True
        Whether to wait until the process is interrupted (Ctrl-C). If False, the function
        returns after the start; stop the page with ``close()`` of the returned object.
    verbose : int, default=1
        Verbosity level. 0 prints only warnings and, if `block`, the address of the page.

    Returns
    -------
    running : Running
        Address of the page, and a function that stops it.

    Raises
    ------
    ImportError
        If gradio is not installed.
    OSError
        If the port is in use, or `host` is not an address of this computer.
    ValueError, NotFittedError
        If the aligner or `labels` cannot be used, see `build_app`.

    See Also
    --------
    build_app : Build the page without starting it.

    Notes
    -----
    The page works without a network connection. Uploads are stored in a temporary folder, which
    is deleted when the page stops. Several pages can run in one process. While they run, Gradio
    applications that were started before in the process, such as pages of `build_app`, reject
    uploads.

    Examples
    --------
    >>> from sklearn_ape.app import serve
    >>> page = serve(port=None, block=False, verbose=0)  # doctest: +SKIP
    >>> page.url  # doctest: +SKIP
    'http://127.0.0.1:7860/'
    >>> page.close()  # doctest: +SKIP
    """
    limits = Limits() if limits is None else limits
    labels = _check_labels(labels)
    host = host.strip("[]")  # IPv6 addresses may have brackets
    if host not in _LOOPBACK_HOSTS:
        print(
            f"Warning: the page listens at {host}, not only at this computer. Everyone who can "
            "reach it can use it without a password and see its images.",
            file=sys.stderr,
        )
    with _handle_signals(signal.default_int_handler) if block else contextlib.nullcontext():
        running = _start(aligner, images, host, port, open_browser, labels, limits)
        if verbose:
            print(f"The page is at {running.url} (press Ctrl-C to stop it).", flush=True)
        elif block:  # a caller who waits gets no returned address
            print(running.url, flush=True)
        if block:
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
            with _handle_signals(signal.SIG_IGN):  # a closed terminal sends several
                running.close()
    return running


def _check_labels(labels: Any) -> list[str] | None:
    """Return the initial labels as a list; raise ValueError unless they are texts."""
    if labels is None:
        return None
    check_sequence(labels, "labels", "label")
    texts = to_list(labels)
    for label in texts:
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"labels has {label!r}, which is not a text. Pass names of classes.")
    return [str(text) for text in texts]


def _start(
    aligner: Any,
    images: Any,
    host: str,
    port: int | None,
    open_browser: bool,
    labels: Sequence[str] | None,
    limits: Limits,
) -> Running:
    """Start the page and a thread that loads its networks, see `serve`."""
    from ._ui import build_page, gr

    with contextlib.ExitStack() as stack:  # which closes everything if the start fails
        service = AppService(load_model(aligner), images, limits)
        folder = page_folders.create()
        stack.callback(page_folders.remove, folder)
        # Gradio read the environment when it was imported, and would create another folder.
        gr.routes.DEFAULT_TEMP_DIR = folder
        # Gradio would store the images of new elements in the folder that all pages share.
        service.examples = [
            (gr.processing_utils.save_pil_to_cache(image, folder), name)
            for image, name in service.examples
        ]
        page = build_page(service, labels)
        stack.callback(page.close, verbose=False)
        for element in page.blocks.values():
            element.GRADIO_CACHE = folder
        try:
            _launch(page, host, port or _find_free_port(host), open_browser, limits, folder)
        except OSError as error:
            if port is None:
                raise
            raise OSError(
                f"Port {port} of {host} cannot be used. If another program uses it, choose "
                "another port."
            ) from error
        page.app.uploaded_file_dir = folder
        stack.enter_context(_warm_up(service))
        return Running(str(page.local_url), stack.pop_all().close)


def _launch(
    page: gradio.Blocks, host: str, port: int, open_browser: bool, limits: Limits, folder: str
) -> None:
    """Start the server of a page in a thread, without functions that the page does not use."""
    from ._ui import gr

    options: dict[str, Any] = {}
    if "run_history" in inspect.signature(page.launch).parameters:  # since Gradio 6.24
        options["run_history"] = False
    page.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        inbrowser=open_browser,
        theme=gr.themes.Soft(font=_FONTS, font_mono=_MONOSPACE_FONTS).set(**_COLORS),
        css_paths=_FOLDER / "page.css",
        js=(_FOLDER / "page.js").read_text(encoding="utf-8"),
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        show_error=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        footer_links=[],
        allowed_paths=[],
        max_file_size=limits.upload_bytes,
        state_session_capacity=get_max_visitors(limits),
        app_kwargs={"middleware": _make_middleware(host, limits, folder), "docs_url": None},
        **options,
    )


@contextlib.contextmanager
def _handle_signals(handler: Any) -> Iterator[None]:
    """Handle SIGTERM, and SIGHUP of a closed terminal, which would end the process at once."""
    is_main = threading.current_thread() is threading.main_thread()  # only it can set handlers
    with contextlib.ExitStack() as stack:
        for name in ("SIGTERM", "SIGHUP") if is_main else ():
            number = getattr(signal, name, None)  # Windows lacks SIGHUP, and nohup ignores it
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, handler))
        yield


def _make_middleware(host: str, limits: Limits, folder: str) -> list[Any]:
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    middleware = [Middleware(RequestLimitMiddleware, limits=limits, folder=folder)]
    if host in _LOOPBACK_HOSTS:
        # DNS rebinding: a page of another site could resolve its own name to this computer and
        # read this page.
        names = ["localhost", "127.0.0.1", "[::1]"]
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=names))
    return middleware


def _find_free_port(host: str) -> int:
    # Gradio would look for one on 127.0.0.1, and try a hundred ports of a host that is not ours.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _warm_up(service: AppService) -> Iterator[None]:
    """Load the networks and embed the images in a thread, which ends after its current batch."""
    is_closed = threading.Event()

    def check_closed(fraction: float, step: str) -> None:
        if is_closed.is_set():
            raise InterruptedError

    def run() -> None:
        with contextlib.suppress(Exception):  # the first request reports the error
            service.warm_up(check_closed)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    is_closed.set()
    thread.join()
