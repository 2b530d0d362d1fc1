"""Start the page, with its safeguards."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ._gate import Gate
from ._gradio import import_gradio
from ._limits import Limits
from ._model import load_model
from ._page import DEFAULT_LABELS, page_of
from ._studio import Session, Studio

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
        studio = Studio(model, images, limits)
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

    gate = [Middleware(Gate, limits=limits, folder=folder)]
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

    def __init__(self, studio: Studio) -> None:
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
