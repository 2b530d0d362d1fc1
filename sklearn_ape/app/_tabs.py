"""The three tabs: their fields, and what happens when a button is pressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._escape import escape_markdown
from ._alignment import METHOD_CHOICES
from ._classify import TEMPLATE_CHOICES
from ._gradio import image_input, report_to, told
from ._images import thumbnail
from ._limits import in_words
from ._studio import Session, Studio
from ._words import about_alignment, about_model

_QUERIES = ("a wild animal", "a red fruit", "bad weather", "it has wheels")
_SHOWN_LABELS = 10
_FOUND = 12


def classify_tab(gr: Any, studio: Studio, session: Any, labels: Sequence[str]) -> None:
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
        with told(gr):
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


def search_tab(gr: Any, studio: Studio, session: Any) -> None:
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
        with told(gr):
            session, found = studio.search(mine or Session(), words, image, k, report_to(progress))
            shown = [(thumbnail(f.image), f"{f.name} ({f.score:.2f})") for f in found]
        return session, shown

    def take_collection(
        mine: Session | None,
        archive: Any,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Session, str, None]:
        with told(gr):
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


def align_tab(gr: Any, studio: Studio, session: Any) -> None:
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
        with told(gr):
            report = report_to(progress)
            return shown(*studio.align(mine or Session(), archive, method, with_head, report))

    def load_saved(mine: Session | None, archive: Any) -> tuple[Any, ...]:
        with told(gr):
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


def _zip_input(gr: Any, studio: Studio, label: str, elem_id: str) -> Any:
    most = in_words(studio.limits.upload_bytes)
    return gr.File(
        label=f"{label}: a zip, at most {most}", file_types=[".zip"], height=140, elem_id=elem_id
    )
