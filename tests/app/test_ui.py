"""The page of the web app: its first state, errors and descriptions of aligners."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from sklearn_ape import CrossModalRetriever, KernelAligner, ZeroShotClassifier, load_starter
from sklearn_ape.app import Limits, build_app
from sklearn_ape.app._limits import UserError, join_labels
from sklearn_ape.app._model import (
    Alignment,
    Model,
    Recall,
    describe_alignment,
    describe_encoders,
    load_model,
)
from sklearn_ape.app._session import AppService, _summarize
from tests.app.conftest import PixelEncoder, TrigramEncoder
from tests.app.visitor import Visitor


def build_page(*arguments):
    """Build a page; Gradio is not imported when tests are collected."""
    from sklearn_ape.app import _ui

    return _ui.build_page(*arguments)


@pytest.fixture(scope="module")
def config(fast_aligner, captioned_images):
    """Return the components and events of a page."""
    service = AppService(
        Model(fast_aligner, name="my_model"), captioned_images.images[:40], Limits()
    )
    return build_page(service, None).get_config_file()


@pytest.fixture(scope="module")
def components(config):
    """Return the properties of all components of a page."""
    return [component["props"] for component in config["components"]]


@pytest.fixture(scope="module")
def by_id(components):
    return {props["elem_id"]: props for props in components if props.get("elem_id")}


class TestFirstState:
    @pytest.mark.parametrize(
        ("elem_id", "text"),
        [("classify-verdict", "No result yet"), ("align-result", "not fitted an aligner yet")],
    )
    def test_empty_results_are_explained(self, by_id, elem_id, text):
        assert text in by_id[elem_id]["value"]
        assert "chance level" in by_id[elem_id]["value"]

    def test_gallery_shows_images_before_the_first_search(self, by_id):
        captions = [entry["caption"] for entry in by_id["search-gallery"]["value"]]
        assert len(captions) == 12
        assert all(captions)

    def test_query_image_replaces_the_query_text(self, config):
        """With both, the text would be used and the image ignored."""
        number = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
        (event,) = (
            event
            for event in config["dependencies"]
            if event["targets"] == [(number["search-image"], "upload")]
        )
        assert event["outputs"] == [number["search-words"]]

    def test_examples_have_names(self, by_id):
        captions = [entry["caption"] for entry in by_id["classify-examples"]["value"]]
        assert len(captions) == 6
        assert all(captions)

    @pytest.mark.parametrize("elem_id", ["classify-names", "search-words"])
    def test_language_of_texts_is_explained(self, by_id, elem_id):
        assert "in english unless" in by_id[elem_id]["info"].lower().replace(",", "")

    def test_meaning_of_scores_is_explained(self, components):
        texts = " ".join(str(props.get("value")) for props in components)
        assert "not calibrated" in texts
        assert "cosine similarity" in texts

    def test_model_and_encoders_are_named(self, components):
        texts = " ".join(str(props.get("value")) for props in components)
        assert "**my_model** (image encoder PixelEncoder, text encoder TrigramEncoder)" in texts


class TestModelName:
    def test_default_model_is_the_starter_model(self):
        model = load_model(None)
        assert model.name == "starter model"
        assert describe_encoders(model.aligner) == (
            "image encoder efficientnet_lite0, text encoder all-MiniLM-L6-v2"
        )

    def test_folder_is_named_without_its_parents(self, tmp_path):
        load_starter().save_pretrained(tmp_path / "my-aligner")
        assert load_model(tmp_path / "my-aligner").name == "my-aligner"

    def test_folder_of_an_encoder_is_named_without_its_parents(self, tmp_path):
        image_encoder = PixelEncoder()
        image_encoder.model_name = str(tmp_path)
        aligner = KernelAligner()
        aligner.image_encoder_, aligner.text_encoder_ = image_encoder, TrigramEncoder()
        assert describe_encoders(aligner) == (
            f"image encoder {tmp_path.name}, text encoder TrigramEncoder"
        )

    def test_classifier_is_named_by_its_aligner(self, fast_aligner):
        classifier = ZeroShotClassifier(["cat", "dog"], aligner=fast_aligner)
        assert load_model(classifier).name == "KernelAligner"

    @pytest.mark.parametrize(
        "estimator", [ZeroShotClassifier(["cat", "dog"]), CrossModalRetriever()]
    )
    def test_default_aligner_of_classifier_is_the_starter_model(self, estimator):
        assert load_model(estimator).name == "starter model"


def test_messages_of_errors_are_escaped_for_html():
    from sklearn_ape.app._ui import gr, show_errors

    with pytest.raises(gr.Error, match="&lt;img onerror=x&gt;'"), show_errors():
        raise UserError("'<img onerror=x>'")


def alignment_text(before, after, n_held_out, with_head=False):
    recall = [Recall("before", before, 90), Recall("after", after, 90)]
    alignment = Alignment(None, "kernel", 500, n_held_out, recall, "", with_head)
    return describe_alignment(alignment, "Captions come from files.")


class TestSummarize:
    def test_small_probability_is_not_rounded_to_zero(self):
        """Of 500 labels, the most probable one had 0%, less than the chance of 0.2%."""
        probabilities = dict.fromkeys(map(str, range(500)), 0.0019) | {"7": 0.0044}
        probabilities = dict(sorted(probabilities.items(), key=lambda item: -item[1]))
        summary = _summarize(ZeroShotClassifier([*probabilities]), probabilities, 0)
        assert summary == "**7**, 0.44%, among 500 labels (chance 0.2%)."

    def test_probability_and_threshold_are_not_rounded_to_the_same_number(self):
        probabilities = {"cat": 0.598, "dog": 0.402}
        summary = _summarize(ZeroShotClassifier([*probabilities]), probabilities, 0.6)
        assert "has 59.8%, less than the threshold of 60%" in summary
        probabilities = {"cat": 0.99996, "dog": 0.00004}
        summary = _summarize(ZeroShotClassifier([*probabilities]), probabilities, 1)
        assert "has just under 100%, less than the threshold of 100%" in summary


class TestDescribeAlignment:
    @pytest.mark.parametrize(
        ("before", "after", "n", "verdict"),
        [
            (57, 55, 22, "within the standard error"),
            (57, 30, 100, "The initial aligner is better"),
            (30, 57, 100, "Your aligner is better"),
            (0, 0, 20, "within the standard error"),
            (100, 100, 20, "within the standard error"),
        ],
    )
    def test_difference_within_standard_error_is_not_reported(self, before, after, n, verdict):
        assert verdict in alignment_text(before, after, n)

    def test_table_contains_chance_level(self):
        text = alignment_text(20, 40, 50)
        for row in (
            "| before | 20 % | 90 % |",
            "| after | 40 % | 90 % |",
            "| chance | 2 % | 10 % |",
        ):
            assert row in text
        assert "fitted on all 500" in text

    def test_class_names_are_advised_if_not_used(self):
        assert "class names" in alignment_text(90, 10, 100)
        assert "class names" not in alignment_text(90, 10, 100, with_head=True)

    def test_reset_is_reported(self):
        assert "in use again" in describe_alignment(None, "")

    def test_file_names_are_escaped_in_remark(self):
        remark = "1 image was left out: '![x](http://evil/x.png)<b>', is empty"
        text = describe_alignment(None, "") + describe_alignment(
            Alignment(None, "kernel", 5, 0, [], "", False), remark
        )
        assert r"\!" not in text
        assert r"!\[x\](http\://evil/x\.png)\<b\>" in text


@pytest.mark.parametrize("is_served", [False, True])
def test_initial_labels_with_several_commas_are_not_split(
    fast_aligner, captioned_images, is_served
):
    """Otherwise, the corrections of a served few-shot classifier would not be used."""
    labels = ["cock, rooster, male", "hen"]
    model = Model(fast_aligner, labels=labels if is_served else None)
    service = AppService(model, captioned_images.images[:4], Limits())
    build_page(service, None if is_served else labels)
    assert service.parse_labels(join_labels(labels)) == labels
    assert service.parse_labels(f"{join_labels(labels)}\nduck") == [*labels, "duck"]
    assert service.parse_labels("cat, dog, car\nhen") == ["cat", "dog", "car", "hen"]


def test_undecodable_file_names_are_escaped(fast_aligner, captioned_images, tmp_path):
    """Gradio cannot send them, so that the page and each search failed."""
    for row in range(2):
        folder = tmp_path / os.fsdecode(b"caf\xe9 %d" % row)
        folder.mkdir()
        shutil.copy(captioned_images.images[row], folder / os.fsdecode(b"\xe9.png"))
    service = AppService(Model(fast_aligner), tmp_path, Limits())
    assert service.labels == [r"caf\xe9 0", r"caf\xe9 1"]
    assert service.images.names == [r"\xe9"] * 2
    config = build_page(service, None).get_config_file()
    assert json.dumps(config, default=str, ensure_ascii=False).encode()


def test_examples_are_hidden_if_no_image_can_be_read(fast_aligner, captioned_images, tmp_path):
    """There was a heading above an empty gallery."""
    (tmp_path / "broken.png").write_bytes(b"")
    for images, is_shown in ((tmp_path, False), (captioned_images.images[:2], True)):
        page = build_page(AppService(Model(fast_aligner), images, Limits()), None)
        elements = [component["props"] for component in page.get_config_file()["components"]]
        gallery = next(e for e in elements if e.get("elem_id") == "classify-examples")
        heading = next(e for e in elements if "Examples: click" in str(e.get("value")))
        assert gallery["visible"] is heading["visible"] is is_shown


@pytest.mark.parametrize("name", ["classify", "load_images"])
def test_mounted_page_rejects_server_files(name, fast_aligner, captioned_images, captioned_zip):
    """Gradio checks the files of a request only if the page was launched."""
    import gradio
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    page = build_app(fast_aligner, images=captioned_images.images[:5])
    app = gradio.mount_gradio_app(FastAPI(), page, path="/page")
    visitor = Visitor("http://testserver/page/")
    with TestClient(app, base_url="http://testserver/page/") as visitor.http:
        path = captioned_images.images[0] if name == "classify" else captioned_zip(0, 3)
        more = ("cat, dog", "simple", 0) if name == "classify" else ()
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        assert visitor.answer(name, file, *more)[0] == "error"
        (uploaded,) = visitor.upload(Path(path).read_bytes(), Path(path).name).json()
        assert visitor.answer(name, file | {"path": uploaded}, *more)[0] == "complete"


def test_invalid_initial_labels_raise(fast_aligner):
    """A single text was split into its characters."""
    with pytest.raises(ValueError, match=r"labels is a single label, .* Pass a list"):
        build_app(fast_aligner, labels="cat")
    for label in (1, None, " "):
        with pytest.raises(ValueError, match=rf"labels has {label!r}, which is not a text"):
            build_app(fast_aligner, labels=["cat", label])


def test_initial_labels_may_be_an_array(fast_aligner, captioned_images):
    images = captioned_images.images[:5]
    page = build_app(fast_aligner, images=images, labels=np.array(["cat", "dog"]))
    values = [block.value for block in page.blocks.values() if hasattr(block, "value")]
    assert "cat, dog" in values
