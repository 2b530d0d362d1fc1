"""Build the page on which an aligner is tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._gradio import import_gradio
from ._limits import Limits
from ._model import load_model
from ._studio import Studio
from ._tabs import align_tab, classify_tab, search_tab

if TYPE_CHECKING:
    import gradio

DEFAULT_LABELS = ("tiger", "house cat", "pizza", "bicycle", "rocket", "umbrella", "rose", "guitar")
_INTRODUCTION = """\
# Images and words

Name images with words of your own, find images by a sentence, and teach it your own images.
What you send is used for your answer alone, on the computer that serves this page.
"""


def build_app(
    aligner: Any = None,
    *,
    images: Any = None,
    labels: Sequence[str] | None = None,
    limits: Limits | None = None,
) -> gradio.Blocks:
    """Build the page on which an aligner is tried: classify, search, align.

    Parameters
    ----------
    aligner : None, str, path-like or estimator, default=None
        None is the starter model; a saved folder or hub id is read with
        `sklearn_ape.load_pretrained`; ``"open_clip:..."`` is a CLIP model; or a fitted aligner,
        a Pipeline that ends in one, a classifier or a retriever. It takes images and texts.
    images : path-like, sequence of paths or None, default=None
        What is searched: a folder of images, or paths. None is a sample of OpenMoji.
    labels : sequence of str or None, default=None
        Names that stand in the page at the start. None takes those of a classifier, else some.
    limits : Limits or None, default=None
        Bounds on what visitors may send; None is the defaults.

    Returns
    -------
    page : gradio.Blocks
        Not started. `serve` starts it with all its safeguards; ``page.launch()`` alone has no
        limit on uploads.

    Raises
    ------
    ImportError
        When gradio is not installed.
    ValueError, NotFittedError
        When the aligner is not fitted, or takes features in place of images and texts.

    See Also
    --------
    serve : Builds and starts it.

    Examples
    --------
    >>> from sklearn_ape.app import build_app
    >>> build_app(labels=["cat", "dog"])
    Gradio Blocks instance: ...
    """
    import_gradio()
    limits = Limits() if limits is None else limits
    model = load_model(aligner)
    return page_of(Studio(model, images, limits), labels or model.labels or DEFAULT_LABELS)


def page_of(studio: Studio, labels: Sequence[str]) -> gradio.Blocks:
    """Return the page of a studio."""
    gr = import_gradio()
    limits = studio.limits
    with gr.Blocks(
        title="sklearn-ape",
        analytics_enabled=False,
        delete_cache=(min(600, limits.idle_seconds), limits.idle_seconds),
    ) as page:
        gr.Markdown(_INTRODUCTION)
        session = gr.State(None, time_to_live=limits.idle_seconds)
        with gr.Tab("Classify", id="classify"):
            classify_tab(gr, studio, session, labels)
        with gr.Tab("Search", id="search"):
            search_tab(gr, studio, session)
        with gr.Tab("Align your own", id="align"):
            align_tab(gr, studio, session)
    page.queue(max_size=limits.waiting, default_concurrency_limit=limits.at_once)
    return page
