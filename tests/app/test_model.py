"""Downloads and uploads of aligners, including hostile zip files."""

import errno
import json
import os
import pickle
import zipfile
from copy import copy
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sklearn_ape import (
    CCAAligner,
    FewShotClassifier,
    KernelAligner,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
    load_pretrained,
)
from sklearn_ape.app import Limits
from sklearn_ape.app._limits import UserError, join_labels
from sklearn_ape.app._model import Model, load_model, replace_caches
from sklearn_ape.app._session import AppService, Session
from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.features import MemoryFeatureCache
from tests.app.conftest import ignore_progress


@pytest.fixture(scope="module")
def served(captioned_images, image_encoder, text_encoder):
    aligner = KernelAligner(image_encoder=image_encoder, text_encoder=text_encoder)
    return aligner.fit(captioned_images.images[:40], captioned_images.captions[:40])


@pytest.fixture(scope="module")
def service(served, captioned_images):
    return AppService(Model(served), captioned_images.images[:10], Limits())


@pytest.fixture(scope="module")
def aligned(service, captioned_images, tmp_path_factory):
    """Session of a visitor with an aligner fitted on twenty images."""
    archive = tmp_path_factory.mktemp("zip") / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for row in range(20):
            file.write(captioned_images.images[row], f"{row}.png")
            file.writestr(f"{row}.txt", captioned_images.captions[row])
    return service.align(Session(), archive, "cca", False, ignore_progress)[0]


def packed(folder, path):
    with zipfile.ZipFile(path, "w") as file:
        for part in Path(folder).iterdir():
            file.write(part, f"aligner/{part.name}")
    return path


class TestRoundTrip:
    def test_downloaded_aligner_gives_same_results(
        self, service, aligned, captioned_images, tmp_path
    ):
        with zipfile.ZipFile(aligned.download.path) as file:
            file.extractall(tmp_path)
        # The features of the images are computed once, because engines differ by rounding, and the
        # encoder may change from torch to another engine if another thread loads its network.
        cache = MemoryFeatureCache()
        again = replace_caches(load_pretrained(tmp_path / "aligner"), cache)
        downloaded = replace_caches(aligned.alignment.aligner, cache)
        images = captioned_images.images[:5]
        np.testing.assert_array_equal(again.transform(images), downloaded.transform(images))
        assert len(cache) == len(images)
        back = service.load_aligner(Session(), aligned.download.path)
        assert back.alignment.method == "cca"
        labels = "\n".join(captioned_images.captions[:5])
        answers = [
            service.classify(session, images[0], labels, "none", 0).probabilities
            for session in (aligned, back)
        ]
        assert answers[0] == pytest.approx(answers[1])

    def test_extended_aligner_can_be_downloaded_and_loaded(self, service, captioned_zip):
        archive = captioned_zip(0, 12)
        session = service.align(Session(), archive, "extend", False, ignore_progress)[0]
        back = service.load_aligner(Session(), session.download.path)
        texts = ["a cat", "a red fruit"]
        np.testing.assert_allclose(
            back.alignment.aligner.transform_text(texts),
            session.alignment.aligner.transform_text(texts),
            atol=1e-5,
        )

    def test_download_is_deleted_with_session(self, service, captioned_zip):
        session = service.align(Session(), captioned_zip(0, 20), "cca", False, ignore_progress)[0]
        path = session.download.path
        assert os.path.isfile(path)
        session = service.reset_aligner(session)
        assert not os.path.exists(path)

    def test_full_disk_does_not_discard_the_aligner(
        self, service, captioned_zip, monkeypatch, caplog
    ):
        def fill(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        archive = captioned_zip(0, 20)
        monkeypatch.setattr(CCAAligner, "save_pretrained", fill)
        session, remark = service.align(Session(), archive, "cca", False, ignore_progress)
        assert session.alignment.n_images == 20
        assert session.download is None
        assert "cannot be downloaded" in remark
        assert "free disk space" in remark
        assert "No space left on device" in caplog.text


class TestHostileZips:
    def refusal(self, service, archive):
        with pytest.raises(UserError) as caught:
            service.load_aligner(Session(), archive)
        assert "/tmp" not in str(caught.value)
        return str(caught.value)

    def change(self, aligned, folder, change):
        """Return a copy of a downloaded zip file whose config was changed by a function."""
        with zipfile.ZipFile(aligned.download.path) as file:
            file.extractall(folder)
        saved = folder / "aligner"
        with safe_open(saved / "model.safetensors", framework="np") as file:
            config = json.loads(file.metadata()["sklearn_ape"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        change(config)
        text = json.dumps(config)
        (saved / "config.json").write_text(text)
        save_file(tensors, saved / "model.safetensors", metadata={"sklearn_ape": text})
        return packed(saved, folder / "changed.zip")

    def test_pickle_is_not_unpacked(self, service, tmp_path):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "executed"),)

        archive = tmp_path / "pickle.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for name in ("aligner.pkl", "config.json", "model.safetensors"):
                file.writestr(f"aligner/{name}", pickle.dumps(Bomb()))
        self.refusal(service, archive)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("model_name", ["/etc", "someone/model", "all-MiniLM-L6-v2"])
    def test_other_encoders_are_not_loaded(
        self, service, aligned, tmp_path, model_name, monkeypatch
    ):
        def changed(value):
            if isinstance(value, dict):
                if value.get("$class") == "TransformersTextEncoder":
                    value["params"] |= {"model_name": model_name, "pooling": "cls"}
                list(map(changed, value.values()))
            elif isinstance(value, list):
                list(map(changed, value))

        loaded_names = []
        monkeypatch.setattr(
            TransformersTextEncoder,
            "_load_network",
            lambda self, device: loaded_names.append(self.model_name),
        )
        archive = self.change(aligned, tmp_path, changed)
        assert "other encoders" in self.refusal(service, archive)
        assert loaded_names == []

    def test_class_that_loads_other_encoders_is_not_loaded(self, service, aligned, tmp_path):
        """The record of a CLIPAligner contains no records of its encoders."""
        clip = {"$class": "CLIPAligner", "params": {"model": "ViT-B-32", "pretrained": "openai"}}
        clip["state"] = {"weights": "ViT-B-32/openai"}

        def changed(config):
            config["model"]["state"]["image_encoder"] = clip

        archive = self.change(aligned, tmp_path, changed)
        assert "other encoders" in self.refusal(service, archive)

    def test_other_classes_than_aligners_raise(self, service, served, tmp_path):
        classifier = ZeroShotClassifier(["cat", "dog"], aligner=served)
        classifier.save_pretrained(tmp_path / "classifier")
        archive = packed(tmp_path / "classifier", tmp_path / "classifier.zip")
        assert "ZeroShotClassifier" in self.refusal(service, archive)

    @pytest.mark.parametrize("missing", ["model.safetensors", "everything"])
    def test_missing_file_is_named(self, service, aligned, tmp_path, missing):
        with zipfile.ZipFile(aligned.download.path) as file:
            file.extractall(tmp_path)
        for part in (tmp_path / "aligner").iterdir():
            if missing in (part.name, "everything"):
                part.unlink()
        archive = packed(tmp_path / "aligner", tmp_path / "less.zip")
        refusal = self.refusal(service, archive)
        assert "not an aligner that was downloaded from this page" in refusal
        assert "model.safetensors" in refusal

    def test_damaged_file_raises(self, service, aligned, tmp_path):
        with zipfile.ZipFile(aligned.download.path) as file:
            file.extractall(tmp_path)
        tensors = tmp_path / "aligner" / "model.safetensors"
        content = bytearray(tensors.read_bytes())
        content[-100] ^= 0xFF
        tensors.write_bytes(content)
        assert self.refusal(service, packed(tensors.parent, tmp_path / "damaged.zip"))

    def test_missing_zip_raises(self, service):
        assert "no zip yet" in self.refusal(service, None)


class TestServedClassifier:
    @pytest.mark.parametrize("is_hierarchy", [False, True])
    def test_names_of_labels_are_embedded(self, served, captioned_images, is_hierarchy):
        """Also in corrections. Labels that the classifier does not have are embedded as such."""
        names = {"1": ["a cat", "a dog"], "2": "a house"}
        labels = {"all": names} if is_hierarchy else names
        model = load_model(ZeroShotClassifier(labels, aligner=served))
        service = AppService(model, captioned_images.images[:4], Limits())
        image = captioned_images.images[5]
        request = (image, "1, 2, a tuba", "none")
        names |= {"a tuba": None}
        zero_shot = ZeroShotClassifier(names, aligner=served, templates="none")
        few_shot = FewShotClassifier(names, aligner=served, templates="none").fit([image], ["2"])
        corrected = service.correct(Session(), *request, "2")
        for session, classifier in ((Session(), zero_shot), (corrected, few_shot)):
            expected = dict(zip(names, classifier.predict_proba([image])[0].tolist(), strict=True))
            results = service.classify(session, *request, 0)
            assert results.probabilities == pytest.approx(expected, abs=1e-5)

    def test_labels_that_are_numbers_are_corrected(self, served, captioned_images):
        first, image = captioned_images.images[4:6]
        few_shot = FewShotClassifier({1: "a cat", 2: "a house"}, aligner=served).fit([first], [1])
        service = AppService(load_model(few_shot), captioned_images.images[:4], Limits())
        session = service.correct(service.initial_session, image, "1, 2", "simple", "2")
        assert session.few_shot.class_count_.tolist() == [1, 1]
        result = service.classify(session, image, "1, 2", "simple", 0)
        assert "Labelled images used: 2." in result.summary

    @pytest.mark.parametrize("templates", ["none", "a sketch of a {}"])
    def test_predictions_are_those_of_the_classifier(self, served, captioned_images, templates):
        """The field of the page also offers templates that are not a named set."""
        params = {"templates": templates, "logit_scale": 2.0, "class_prior": [0.9, 0.1]}
        params["threshold"] = np.float32(0.5)
        zero_shot = ZeroShotClassifier(["cat", "house"], aligner=served, **params)
        service = AppService(load_model(zero_shot), captioned_images.images[:4], Limits())
        options = service.initial_templates, service.initial_threshold
        assert options[1] == 0.5
        image = captioned_images.images[5]
        results = service.classify(Session(), image, "house, cat", *options)
        expected = zero_shot.predict_proba([image])[0, 0]
        assert results.probabilities["cat"] == pytest.approx(expected, abs=1e-5)
        # Other templates do not change the shares and the logit scale.
        results = service.classify(Session(), image, "house, cat", "photo", 0)
        expected = zero_shot.set_params(templates="photo").predict_proba([image])[0, 0]
        assert results.probabilities["cat"] == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("is_few_shot", [False, True])
    def test_groups_of_a_hierarchy_are_predicted(self, served, captioned_images, is_few_shot):
        """Also with other templates and after a correction, with which the page said "unknown"."""
        labels = {"animal": {"cat": None, "dog": None}, "thing": {"cup": None, "house": None}}
        image = captioned_images.images[5]
        aligner = copy(served)
        aligner.logit_scale_ = 2.0  # so that no label is certain
        classifier = ZeroShotClassifier(labels, aligner=aligner)
        if is_few_shot:
            classifier = FewShotClassifier(labels, aligner=aligner).fit([image], ["cup"])
        service = AppService(load_model(classifier), captioned_images.images[:4], Limits())
        text = join_labels(service.labels)
        for templates in ("simple", "none"):
            corrected = service.correct(service.initial_session, image, text, templates, "cat")
            for session in (Session(), service.initial_session, corrected):
                probabilities = service.classify(session, image, text, templates, 0).probabilities
                groups = {
                    group: sum(probabilities[label] for label in members)
                    for group, members in labels.items()
                }
                group = max(groups, key=groups.get)
                threshold = (max(probabilities.values()) + groups[group]) / 2
                answer = service.classify(session, image, text, templates, threshold).summary
                assert answer.startswith(f"**{group}**, {groups[group]:.0%}, a group of labels.")
                assert "Unknown" in service.classify(session, image, text, templates, 1).summary

    def test_corrections_keep_parameters_of_the_classifier(self, served, captioned_images):
        """The class shares are in the order of labels that are numbers, not texts."""
        labels, image = {2: "a cat", 10: "a house"}, captioned_images.images[5]
        params = {"templates": "none", "logit_scale": 2.0, "class_prior": [0.9, 0.1]}
        model = load_model(ZeroShotClassifier(labels, aligner=served, **params))
        service = AppService(model, captioned_images.images[:4], Limits())
        session = service.correct(Session(), image, "2, 10", "none", "10")
        result = service.classify(session, image, "2, 10", "none", 0)
        # With the page's own aligner: other cached embeddings would differ by rounding, which the
        # approximate solution amplifies.
        aligner = service.get_aligner(session)
        few_shot = FewShotClassifier(labels, aligner=aligner, **params).fit([image], [10])
        expected = few_shot.predict_proba([image])[0, 0]
        assert result.probabilities["2"] == pytest.approx(expected, abs=1e-5)

    def test_other_templates_of_a_few_shot_classifier_without_images(
        self, served, captioned_images
    ):
        """The page answered with "Unexpected error": it passed alpha to ZeroShotClassifier."""
        image, params = captioned_images.images[5], {"aligner": served, "logit_scale": 2.0}
        model = load_model(FewShotClassifier(["cat", "house"], alpha=0.1, **params))
        service = AppService(model, captioned_images.images[:4], Limits())
        result = service.classify(Session(), image, "cat, house", "photo", 0)
        few_shot = FewShotClassifier(["cat", "house"], templates="photo", **params)
        expected = few_shot.predict_proba([image])[0, 0]
        assert result.probabilities["cat"] == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("is_few_shot", [False, True])
    def test_classifier_in_pipeline_and_search(
        self, served, image_encoder, captioned_images, is_few_shot
    ):
        """It is served with its parameters, and with the steps before it."""
        images, y = captioned_images.images[:12], ["cat", "house"] * 6
        features = image_encoder.transform(captioned_images.images[:40])
        aligner = KernelAligner(text_encoder=served.text_encoder)
        aligner.fit(features, captioned_images.captions[:40])
        estimator_class = FewShotClassifier if is_few_shot else ZeroShotClassifier
        classifier = estimator_class(aligner=FrozenEstimator(aligner), logit_scale=2.0)
        pipeline = make_pipeline(image_encoder, classifier)
        name = f"{pipeline.steps[-1][0]}__templates"
        search = GridSearchCV(pipeline, {name: ["a sketch of a {}"]}, cv=2).fit(images, y)
        model = load_model(search)
        assert model.labels == ["cat", "house"]
        service = AppService(model, images[:4], Limits())
        request = (images[5], "cat, house", service.initial_templates, 0)
        result = service.classify(service.initial_session, *request)
        expected = search.predict_proba([images[5]])[0, 0]
        assert result.probabilities["cat"] == pytest.approx(expected, abs=1e-5)

    def test_labels_of_a_multi_label_classifier(self, served):
        """The labels of the page were the classes [0 1] of each label."""
        classifier = MultiLabelZeroShotClassifier(["house", "cat"], aligner=served)
        assert load_model(classifier).labels == ["house", "cat"]

    def test_templates_of_a_multi_label_classifier(self, served, captioned_images):
        """The page began with other templates than those of the classifier."""
        labels, templates, image = ["cat", "house"], "a sketch of a {}", captioned_images.images[5]
        multi_label = MultiLabelZeroShotClassifier(labels, aligner=served, templates=templates)
        service = AppService(load_model(multi_label), captioned_images.images[:4], Limits())
        text, options = join_labels(service.labels), (service.initial_templates, 0)
        result = service.classify(service.initial_session, image, text, *options)
        classifier = ZeroShotClassifier(labels, aligner=served, templates=templates)
        expected = classifier.predict_proba([image])[0, 0]
        assert result.probabilities["cat"] == pytest.approx(expected, abs=1e-5)

    def test_labels_with_unusual_spaces_and_ends_are_known(self, served, captioned_images):
        """The page must not take them for other labels, without the labelled images."""
        image = captioned_images.images[4]
        few_shot = FewShotClassifier(["my  cat", "- a\ndog, "], aligner=served)
        service = AppService(load_model(few_shot.fit([image], ["my  cat"])), [image], Limits())
        text = join_labels(service.labels)
        result = service.classify(service.initial_session, image, text, "simple", 0)
        assert "Labelled images used: 1." in result.summary
        assert set(result.probabilities) == {"my  cat", "- a\ndog, "}
