"""HTML representation of estimators in notebooks."""

import importlib
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_html_repr
from skorch import NeuralNet

import sklearn_ape
from sklearn_ape import (
    APEAligner,
    CCAAligner,
    CLIPAligner,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
)
from sklearn_ape.encoders import (
    OpenCLIPImageEncoder,
    TimmImageEncoder,
    TransformersTextEncoder,
    weights,
)


def public_estimators():
    """Return the estimators of all public modules by name, without skorch's net."""
    found = {}
    for module in pkgutil.walk_packages(sklearn_ape.__path__, "sklearn_ape."):
        parts = module.name.split(".")
        if any(part.startswith("_") for part in parts) or {"app", "cli"} & set(parts):
            continue
        imported = importlib.import_module(module.name)
        for name in getattr(imported, "__all__", []):
            item = getattr(imported, name)
            if not inspect.isclass(item) or issubclass(item, NeuralNet):
                continue
            if issubclass(item, BaseEstimator):
                found[name] = item
    return found


ESTIMATORS = public_estimators()
PAGES = "https://sklearn-ape.readthedocs.io/en/latest/generated/"


def links(estimator):
    return set(re.findall(rf'href="({re.escape(PAGES)}[^"#]*)', estimator_html_repr(estimator)))


@pytest.fixture
def forbid_loading(monkeypatch):
    def refuse(*args):
        raise AssertionError("a network was loaded to show an estimator")

    monkeypatch.setattr(weights.shared_networks, "get_or_create", refuse)


class TestDocumentationLinks:
    @pytest.mark.parametrize("name", sorted(ESTIMATORS))
    def test_link_of_every_public_estimator_is_its_page(self, name, forbid_loading):
        shortest = "sklearn_ape.encoders." if name.endswith("Encoder") else "sklearn_ape."
        assert links(ESTIMATORS[name]()) == {f"{PAGES}{shortest}{name}.html"}

    def test_diagram_of_pipeline_links_to_all_its_parts(self, forbid_loading):
        encoder, texts = TimmImageEncoder(), TransformersTextEncoder()
        urls = links(make_pipeline(encoder, APEAligner(text_encoder=texts)))
        names = "encoders.TimmImageEncoder", "APEAligner", "encoders.TransformersTextEncoder"
        assert urls == {f"{PAGES}sklearn_ape.{name}.html" for name in names}

    @pytest.mark.parametrize("encoder", [TimmImageEncoder, TransformersTextEncoder])
    def test_model_of_hub_is_not_downloaded(self, encoder, monkeypatch):
        """scikit-learn catches errors of names of columns, so that an error would not be seen."""
        loaded = []
        monkeypatch.setattr(encoder, "_get_network", lambda self: loaded.append(self.model_name))
        assert len(links(encoder("owner/model"))) == 1
        assert loaded == []

    def test_class_of_user_has_no_link(self):
        """A subclass in another package or one that is not exported has no page."""

        class UserAligner(CCAAligner):
            pass

        assert UserAligner()._get_doc_link() == ""
        UserAligner.__module__ = "sklearn_ape.aligners.cca"
        assert UserAligner()._get_doc_link() == ""


class TestDiagram:
    def test_diagram_of_encoders_loads_no_network(self, forbid_loading):
        """A Pipeline of frozen encoders counts as fitted, which must not load a network."""
        for encoder in (TimmImageEncoder(), OpenCLIPImageEncoder("ViT-B-32/openai")):
            for estimator in (encoder, make_pipeline(encoder), FrozenEstimator(encoder)):
                assert type(encoder).__name__ in estimator_html_repr(estimator)
        assert "CLIPAligner" in estimator_html_repr(CLIPAligner("ViT-B-32/openai"))

    @pytest.mark.exhaustive
    def test_diagram_of_invalid_parameters_does_not_raise(self):
        """Invalid parameters raise an error when the estimator is used."""
        for estimator in (
            TimmImageEncoder("no/such"),
            TimmImageEncoder(None),
            CLIPAligner("no/such"),
            ZeroShotClassifier(["cat", "cat"]),
            ZeroShotClassifier(["cat"], aligner=3),
            MultiLabelZeroShotClassifier(["cat"], aligner="clip"),
        ):
            assert type(estimator).__name__ in estimator_html_repr(estimator)

    def test_diagram_of_fitted_classifier_shows_its_attributes(
        self, features, captioned_images, text_encoder
    ):
        aligner = CCAAligner(text_encoder=text_encoder, n_components=3)
        unfitted = estimator_html_repr(ZeroShotClassifier(["cat"], aligner=aligner))
        assert "<span>Not fitted</span>" in unfitted
        aligner = aligner.fit(features.image[:40], captioned_images.captions[:40])
        fitted = estimator_html_repr(ZeroShotClassifier(["dog", "cat"], aligner=aligner))
        assert "<span>Fitted</span>" in fitted
        pytest.importorskip("sklearn", minversion="1.9")
        for text in ("classes_", "cat", "n_parameters_", "logit_scale_", "ccaaligner2"):
            assert text in fitted + estimator_html_repr(aligner)

    def test_diagram_lists_output_features_of_encoder(self, image_encoder, captioned_images):
        pytest.importorskip("sklearn", minversion="1.9")
        encoder = clone(image_encoder)
        encoder.transform(captioned_images.images[:1])
        assert "timmimageencoder7" in estimator_html_repr(encoder)

    def test_notebook_gets_html_and_text(self):
        bundle = CCAAligner()._repr_mimebundle_()
        assert set(bundle) == {"text/html", "text/plain"}


def test_documentation_address_is_that_of_the_project():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    address = tomllib.loads(text)["project"]["urls"]["Documentation"]
    assert CCAAligner()._get_doc_link() == f"{address}generated/sklearn_ape.CCAAligner.html"


def test_classifier_with_fitted_aligner_has_feature_names(concepts):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(concepts.image, columns=[f"f{i}" for i in range(32)])
    aligner = CCAAligner().fit(frame, concepts.text)
    classifier = ZeroShotClassifier(["cat"], aligner=aligner)
    assert classifier.n_features_in_ == 32
    np.testing.assert_array_equal(classifier.feature_names_in_, frame.columns)
    assert not hasattr(ZeroShotClassifier(["cat"]), "n_features_in_")
