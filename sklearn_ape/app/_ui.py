"""Gradio interface of the web app, which imports Gradio."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..utils.messages import escape_markdown, import_optional
from ._limits import SessionHolder, format_size, join_labels, make_visitor_message
from ._model import (
    describe_alignment,
    describe_encoders,
    describe_model,
    list_methods,
    may_have_maps,
)
from ._uploads import make_thumbnail

if TYPE_CHECKING:
    import gradio

    from ._session import AppService, ImageCollection, SimilarityMap

# Gradio reads these variables when it is imported. With them, it sends no usage statistics.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
gr: Any = import_optional("gradio", extra="serve", purpose="The web app")

_N_LABELS_SHOWN = 5
DEFAULT_LABELS = ("tiger", "house cat", "pizza", "bicycle", "rocket", "umbrella", "rose", "guitar")

_INTRODUCTION = """\
# sklearn-ape demo: image search and zero-shot classification

Classify images by label names, search images by a text, and fit an aligner on your own images.
The page uses the **{name}** ({encoders}) until you fit your own aligner.
Uploads are processed on the computer that runs this page and deleted after {minutes} minutes.
Reloading the page also discards your aligner, images and corrections.
"""

_NO_RESULT = (
    "**No result yet.** Click one of the examples, or drop an image of your own. The most "
    f"probable labels, at most {_N_LABELS_SHOWN}, and the chance level are shown here."
)

_CLASSIFY_FAILURE = "**No result.** The message at the top says why."
_NO_IMAGE = "**There is no image yet.** Click one of the examples, or drop an image of your own."
_NEW_ALIGNER = "**No result of the current aligner yet.** Click Classify, or one of the examples."
_NEW_LABELS = "**No result for the changed labels yet.** Click Classify, or one of the examples."

_PROBABILITIES_NOTE = (
    "The probabilities assume that exactly one of the labels is correct, so they add up to 100% "
    "and change with the labels. They are not calibrated for your images: 90% does not mean that "
    "9 of 10 answers are correct."
)

# The image is part of the text, so that it is not stored.
_MAP = """\
<figure style="margin: 0">
<img src="data:image/jpeg;base64,{data}" style="width: 100%; max-width: 28rem; margin: 0"
 alt="Map of the image for {label}, highest at the {position}">
<figcaption>Red parts of the image are similar to <b>{label}</b>, blue parts are not. The map is
coarse, and a correction of the answer does not change it.</figcaption>
</figure>
"""

_SEARCH_EXPLANATION = (
    "The results are shown here, the most similar first, with the cosine similarity of query and "
    "image. It is not a probability: compare it among the results of one query only. Until the "
    "first search, some of the images are shown."
)

_ALIGN_EXPLANATION = (
    "**You have not fitted an aligner yet.** After the fit, a table shows how often the initial "
    "aligner and your aligner find the correct caption or image among held-out images, next to "
    "the chance level. You can download your aligner, and it is used in the other tabs."
)

# Descriptions and values of choices.
_TEMPLATE_CHOICES = (
    ("simple phrases around each label", "simple"),
    ("for drawings: an icon of a ..., clip art of a ...", "drawing"),
    ("for photographs: a photo of a ...", "photo"),
    ("the seven templates of CLIP", "clip"),
    ("none: the labels themselves (for whole sentences)", "none"),
    ("those of the served classifier", "model"),
)
_METHOD_CHOICES = (
    ("extend: adds your pairs to the initial aligner, the best for few pairs", "extend"),
    ("kernel: closed form, from your pairs only", "kernel"),
    ("ape: small networks, trained by gradient descent", "ape"),
    ("cca: linear, the fastest", "cca"),
)

_QUERIES = ["a wild animal", "a red fruit", "bad weather", "it has wheels"]
_GALLERY: dict[str, Any] = {"show_label": False, "object_fit": "contain", "height": "auto"}
_GALLERY |= {"buttons": [], "interactive": False, "elem_classes": "captions-below"}
# Gradio shows the progress of a function with a parameter that has this default.
_PROGRESS = gr.Progress()
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "long", "concurrency_limit": 1}
_N_EXAMPLES = 6
_N_RESULTS = 12


@contextmanager
def show_errors() -> Iterator[None]:
    """Show errors as messages on the page, see `make_visitor_message`."""
    try:
        yield
    except Exception as error:
        # Gradio renders messages as HTML, and a message may contain the name of an uploaded file.
        message = html.escape(make_visitor_message(error), quote=False)
        # Without a duration, the message would disappear after ten seconds.
        raise gr.Error(message, duration=None, print_exception=False, title="Error") from error


def _get_visitor() -> str | None:
    """Return Gradio's name of the visitor whose request is processed."""
    return getattr(gr.context.LocalContext.request.get(None), "session_hash", None)


def _add_image_input(elem_id: str) -> Any:
    """Return an image field that passes the path of the uploaded file."""
    field = gr.Image(
        label="Image",
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=230,
        elem_id=elem_id,
        buttons=[],
    )
    # Gradio opens the file even for type="filepath" and fails without a reason if it is not an
    # image. It has no option against this, and a subclass would make it write a .pyi file next
    # to this module.
    field.preprocess = _get_uploaded_path
    return field


def _get_uploaded_path(payload: Any) -> Any:
    """Return the path of an uploaded image; raise `gr.Error` for other files of the server."""
    if payload is None:
        return None
    # Gradio itself checks only requests that give the type of the file.
    gr.processing_utils.check_all_files_in_cache(payload.model_dump())
    return payload.path


def classify_tab(service: AppService, session: Any, labels: Sequence[str]) -> list[Any]:
    """Add the elements of the tab that classifies an image; return those of its last result."""
    gr.Markdown("Drop an image and enter label names: the page shows the most probable labels.")
    with gr.Row():
        with gr.Column(min_width=300):
            image = _add_image_input("classify-image")
            has_examples = bool(service.examples)  # not if none of the images can be read
            gr.Markdown("Examples: click an image to classify it.", visible=has_examples)
            examples = gr.Gallery(
                service.examples[:_N_EXAMPLES],
                label="Examples",
                visible=has_examples,
                columns=_N_EXAMPLES,
                allow_preview=False,
                elem_id="classify-examples",
                **_GALLERY,
            )
            names = gr.Textbox(
                join_labels(labels),
                label="Labels",
                info="The answer is one of these labels, in English unless the aligner was "
                "trained on texts of other languages. Separate them by commas, or write one "
                "per line. Shift+Enter classifies.",
                lines=2,
                max_lines=10,
                elem_id="classify-names",
            )
            button = gr.Button("Classify", variant="primary", elem_id="classify-button")
            with gr.Accordion("More options", open=False):
                sets = service.templates
                choices = [choice for choice in _TEMPLATE_CHOICES if choice[1] in sets]
                templates = gr.Dropdown(
                    choices, value=service.initial_templates, label="Prompt templates"
                )
                text = 'Answer "unknown" below this probability (0: never)'
                threshold = gr.Slider(0, 1, service.initial_threshold, step=0.01, label=text)
        with gr.Column(min_width=300):
            summary = gr.Markdown(_NO_RESULT, container=True, elem_id="classify-verdict")
            probabilities = gr.Label(
                label="Most probable labels",
                num_top_classes=_N_LABELS_SHOWN,
                show_heading=False,
                elem_id="classify-answer",
            )
            gr.Markdown(_PROBABILITIES_NOTE, elem_classes="note")
            with gr.Accordion(
                "Where in the image", open=False, visible=False, elem_id="classify-where"
            ) as where:
                similarity_map = gr.HTML(elem_id="classify-map", min_height=40)
            with gr.Column(visible=False) as correction:
                label = gr.Dropdown(
                    [],
                    label="This is wrong, it is ...",
                    info="Also changes the answers for similar images, for these labels, until "
                    "you close the page.",
                    elem_id="classify-correct-label",
                )
                # Gradio's error about a label that is no longer listed does not say what to do.
                label.preprocess = lambda value: value
                correct_button = gr.Button("Correct the answer", elem_id="classify-correct")
                undo_button = gr.Button(
                    "Undo the last correction", visible=False, elem_id="classify-undo"
                )

    def classify(
        holder: SessionHolder, image: Any, names: str, templates: str, threshold: float
    ) -> tuple[dict[str, float] | None, str]:
        if image is None:
            return None, _NO_IMAGE
        with show_errors():
            result = service.classify(holder.open(), image, names, templates, threshold)
        return result.probabilities, result.summary

    def correct(
        holder: SessionHolder, image: Any, names: str, templates: str, threshold: float, label: str
    ) -> tuple[Any, ...]:
        with show_errors():
            holder.change(lambda session: service.correct(session, image, names, templates, label))
        return holder, *classify(holder, image, names, templates, threshold)

    def undo(
        holder: SessionHolder, image: Any, names: str, templates: str, threshold: float
    ) -> tuple[Any, ...]:
        with show_errors():
            holder.change(service.undo_correction)
        return holder, *classify(holder, image, names, templates, threshold)

    def update_where(holder: SessionHolder, answer: Any) -> Any:
        is_shown = answer is not None and may_have_maps(service.get_aligner(holder.session))
        return gr.Accordion(visible=is_shown)

    def locate(holder: SessionHolder, image: Any, names: str, templates: str) -> str:
        with show_errors():
            return _format_map(service.locate(holder.open(), image, names, templates))

    def update_correction(holder: SessionHolder, image: Any, names: str) -> tuple[Any, Any, Any]:
        return (
            gr.Dropdown(choices=service.parse_labels(names)),  # keeps a label that was chosen
            gr.Column(visible=image is not None),
            gr.Button(visible=holder.session.can_undo),
        )

    def select_example(event: gr.SelectData) -> Any:
        return service.examples[event.index][0]

    inputs, outputs = [session, image, names, templates, threshold], [probabilities, summary]
    options: dict[str, Any] = {"show_progress_on": probabilities}
    options |= {"concurrency_id": "answers", "concurrency_limit": service.limits.at_once}
    image.change(None, None, label, js="() => null")  # forgets the label of the previous image
    # One listener for all triggers, so that the result shown last is that of the last image.
    triggers = [button.click, names.submit, image.change, templates.change, threshold.change]
    latest = {"trigger_mode": "always_last", **options}
    classified = gr.on(triggers, classify, inputs, outputs, api_name="classify", **latest)
    changed = [session, *outputs]
    corrected = correct_button.click(
        correct, [*inputs, label], changed, api_name="correct", **options
    )
    undone = undo_button.click(undo, inputs, changed, api_name="undo_correction", **options)
    options["api_visibility"] = "private"
    # Not to show the result of another image or of other labels.
    classified.failure(lambda: (None, _CLASSIFY_FAILURE), None, outputs, **options)
    names.change(None, None, outputs, js=f"() => [{{}}, '{_NEW_LABELS}']")
    shown = [session, image, names], [label, correction, undo_button]
    for event in (classified, corrected, undone):
        event.success(update_correction, *shown, **options)
    names.blur(update_correction, *shown, **options)
    # In the browser: a late response would close the section that a visitor has opened by then.
    close = "() => [{open: false, __type__: 'update'}, '']"
    probabilities.change(None, None, [where, similarity_map], js=close)
    probabilities.change(update_where, [session, probabilities], where, **options)
    options["show_progress_on"] = similarity_map
    where.expand(locate, [session, image, names, templates], similarity_map, **options)
    # For the keyboard: the dropdown drops the focus when a label is chosen, and the button to undo
    # disappears with the focus.
    focus = "document.getElementById('classify-correct').focus()"
    label.change(None, label, None, js=f"(chosen) => {{ if (chosen) {focus}; }}")
    undone.success(None, None, None, js=f"() => {focus}")
    examples.select(select_example, None, image, api_visibility="private")
    return [*outputs, undo_button]


def _format_map(result: SimilarityMap) -> str:
    file = io.BytesIO()
    result.image.save(file, "JPEG", quality=90)
    data = base64.b64encode(file.getvalue()).decode()
    return _MAP.format(data=data, label=html.escape(result.label), position=result.position)


def search_tab(service: AppService, session: Any) -> Any:
    """Add the elements of the tab that searches images; return its gallery."""
    # Not the text itself: until the images are embedded, their number includes unreadable files.
    title = gr.Markdown(lambda: _describe_images(service.images), elem_id="search-about")
    with gr.Row():
        with gr.Column(min_width=300):
            query = gr.Textbox(
                label="Query",
                info="In English, unless the aligner was trained on texts of other languages.",
                placeholder=_QUERIES[0],
                elem_id="search-words",
            )
            button = gr.Button("Search", variant="primary", elem_id="search-button")
            queries = gr.Examples(_QUERIES, query, cache_examples=False, elem_id="search-examples")
            k = gr.Slider(1, service.limits.found, _N_RESULTS, step=1, label="Number of results")
            with gr.Accordion("Search by an image", open=False):
                image = _add_image_input("search-image")
                gr.Markdown(
                    "An image that you drop here replaces the query above. Empty the query to "
                    "search by the same image again."
                )
            with gr.Accordion("Search your own images", open=False):
                archive = _add_zip_input(service, "Images", "search-zip")
                load_button = gr.Button("Search these images", elem_id="search-take")
                reset_button = gr.Button("Search the initial images", elem_id="search-reset")
        with gr.Column(min_width=300, scale=2):
            gr.Markdown(_SEARCH_EXPLANATION, elem_classes="note")
            gallery = gr.Gallery(
                service.examples,
                label="Results, the most similar first",
                columns=4,
                elem_id="search-gallery",
                **_GALLERY,
            )

    def search(
        holder: SessionHolder, query: str, image: Any, k: int, progress: Any = _PROGRESS
    ) -> tuple[SessionHolder, list[tuple[Any, str]]]:
        with show_errors():
            session = holder.open()
            indexed, results = service.search(session, query, image, k, progress)
            holder.update(session, indexed)
            # z writes 0.00 instead of -0.00.
            gallery = [(make_thumbnail(r.image), f"{r.name} ({r.score:z.2f})") for r in results]
        return holder, gallery

    def describe(holder: SessionHolder) -> str:
        return _describe_images(holder.session.images or service.images)

    def show_images(holder: SessionHolder) -> tuple[SessionHolder, str, list[Any]]:
        return holder, describe(holder), service.list_examples(holder.session)

    def load_images(
        holder: SessionHolder, archive: Any, progress: Any = _PROGRESS
    ) -> tuple[SessionHolder, str, list[Any]]:
        with show_errors():
            holder.change(lambda session: service.load_images(session, archive, progress))
        return show_images(holder)

    def reset_images(holder: SessionHolder) -> tuple[SessionHolder, str, list[Any]]:
        with show_errors():
            holder.change(service.reset_images)
        return show_images(holder)

    # With both, `search` would use the text and ignore the image.
    image.upload(lambda: "", None, query, api_visibility="private", show_progress="hidden")
    inputs, outputs = [session, query, image, k], [session, gallery]
    options = {"concurrency_id": "answers", "concurrency_limit": service.limits.at_once}
    triggers = [button.click, query.submit]
    searched = gr.on(triggers, search, inputs, outputs, api_name="search", **options)
    options["api_visibility"] = "private"
    clicked = queries.load_input_event.then(search, inputs, outputs, **options)
    for event in (searched, clicked):
        event.success(describe, session, title, **options)
    inputs, outputs = [session, archive], [session, title, gallery]
    options = {"show_progress_on": gallery, **_ONE_AT_A_TIME}
    load_button.click(load_images, inputs, outputs, api_name="load_images", **options)
    reset_button.click(reset_images, [session], outputs, api_visibility="private")
    return gallery


def align_tab(service: AppService, session: Any, answer: list[Any], gallery: Any) -> None:
    """Add the elements of the tab that fits an aligner, after which other results are outdated."""
    gr.Markdown(
        "Upload captioned images as a zip file. Put the caption of `cat.jpg` in `cat.txt` next to "
        "it, or all captions in a table `captions.csv` with the columns `file_name` and "
        "`caption`, or use file names that describe the images. About a hundred images "
        "are enough to extend the initial aligner; the other methods need about a thousand. All "
        "three tabs will use your aligner; other visitors will not."
    )
    with gr.Row():
        with gr.Column(min_width=300):
            archive = _add_zip_input(service, "Captioned images", "align-zip")
            names = list_methods(service.model.aligner)
            methods = [choice for choice in _METHOD_CHOICES if choice[1] in names]
            method = gr.Radio(methods, value=names[0], label="Method", elem_id="align-method")
            with_head = gr.Checkbox(
                True,
                elem_id="align-head",
                label="Also train on the class names of the image encoder",
                info="Keeps the encoder's ImageNet classes; helps on small datasets. Takes a "
                "minute the first time. Not used by extend.",
            )
            button = gr.Button("Align", variant="primary", elem_id="align-button")
        with gr.Column(min_width=300):
            model = gr.Markdown(describe_model(None), elem_id="align-using")
            result = gr.Markdown(
                _ALIGN_EXPLANATION, elem_id="align-result", container=True, min_height=150
            )
            download = gr.DownloadButton(
                "Download the aligner", interactive=False, elem_id="align-download"
            )
            reset_button = gr.Button("Reset to the initial aligner", interactive=False)
            with gr.Accordion("Load a downloaded aligner", open=False):
                saved = _add_zip_input(service, "Aligner", "align-saved")
                load_button = gr.Button("Load")

    outputs = [session, model, result, download, reset_button, *answer, gallery]

    def show(holder: SessionHolder, remark: str = "") -> tuple[Any, ...]:
        session = holder.session
        file = None if session.download is None else session.download.path
        return (
            holder,
            describe_model(session.alignment),
            describe_alignment(session.alignment, remark),
            gr.DownloadButton(value=file, interactive=file is not None),
            gr.Button(interactive=session.alignment is not None),
            # Results and corrections of the previous aligner.
            *(None, _NEW_ALIGNER, gr.Button(visible=False), service.list_examples(session)),
        )

    def align(
        holder: SessionHolder,
        archive: Any,
        method: str,
        with_head: bool,
        progress: Any = _PROGRESS,
    ) -> tuple[Any, ...]:
        with show_errors():
            session = holder.open()
            aligned, remark = service.align(session, archive, method, with_head, progress)
            holder.update(session, aligned)
            return show(holder, remark)

    def load_aligner(holder: SessionHolder, archive: Any) -> tuple[Any, ...]:
        with show_errors():
            holder.change(lambda session: service.load_aligner(session, archive))
            return show(holder)

    def reset_aligner(holder: SessionHolder) -> tuple[Any, ...]:
        with show_errors():
            holder.change(service.reset_aligner)
            return show(holder)

    inputs = [session, archive, method, with_head]
    options = {"show_progress_on": result, **_ONE_AT_A_TIME}
    button.click(align, inputs, outputs, api_name="align", **options)
    load_button.click(load_aligner, [session, saved], outputs, api_name="load_aligner", **options)
    options = {"show_progress_on": result, "api_visibility": "private"}
    was_reset = reset_button.click(reset_aligner, [session], outputs, **options)
    # For the keyboard: the button is disabled then, and loses the focus.
    was_reset.success(None, None, None, js="() => document.getElementById('align-button').focus()")


def _describe_images(images: ImageCollection) -> str:
    return f"Images to search: {len(images.images)} {escape_markdown(images.title)}"


def _add_zip_input(service: AppService, label: str, elem_id: str) -> Any:
    label = f"{label}: zip, up to {format_size(service.limits.upload_bytes)}"
    return gr.File(label=label, file_types=[".zip"], height=190, elem_id=elem_id)


def build_page(service: AppService, labels: Sequence[str] | None) -> gradio.Blocks:
    """Return the page of a service, with the initial labels."""
    limits = service.limits
    with gr.Blocks(
        title="sklearn-ape",
        analytics_enabled=False,
        delete_cache=(min(600, limits.idle_seconds), limits.idle_seconds),
    ) as page:
        introduction = _INTRODUCTION.format(
            name=escape_markdown(service.model.name),
            encoders=escape_markdown(describe_encoders(service.model.aligner)),
            minutes=max(1, limits.idle_seconds // 60),
        )
        gr.Markdown(introduction)
        holder = SessionHolder(service.initial_session, limits, _get_visitor)
        session = gr.State(holder, time_to_live=limits.idle_seconds)
        with gr.Tab("Classify", id="classify"):
            service.labels = list(labels or service.labels or DEFAULT_LABELS)
            answer = classify_tab(service, session, service.labels)
        with gr.Tab("Search", id="search"):
            gallery = search_tab(service, session)
        with gr.Tab("Align your own", id="align"):
            align_tab(service, session, answer, gallery)
    page.queue(max_size=limits.waiting, default_concurrency_limit=limits.at_once)
    return page
