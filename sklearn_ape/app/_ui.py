"""Gradio interface of the web app, and its texts."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..utils.escape import escape_markdown
from ._actions import METHOD_CHOICES, TEMPLATE_CHOICES
from ._limits import Limits, Report, in_words, reason
from ._model import Alignment, load_model
from ._session import AppService, Session
from ._uploads import thumbnail

if TYPE_CHECKING:
    import gradio


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
def show_errors(gr: Any) -> Iterator[None]:
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


def about_model(alignment: Alignment | None) -> str:
    """Say which aligner the visitor uses."""
    if alignment is None:
        return "You are using the **aligner this page came with**."
    return f"You are using **your own {alignment.method} aligner**, in all three tabs."


def about_alignment(alignment: Alignment | None, remark: str) -> str:
    """Say in Markdown what an alignment brought; the remark names a visitor's files as text."""
    if alignment is None:
        return "The page's own aligner is in use again."
    lines = []
    if alignment.recall:
        n = alignment.n_held_out
        lines += [
            f"### On {n} images held out",
            "How often is the right one of an image and its caption found first, or among the "
            "first five?",
            "",
            "| | first | first five |",
            "|---|---|---|",
            *(f"| {r.who} | {r.at_1:.0f} % | {r.at_5:.0f} % |" for r in alignment.recall),
            f"| chance | {100 / n:.0f} % | {min(100, 500 / n):.0f} % |",
            "",
            f"Your aligner was then fitted on all {alignment.n_pairs} images.",
        ]
        lines += ["", _judgement(alignment)]
    elif alignment.n_pairs:
        lines += [f"Aligned on all {alignment.n_pairs} images."]
    return "\n".join([*lines, "", alignment.remark, "", escape_markdown(remark)]).strip()


def _judgement(alignment: Alignment) -> str:
    """Say whether it was worth it, as far as so many images can tell."""
    before, after = alignment.recall[0].at_1, alignment.recall[-1].at_1
    share = (before + after) / 200
    error = 100 * math.sqrt(2 * share * (1 - share) / alignment.n_held_out)
    if abs(after - before) <= error:
        return "So few images show no clear difference between the two."
    if after > before:
        return "**Yours does better on these images.**"
    more = "" if alignment.with_head else " let it learn the class names as well,"
    return (
        f"**The first aligner does better on these images.** Send more of them,{more} or go "
        "back to the first one."
    )


_QUERIES = ("a wild animal", "a red fruit", "bad weather", "it has wheels")


_SHOWN_LABELS = 10


_FOUND = 12


def classify_tab(gr: Any, studio: AppService, session: Any, labels: Sequence[str]) -> None:
    """Fill the tab in which one image is named."""
    gr.Markdown("Drop an image and write the names it may have: how probable is each?")
    with gr.Row():
        with gr.Column(min_width=300):
            image = image_input(gr, "Image", "classify-image")
            if studio.examples:
                gr.Examples(
                    studio.examples,
                    image,
                    label="Or click one of these",
                    cache_examples=False,
                    elem_id="classify-examples",
                )
            names = gr.Textbox(
                _written(labels),
                label="Names",
                info="One a line, or with commas between them.",
                lines=2,
                max_lines=10,
                elem_id="classify-names",
            )
            button = gr.Button("Classify", variant="primary", elem_id="classify-button")
            with gr.Accordion("More choices", open=False):
                templates = gr.Dropdown(
                    list(TEMPLATE_CHOICES.items()),
                    value="simple",
                    label="Sentences that names are put into",
                )
                threshold = gr.Slider(
                    0, 1, 0, step=0.05, label="Below this probability it is unknown"
                )
        with gr.Column(min_width=300):
            answer = gr.Label(
                label="How probable", num_top_classes=_SHOWN_LABELS, elem_id="classify-answer"
            )
            verdict = gr.Markdown(elem_id="classify-verdict")

    def classify(
        mine: Session | None, image: Any, names: str, templates: str, threshold: float
    ) -> tuple[dict[str, float], str]:
        with show_errors(gr):
            found = studio.classify(mine or Session(), image, names, templates, threshold)
        return found.probabilities, found.verdict

    def classify_if_any(mine: Session | None, image: Any, *choices: Any) -> Any:
        return (None, "") if image is None else classify(mine, image, *choices)

    common: dict[str, Any] = {
        "inputs": [session, image, names, templates, threshold],
        "outputs": [answer, verdict],
        "concurrency_id": "answers",
        "concurrency_limit": studio.limits.at_once,
    }
    button.click(classify, api_name="classify", **common)
    names.submit(classify, api_visibility="private", **common)
    image.change(classify_if_any, api_visibility="private", show_progress_on=answer, **common)


def search_tab(gr: Any, studio: AppService, session: Any) -> None:
    """Fill the tab in which images are found."""
    title = escape_markdown(studio.images.title)
    about = gr.Markdown(f"Searching in {title}.", elem_id="search-about")
    with gr.Row():
        with gr.Column(min_width=300):
            words = gr.Textbox(
                label="What to look for", placeholder=_QUERIES[0], elem_id="search-words"
            )
            button = gr.Button("Search", variant="primary", elem_id="search-button")
            gr.Examples([[q] for q in _QUERIES], words, label="For instance", cache_examples=False)
            k = gr.Slider(1, studio.limits.found, _FOUND, step=1, label="How many")
            with gr.Accordion("Search by an image", open=False):
                image = image_input(gr, "Image", "search-image")
                gr.Markdown("It is used where there are no words above.")
            with gr.Accordion("Search in images of your own", open=False):
                archive = _zip_input(gr, studio, "Images", "search-zip")
                take = gr.Button("Search in these", elem_id="search-take")
        with gr.Column(min_width=300, scale=2):
            gallery = gr.Gallery(
                label="Found, the nearest first",
                show_label=False,
                columns=4,
                object_fit="contain",
                height="auto",
                buttons=[],
                interactive=False,
                elem_id="search-gallery",
            )

    def search(
        mine: Session | None,
        words: str,
        image: Any,
        k: int,
        progress: Any = gr.Progress(),  # noqa: B008 - how gradio hands it over
    ) -> tuple[Session, list[tuple[Any, str]]]:
        with show_errors(gr):
            session, found = studio.search(mine or Session(), words, image, k, report_to(progress))
            shown = [(thumbnail(f.image), f"{f.name} ({f.score:.2f})") for f in found]
        return session, shown

    def take_collection(
        mine: Session | None,
        archive: Any,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Session, str, None]:
        with show_errors(gr):
            session = studio.take_collection(mine or Session(), archive, report_to(progress))
        assert session.images is not None
        return session, f"Searching in {escape_markdown(session.images.title)}", None

    common: dict[str, Any] = {
        "inputs": [session, words, image, k],
        "outputs": [session, gallery],
        "concurrency_id": "answers",
        "concurrency_limit": studio.limits.at_once,
    }
    button.click(search, api_name="search", **common)
    words.submit(search, api_visibility="private", **common)
    take.click(
        take_collection,
        [session, archive],
        [session, about, gallery],
        api_name="take_collection",
        concurrency_id="long",
        concurrency_limit=1,
    )


def align_tab(gr: Any, studio: AppService, session: Any) -> None:
    """Fill the tab in which an aligner is made."""
    gr.Markdown(
        "Send captioned images as a zip: `cat.jpg` with its caption in `cat.txt` beside it, or "
        "a table `captions.csv` with the columns `file_name` and `caption`, or images whose "
        "file names say what they show. From some hundred images on it learns something. Your "
        "aligner then serves the other two tabs, for you alone."
    )
    with gr.Row():
        with gr.Column(min_width=300):
            archive = _zip_input(gr, studio, "Captioned images", "align-zip")
            method = gr.Radio(
                list(METHOD_CHOICES.items()),
                value="kernel",
                label="Method",
                elem_id="align-method",
            )
            with_head = gr.Checkbox(
                True,
                elem_id="align-head",
                label="Learn the image encoder's own class names as well",
                info="So that it does not forget what it knows. Takes a minute the first time.",
            )
            button = gr.Button("Align", variant="primary", elem_id="align-button")
        with gr.Column(min_width=300):
            using = gr.Markdown(about_model(None), elem_id="align-using")
            result = gr.Markdown(elem_id="align-result", container=True, min_height=150)
            download = gr.DownloadButton(
                "Download the aligner", interactive=False, elem_id="align-download"
            )
            back = gr.Button("Back to the first aligner", interactive=False)
            with gr.Accordion("Go on with an aligner that you downloaded", open=False):
                saved = _zip_input(gr, studio, "Aligner", "align-saved")
                load = gr.Button("Use it")

    outputs = [session, using, result, download, back]

    def shown(session: Session, remark: str) -> tuple[Any, ...]:
        file = None if session.download is None else session.download.path
        return (
            session,
            about_model(session.alignment),
            about_alignment(session.alignment, remark),
            gr.DownloadButton(value=file, interactive=file is not None),
            gr.Button(interactive=session.alignment is not None),
        )

    def align(
        mine: Session | None,
        archive: Any,
        method: str,
        with_head: bool,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        with show_errors(gr):
            report = report_to(progress)
            return shown(*studio.align(mine or Session(), archive, method, with_head, report))

    def load_saved(mine: Session | None, archive: Any) -> tuple[Any, ...]:
        with show_errors(gr):
            return shown(studio.take_aligner(mine or Session(), archive), "")

    def go_back(mine: Session | None) -> tuple[Any, ...]:
        return shown(studio.forget_alignment(mine or Session()), "")

    alone: dict[str, Any] = {"concurrency_id": "long", "concurrency_limit": 1}
    button.click(
        align,
        [session, archive, method, with_head],
        outputs,
        api_name="align",
        show_progress_on=result,
        **alone,
    )
    load.click(load_saved, [session, saved], outputs, api_name="take_aligner", **alone)
    back.click(go_back, [session], outputs, api_visibility="private")


def _written(labels: Sequence[str]) -> str:
    """Return names as one would write them into the field."""
    has_commas = any(mark in label for label in labels for mark in ",;")
    return "\n".join(labels) if has_commas else ", ".join(labels)


def _zip_input(gr: Any, studio: AppService, label: str, elem_id: str) -> Any:
    most = in_words(studio.limits.upload_bytes)
    return gr.File(
        label=f"{label}: a zip, at most {most}", file_types=[".zip"], height=140, elem_id=elem_id
    )


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
    return page_of(AppService(model, images, limits), labels or model.labels or DEFAULT_LABELS)


def page_of(studio: AppService, labels: Sequence[str]) -> gradio.Blocks:
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
