"""The map of where an image is similar to its most probable label."""

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone

from sklearn_ape import (
    APEAligner,
    CCAAligner,
    CLIPAligner,
    KernelAligner,
    ZeroShotClassifier,
    load_starter,
)
from sklearn_ape.app import Limits
from sklearn_ape.app._limits import UserError, make_visitor_message
from sklearn_ape.app._model import load_model, may_have_maps
from sklearn_ape.app._session import AppService, Session, SimilarityMap
from sklearn_ape.datasets import load_openmoji
from sklearn_ape.features import MemoryFeatureCache
from tests.app.conftest import ignore_progress


@pytest.fixture(scope="module")
def collage(tmp_path_factory):
    """Return the path of an image with a cat on the left and a cup on the right."""
    data = load_openmoji()
    canvas = Image.new("RGB", (448, 448), "white")
    for column, name in enumerate(("cat", "hot beverage")):
        drawing = Image.open(data.images[data.captions.index(name)]).convert("RGBA")
        drawing = drawing.resize((224, 224))
        canvas.paste(drawing, (224 * column, 112), drawing)
    path = tmp_path_factory.mktemp("collage") / "collage.png"
    canvas.save(path)
    return str(path)


@pytest.fixture
def make_service(captioned_images):
    def make(estimator):
        return AppService(load_model(estimator), captioned_images.images[:4], Limits())

    return make


def compare_halves(image):
    """Return by how much the right half is redder than the left half."""
    pixels = np.asarray(image).astype(int)
    redness = pixels[:, :, 0] - pixels[:, :, 2]
    middle = pixels.shape[1] // 2
    return redness[:, middle:].mean() - redness[:, :middle].mean()


class TestLocate:
    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("templates", ["none", "simple"])
    def test_label_is_located(self, make_service, collage, templates):
        service = make_service(None)
        cat = service.locate(Session(), collage, "a cat, a flower", templates)
        cup = service.locate(Session(), collage, "a cup of coffee, a flower", templates)
        assert (cat.label, cup.label) == ("a cat", "a cup of coffee")
        assert "left" in cat.position
        assert "right" in cup.position
        assert compare_halves(cat.image) < -5
        assert compare_halves(cup.image) > 5

    def test_names_of_a_served_classifier_are_used(self, make_service, collage):
        labels = {"first": ["a cup of coffee", "a cup"], "second": "an airplane"}
        result = make_service(ZeroShotClassifier(labels)).locate(
            Session(), collage, "first, second", "simple"
        )
        assert result.label == "first"
        assert compare_halves(result.image) > 5

    @pytest.mark.exhaustive
    def test_extension_of_a_visitor_has_maps(self, make_service, collage, captioned_zip):
        service = make_service(None)
        archive = captioned_zip(0, 9)
        session, _ = service.align(Session(), archive, "extend", False, ignore_progress)
        result = service.locate(session, collage, "a cup of coffee, a mug of tea", "simple")
        assert compare_halves(result.image) > 5

    def test_features_are_not_cached(
        self, make_service, collage, captioned_images, image_encoder, text_encoder
    ):
        cache = MemoryFeatureCache()
        parts = {
            "image_encoder": clone(image_encoder).set_params(cache=cache),
            "text_encoder": text_encoder,
        }
        aligner = KernelAligner(**parts)
        aligner.fit(captioned_images.images[:10], captioned_images.captions[:10])
        n_cached = len(cache)
        make_service(aligner).locate(Session(), collage, "a cat, a cup", "simple")
        assert len(cache) == n_cached == 10

    def test_invalid_request_raises(self, make_service, collage):
        service = make_service(None)
        with pytest.raises(UserError, match="the only label"):
            service.locate(Session(), collage, "a cat", "simple")
        with pytest.raises(UserError, match="no image yet"):
            service.locate(Session(), None, "a cat, a cup", "simple")


class TestUnsupportedAligner:
    def test_message_is_for_visitors(
        self, make_service, collage, captioned_images, image_encoder, text_encoder
    ):
        images, captions = captioned_images.images[:30], captioned_images.captions[:30]
        parts = {"image_encoder": image_encoder, "text_encoder": text_encoder}
        nonlinear = APEAligner(
            init=None, side="both", width=16, max_epochs=2, random_state=0, **parts
        )
        for aligner in (nonlinear, CCAAligner(**parts)):
            service = make_service(aligner.fit(images, captions))
            with pytest.raises(UserError, match="does not average over the parts") as caught:
                service.locate(Session(), collage, "a cat, a cup", "simple")
            assert "ask the person who runs the page" in make_visitor_message(caught.value)

    def test_map_is_offered_only_for_aligners_that_may_have_one(self, fast_aligner):
        assert may_have_maps(load_starter())
        assert not may_have_maps(fast_aligner)  # its encoder does not compute a grid
        assert not may_have_maps(CCAAligner())
        assert not may_have_maps(CLIPAligner())


def test_label_is_escaped_and_image_is_described():
    from sklearn_ape.app import _ui

    result = SimilarityMap('<b>"cat"', Image.new("RGB", (4, 4)), "top left")
    text = _ui._format_map(result)
    assert 'alt="Map of the image for &lt;b&gt;&quot;cat&quot;, highest at the top left"' in text
    assert 'src="data:image/jpeg;base64,' in text
    assert '<b>"' not in text
