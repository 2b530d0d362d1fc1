"""Estimators in a notebook: diagrams with links, without side effects."""

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
    """Return the classes that some public module exports, by their names; not skorch's net."""
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
def nothing_loads(monkeypatch):
    def refuse(*args):
        raise AssertionError("a network was loaded to show an estimator")

    monkeypatch.setattr(weights, "get_shared_network", refuse)
    monkeypatch.setattr("sklearn_ape.encoders.base.get_shared_network", refuse)


class TestLinks:
    @pytest.mark.parametrize("name", sorted(ESTIMATORS))
    def test_lead_to_the_page_of_every_public_estimator(self, name, nothing_loads):
        shortest = "sklearn_ape.encoders." if name.endswith("Encoder") else "sklearn_ape."
        assert links(ESTIMATORS[name]()) == {f"{PAGES}{shortest}{name}.html"}

    def test_of_all_parts_of_a_pipeline(self, nothing_loads):
        encoder, texts = TimmImageEncoder(), TransformersTextEncoder()
        found = links(make_pipeline(encoder, APEAligner(text_encoder=texts)))
        names = "encoders.TimmImageEncoder", "APEAligner", "encoders.TransformersTextEncoder"
        assert found == {f"{PAGES}sklearn_ape.{name}.html" for name in names}

    def test_classes_of_users_have_none(self):
        """A subclass elsewhere, or one that no module exports, has no page here."""

        class Own(CCAAligner):
            pass

        assert Own()._get_doc_link() == ""
        Own.__module__ = "sklearn_ape.aligners.cca"
        assert Own()._get_doc_link() == ""


class TestDiagram:
    def test_of_encoders_loads_nothing(self, nothing_loads):
        """Alone and in a Pipeline, which is fitted for being frozen throughout."""
        for encoder in (TimmImageEncoder(), OpenCLIPImageEncoder("ViT-B-32/openai")):
            for shown in (encoder, make_pipeline(encoder), FrozenEstimator(encoder)):
                assert type(encoder).__name__ in estimator_html_repr(shown)
        assert "CLIPAligner" in estimator_html_repr(CLIPAligner("ViT-B-32/openai"))

    @pytest.mark.exhaustive
    def test_of_what_cannot_be_had_or_is_wrong(self):
        """Showing never fails: what is wrong is told where it is used."""
        for estimator in (
            TimmImageEncoder("no/such"),
            TimmImageEncoder(None),
            CLIPAligner("no/such"),
            ZeroShotClassifier(["cat", "cat"]),
            ZeroShotClassifier(["cat"], aligner=3),
            MultiLabelZeroShotClassifier(["cat"], aligner="clip"),
        ):
            assert type(estimator).__name__ in estimator_html_repr(estimator)

    def test_of_a_fitted_pipeline_shows_what_was_learned(
        self, features, captioned_images, text_encoder
    ):
        aligner = CCAAligner(text_encoder=text_encoder, n_components=3)
        unfitted = estimator_html_repr(ZeroShotClassifier(["cat"], aligner=aligner))
        assert "<span>Not fitted</span>" in unfitted
        aligner = aligner.fit(features.image[:40], captioned_images.captions[:40])
        found = estimator_html_repr(ZeroShotClassifier(["dog", "cat"], aligner=aligner))
        assert "<span>Fitted</span>" in found
        pytest.importorskip("sklearn", minversion="1.9")
        for shown in ("classes_", "cat", "n_parameters_", "logit_scale_", "ccaaligner2"):
            assert shown in found + estimator_html_repr(aligner)

    def test_features_that_are_known_are_listed(self, image_encoder, captioned_images):
        pytest.importorskip("sklearn", minversion="1.9")
        encoder = clone(image_encoder)
        encoder.transform(captioned_images.images[:1])
        assert "timmimageencoder7" in estimator_html_repr(encoder)

    def test_a_notebook_gets_html_and_text(self):
        bundle = CCAAligner()._repr_mimebundle_()
        assert set(bundle) == {"text/html", "text/plain"}


def test_documentation_address_is_that_of_the_project():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    address = tomllib.loads(text)["project"]["urls"]["Documentation"]
    assert CCAAligner()._get_doc_link() == f"{address}generated/sklearn_ape.CCAAligner.html"


def test_classifier_ready_without_fit_knows_its_features(concepts):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(concepts.image, columns=[f"f{i}" for i in range(32)])
    aligner = CCAAligner().fit(frame, concepts.text)
    classifier = ZeroShotClassifier(["cat"], aligner=aligner)
    assert classifier.n_features_in_ == 32
    np.testing.assert_array_equal(classifier.feature_names_in_, frame.columns)
    assert not hasattr(ZeroShotClassifier(["cat"]), "n_features_in_")
