"""CLIPAligner compared with open_clip on a tiny model in a folder."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from sklearn_ape import (
    CLIPAligner,
    CrossModalRetriever,
    FewShotClassifier,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
    load_pretrained,
)
from sklearn_ape.encoders import OpenCLIPImageEncoder, OpenCLIPTextEncoder
from tests.encoders.test_open_clip import open_clip, save_model

IMAGES = list(np.random.default_rng(0).integers(0, 256, size=(4, 40, 50, 3), dtype=np.uint8))
TEXTS = ["a cat", "two dogs on a walk", "a rocket", "a tree"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_model(folder)
    return str(folder)


def test_embeddings_equal_open_clip(tmp_path):
    model = save_model(tmp_path)
    aligner = CLIPAligner(str(tmp_path))
    encoder = aligner.image_encoder
    network = encoder._get_network()
    batch = [encoder._prepare_item(network.prepare, input_image) for input_image in IMAGES]
    pixels = encoder._make_module(network).normalize(*encoder._make_tensors(network, batch))
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    with torch.inference_mode():
        image, text, scale = model(pixels, tokens)[:3]
    np.testing.assert_allclose(aligner.transform(IMAGES), image, atol=1e-5)
    np.testing.assert_allclose(aligner.transform_text(TEXTS), text, atol=1e-5)
    np.testing.assert_allclose(aligner.similarity(IMAGES, TEXTS), image @ text.T, atol=1e-5)
    assert aligner.logit_scale_ == pytest.approx(float(scale))


def test_features_are_accepted_instead_of_images(folder):
    """A Pipeline whose first step is the encoder passes features."""
    aligner, encoder = CLIPAligner(folder), OpenCLIPImageEncoder(folder)
    features = encoder.transform(IMAGES)
    expected = aligner.transform(IMAGES)
    for X in (features, features.tolist(), list(features), pd.Series(list(features))):
        np.testing.assert_allclose(aligner.transform(X), expected, atol=1e-6)
    tensor = torch.tensor(features, requires_grad=True)
    for X in (tensor, list(tensor)):
        np.testing.assert_allclose(aligner.transform(X), expected, atol=1e-6)
    np.testing.assert_allclose(aligner.transform(tensor.bfloat16()), expected, atol=0.01)
    piped = make_pipeline(encoder, aligner).transform(IMAGES)
    np.testing.assert_array_equal(piped, expected)
    texts = aligner.text_encoder.transform(TEXTS)
    np.testing.assert_allclose(
        aligner.transform_text(texts), aligner.transform_text(TEXTS), atol=1e-6
    )
    assert aligner.n_features_in_ == aligner.n_text_features_in_ == aligner.n_components_ == 12
    assert len(aligner.get_feature_names_out()) == 12


@pytest.mark.parametrize("image", [Image.fromarray(IMAGES[0]), torch.zeros(3, 8, 8), "a.png"])
def test_dataset_of_tuples_raises_with_remedy(image, folder):
    """torchvision's datasets return an image and its class, which are not two features."""

    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, row):
            return image, range(2)[row]  # raises IndexError at the end

    classifier = ZeroShotClassifier(TEXTS, aligner=CLIPAligner(folder))
    with pytest.raises(ValueError, match=r"of tuples, not of images. Pass a list of the images"):
        classifier.predict(Pairs())
    aligner = CLIPAligner(folder)
    features = aligner.transform(IMAGES)
    np.testing.assert_allclose(aligner.transform([*map(tuple, features)]), features, atol=1e-6)


def test_score_and_report_equal_recall(folder):
    aligner = CLIPAligner(folder)
    similarity = aligner.similarity(IMAGES, TEXTS)
    expected = np.mean([(similarity.argmax(axis=axis) == np.arange(4)).mean() for axis in (0, 1)])
    assert aligner.score(IMAGES, TEXTS) == pytest.approx(expected)
    assert aligner.retrieval_report(IMAGES, TEXTS, ks=(4,))["image_to_text"] == {4: 1.0}


def test_fit_validates_and_learns_nothing(folder):
    aligner = CLIPAligner(folder)
    assert aligner.fit(IMAGES, TEXTS) is aligner
    assert aligner.fit(IMAGES) is aligner
    assert vars(aligner) == clone(aligner).get_params()
    assert aligner.fit(OpenCLIPImageEncoder(folder).transform(IMAGES), TEXTS) is aligner
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        aligner.fit(IMAGES, TEXTS[:2])
    with pytest.raises(ValueError, match=r"row 1: .*empty caption"):
        aligner.fit(IMAGES[:2], ["a cat", " "])
    with pytest.raises(ValueError, match="5 features, but CLIPAligner is expecting 12"):
        aligner.fit(np.zeros((4, 5)))
    with pytest.raises(ValueError, match="5 features, but CLIPAligner was fitted with 12"):
        aligner.transform_text(np.zeros((4, 5)))


@pytest.mark.parametrize(
    "parameter", [{"batch_size": None}, {"batch_size": 2.5}, {"crop": "none"}, {"n_jobs": 0}]
)
def test_invalid_parameters_raise_without_images(parameter, folder):
    """They raise with features and texts, too, and the message has the value that was passed."""
    features = CLIPAligner(folder).transform(IMAGES)
    aligner = CLIPAligner(folder, **parameter)
    ((name, value),) = parameter.items()
    for call in (lambda: aligner.fit(features), lambda: aligner.transform_text(TEXTS)):
        with pytest.raises(ValueError, match=f"^{name} must be .* not {value!r}"):
            call()


def test_pickles_contain_no_weights(folder):
    aligner = CLIPAligner(folder)
    expected = aligner.transform(IMAGES)
    pickled = pickle.dumps(aligner)
    assert len(pickled) < 2000
    np.testing.assert_array_equal(pickle.loads(pickled).transform(IMAGES), expected)


def test_fingerprint_depends_on_model_and_preprocessing(folder, tmp_path):
    save_model(tmp_path, seed=1)
    fingerprints = {
        CLIPAligner(folder).fingerprint_,
        CLIPAligner(folder, batch_size=2).fingerprint_,
        CLIPAligner(folder, crop="pad").fingerprint_,
        CLIPAligner(str(tmp_path)).fingerprint_,
    }
    assert len(fingerprints) == 3


@pytest.mark.parametrize(("size", "text_size"), [("auto", "auto"), (8, 32)])
def test_batches_of_texts_are_four_times_larger(size, text_size, folder):
    aligner = CLIPAligner(folder, batch_size=size)
    assert aligner.image_encoder.batch_size == size
    assert aligner.text_encoder.batch_size == text_size


def test_pretrained_parameter_equals_open_clip():
    assert CLIPAligner("ViT-B-32", "openai")._get_model_name() == CLIPAligner()._get_model_name()
    with pytest.raises(ValueError, match="model_name='ViT-B-32/opnai' is not a pretrained CLIP"):
        CLIPAligner("ViT-B-32", "opnai").fit(IMAGES)
    with pytest.raises(ValueError, match="model_name='ViT-B-32' is not a pretrained CLIP"):
        CLIPAligner("ViT-B-32").transform_text(TEXTS)


def test_unreadable_images_raise_or_give_nan(folder, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    with pytest.raises(ValueError, match="row 1"):
        CLIPAligner(folder).transform([IMAGES[0], str(broken)])
    with pytest.warns(UserWarning, match="cannot be encoded"):
        embeddings = CLIPAligner(folder, on_error="nan").transform([IMAGES[0], str(broken)])
    assert np.isnan(embeddings[1]).all()
    assert np.isfinite(embeddings[0]).all()


class TestClassifier:
    def test_classifier_is_ready_without_fit(self, folder):
        aligner = CLIPAligner(folder)
        classifier = ZeroShotClassifier(TEXTS, aligner=aligner, templates="none")
        order = np.argsort(TEXTS)
        expected = aligner.logit_scale_ * aligner.similarity(IMAGES, TEXTS)[:, order]
        np.testing.assert_allclose(classifier.decision_function(IMAGES), expected, rtol=1e-4)

    def test_classifier_takes_name_of_model(self, folder):
        """The name gives the same model before and after fit."""
        by_name = ZeroShotClassifier(TEXTS, aligner=f"open_clip:{folder}")
        by_object = ZeroShotClassifier(TEXTS, aligner=CLIPAligner(folder))
        expected = by_object.predict_proba(IMAGES)
        np.testing.assert_array_equal(by_name.predict_proba(IMAGES), expected)
        fitted = clone(by_name).fit(IMAGES, TEXTS)
        np.testing.assert_array_equal(fitted.predict_proba(IMAGES), expected)
        assert clone(by_name).fit(IMAGES).classes_.tolist() == sorted(TEXTS)
        predicted = cross_val_predict(by_name, IMAGES, TEXTS, cv=KFold(2))
        np.testing.assert_array_equal(predicted, by_object.predict(IMAGES))
        assert len(pickle.dumps(fitted)) < 5000

    def test_unpickled_estimators_reject_other_weights(self, tmp_path):
        """Stored embeddings of images are not comparable with those of another model."""
        save_model(tmp_path)
        aligner, labels = f"open_clip:{tmp_path}", ["a cat", "a dog"]
        classifier = FewShotClassifier(labels, aligner=aligner).fit(IMAGES, labels * 2)
        retriever = CrossModalRetriever(aligner=CLIPAligner(str(tmp_path))).fit(IMAGES, TEXTS)
        expected = classifier.predict_proba(IMAGES)
        pickled = pickle.dumps([classifier, retriever])
        np.testing.assert_array_equal(pickle.loads(pickled)[0].predict_proba(IMAGES), expected)
        save_model(tmp_path, seed=1)
        for estimators in (pickled, pickle.dumps(pickle.loads(pickled))):
            classifier, retriever = pickle.loads(estimators)
            with pytest.raises(ValueError, match="weights of an encoder were replaced"):
                classifier.predict(IMAGES)
            with pytest.raises(ValueError, match="weights of an encoder were replaced"):
                retriever.search(["a cat"])

    def test_moved_branch_is_used_for_images_and_labels(self, tmp_path, monkeypatch):
        """Labels and reference images had embeddings of the earlier weights."""
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        model = tmp_path / "models--me--clip"
        commits = [str(seed) * 40 for seed in range(2)]
        for seed, commit in enumerate(commits):
            (model / "snapshots" / commit).mkdir(parents=True)
            save_model(model / "snapshots" / commit, seed)
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(commits[0])
        aligner = CLIPAligner("me/clip")
        plain = ZeroShotClassifier(TEXTS, aligner=aligner)
        standardized = clone(plain).set_params(standardize=IMAGES)
        for classifier in (plain, standardized):
            classifier.predict_proba(IMAGES)
        fitted = clone(plain).fit(IMAGES)
        (model / "refs" / "main").write_text(commits[1])
        pinned = CLIPAligner("me/clip", revision=commits[1])
        for classifier in (plain, standardized):
            expected = clone(classifier).set_params(aligner=pinned).predict_proba(IMAGES)
            np.testing.assert_allclose(classifier.predict_proba(IMAGES), expected, atol=1e-5)
        with pytest.raises(ValueError, match="weights of an encoder were replaced"):
            fitted.predict(IMAGES)

    def test_label_embeddings_are_computed_once(self, folder, monkeypatch):
        calls = []
        transform_text = CLIPAligner.transform_text
        monkeypatch.setattr(
            CLIPAligner,
            "transform_text",
            lambda self, y: calls.append(len(y)) or transform_text(self, y),
        )
        classifier = ZeroShotClassifier(["zebra", "yacht"], aligner=f"open_clip:{folder}")
        classifier.predict(IMAGES)
        classifier.predict_proba(IMAGES)
        assert len(calls) == 1

    def test_classifier_without_labels_is_not_fitted(self, folder):
        with pytest.raises(NotFittedError):
            ZeroShotClassifier(aligner=f"open_clip:{folder}").predict(IMAGES)

    @pytest.mark.parametrize(
        ("name", "message"),
        [("clip", "is not the name of an aligner. Pass a name such as"),
         ("open_clip:", "is not the name of an aligner"),
         ("open_clip:ViT-B-32/opnai", "model_name='ViT-B-32/opnai' is not a pretrained CLIP")],
    )  # fmt: skip
    def test_invalid_name_raises(self, name, message):
        for call in ("fit", "predict"):
            with pytest.raises(ValueError, match=message):
                getattr(ZeroShotClassifier(TEXTS, aligner=name), call)(IMAGES)


def test_repr_and_parameters_need_no_weights():
    """Parameters and repr must work without access to weights."""
    classifier = ZeroShotClassifier(TEXTS, aligner="open_clip:ViT-B-32/openai")
    assert "open_clip:ViT-B-32/openai" in repr(classifier)
    assert not Path("ViT-B-32").exists()


def test_embedding_features_does_not_compute_the_network(folder, monkeypatch):
    """The number of features is computed once per model, not by each of the encoders."""
    features = np.eye(12, dtype=np.float32)
    CLIPAligner(folder).transform(features)
    monkeypatch.setattr(OpenCLIPTextEncoder, "_forward", None)
    np.testing.assert_array_equal(CLIPAligner(folder).transform(features), features)


class TestSeveralLabels:
    """`MultiLabelZeroShotClassifier` with an aligner that has no training images."""

    Y = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])

    @pytest.mark.parametrize("standardize", [True, False, np.False_])
    def test_labelled_images_replace_training_images(self, folder, standardize, tmp_path):
        """fit raised an error that advises to fit, and with False it named standardize=True."""
        aligner = CLIPAligner(folder)
        model = MultiLabelZeroShotClassifier(
            ["a cat", "a dog"], aligner=aligner, standardize=standardize
        )
        scores = model.fit(IMAGES, self.Y).decision_function(IMAGES)
        if standardize:
            given = clone(model).set_params(standardize=IMAGES).fit(IMAGES, self.Y)
            np.testing.assert_array_equal(scores, given.decision_function(IMAGES))
        else:
            plain = ZeroShotClassifier(["a cat", "a dog"], aligner=aligner)
            cosines = np.log(plain.predict_proba(IMAGES)) / aligner.logit_scale_
            margins = scores / aligner.logit_scale_ + model.thresholds_
            np.testing.assert_allclose(np.diff(margins), np.diff(cosines), atol=1e-5)
        thresholds = clone(model).fit_thresholds(IMAGES, self.Y).thresholds_
        np.testing.assert_array_equal(thresholds, model.thresholds_)
        model.save_pretrained(tmp_path / "model")
        for copy in (load_pretrained(tmp_path / "model"), pickle.loads(pickle.dumps(model))):
            np.testing.assert_array_equal(copy.decision_function(IMAGES[:2]), scores[:2])

    def test_without_labelled_images_raises(self, folder):
        model = MultiLabelZeroShotClassifier(["a cat", "a dog"], aligner=CLIPAligner(folder))
        with pytest.raises(ValueError, match=r"aligner is a CLIPAligner .* Call fit or .* images"):
            model.predict(IMAGES)

    def test_failed_fit_keeps_the_images_of_the_last_fit(self, folder):
        model = MultiLabelZeroShotClassifier(["a cat", "a dog"], aligner=CLIPAligner(folder))
        scores = model.fit(IMAGES, self.Y).decision_function(IMAGES)
        for fit in (model.fit, model.fit_thresholds):
            with pytest.raises(ValueError, match="at least 2 are needed"):
                fit(IMAGES[:1], self.Y[:1])
            np.testing.assert_array_equal(model.decision_function(IMAGES), scores)
