"""Gradio, and the few things of it that every part of the page needs."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._progress import Report
from ._refusal import reason


def import_gradio() -> Any:
    """Return gradio, told to send nothing about its use anywhere."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            'The page needs gradio. Install it with: pip install "sklearn-ape[serve]"'
        ) from error
    return gradio


@contextmanager
def told(gr: Any) -> Iterator[None]:
    """Show what goes wrong inside as a message to the visitor, without its inside."""
    try:
        yield
    except Exception as error:
        # Gradio renders messages as HTML; names in them are the visitor's, or a stranger's.
        message = html.escape(reason(error), quote=False)
        raise gr.Error(message, print_exception=False, title="Not done") from error


def image_input(gr: Any, label: str, elem_id: str) -> Any:
    """Return a field for an image that hands over the file as it was sent.

    Gradio would decode it, with an error of its own for a file that is no image.
    """
    field = gr.Image(
        label=label,
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=230,
        elem_id=elem_id,
        buttons=[],
    )
    field.preprocess = lambda payload: None if payload is None else payload.path
    return field


def report_to(progress: Any) -> Report:
    """Return what moves a bar in the page."""
    return lambda share, what: progress(min(max(share, 0.0), 1.0), desc=what)
