"""SentenceTransformerEncoder on models that are built here, compared with the library."""

import numpy as np
import pytest
import torch
from PIL import Image

from sklearn_ape import KernelAligner, load_pretrained
from sklearn_ape.aligners import as_open_clip
from sklearn_ape.encoders import (
    SentenceTransformerEncoder,
    SentenceTransformerImageEncoder,
    TransformersTextEncoder,
)
from sklearn_ape.encoders.resolve import resolve_encoder
from tests.encoders import test_transformers as hf
from tests.encoders.tiny_networks import TEXTS, multimodal_folder, text_folder

st = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.models")
PROMPTS = {"query": "the cat: ", "document": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a model with a Dense layer, normalization and prompts."""
    folder = tmp_path_factory.mktemp("sentence-transformer")
    (folder / "transformer").mkdir()
    transformer = modules.Transformer(text_folder(folder / "transformer"))
    width = transformer.get_embedding_dimension()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = modules.Dense(width, 12)
    pooling = modules.Pooling(width, include_prompt=False)
    model = st.SentenceTransformer(
        modules=[transformer, pooling, dense, modules.Normalize()],
        prompts=PROMPTS,
        default_prompt_name="query",
        device="cpu",
    )
    model.save(str(folder / "model"))
    return str(folder / "model")


@pytest.fixture(scope="module")
def library_model(folder):
    return st.SentenceTransformer(folder, device="cpu")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return multimodal_folder(tmp_path_factory.mktemp("multimodal"))


@pytest.fixture(scope="module")
def images():
    """Return images of different shapes."""
    rng = np.random.default_rng(0)
    sizes = [(40, 50), (60, 32), (33, 90), (48, 48)]
    return [Image.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]


class TestFeatures:
    @pytest.mark.parametrize(
        ("params", "options"),
        [
            ({}, {}),
            ({"prompt": "document"}, {"prompt_name": "document"}),
            ({"prompt": "a dog on "}, {"prompt": "a dog on "}),
            ({"truncate_dim": 5}, {"truncate_dim": 5}),
            (
                {"truncate_dim": 5, "normalize": True},
                {"truncate_dim": 5, "normalize_embeddings": True},
            ),
        ],
    )
    def test_features_equal_those_of_the_library(self, folder, library_model, params, options):
        encoder = SentenceTransformerEncoder(folder, cache=None, **params)
        expected = library_model.encode(TEXTS, **options)
        np.testing.assert_allclose(encoder.transform(TEXTS), expected, atol=1e-5)
        assert len(encoder.get_feature_names_out()) == expected.shape[1]

    def test_packaged_model_equals_transformers_encoder(self, text_encoder):
        texts = ["a cat", "a photograph of two dogs that run along a beach"]
        features = SentenceTransformerEncoder("all-MiniLM-L6-v2").transform(texts)
        expected = TransformersTextEncoder("all-MiniLM-L6-v2", engine="torch").transform(texts)
        np.testing.assert_allclose(features, expected, atol=1e-5)

    def test_parameters_are_part_of_cache_keys(self, folder, tmp_path):
        texts = TEXTS[:2]
        for params in ({}, {"prompt": "document"}, {"truncate_dim": 5}, {"normalize": True}):
            encoder = SentenceTransformerEncoder(folder, cache=tmp_path, **params)
            before = encoder.cache_info().misses
            features = encoder.transform(texts)
            assert encoder.cache_info().misses == before + 2
            np.testing.assert_array_equal(encoder.transform(texts), features)
            assert encoder.cache_info().misses == before + 2

    def test_features_do_not_depend_on_the_batch(self, tmp_path):
        """FNet does not mask the padding that shorter texts have in a batch."""
        config = hf.transformers.FNetConfig(**{**hf.TEXT, "num_attention_heads": None})
        hf.save_model(tmp_path, config, prepare=hf.tokenizer())
        layers = [modules.Transformer(str(tmp_path)), modules.Pooling(16)]
        model = st.SentenceTransformer(modules=layers, device="cpu")
        model.save(str(tmp_path / "model"))
        encoder = SentenceTransformerEncoder(str(tmp_path / "model"), batch_size=5, cache=None)
        expected = [model.encode(text) for text in TEXTS]
        np.testing.assert_allclose(encoder.transform(TEXTS), expected, atol=1e-5)

    def test_missing_tokenizer_raises(self, tmp_path):
        text_folder(tmp_path)
        for path in tmp_path.glob("tokenizer*"):
            path.unlink()
        with pytest.raises(ValueError, match="without the files of its tokenizer"):
            SentenceTransformerEncoder(str(tmp_path), cache=None).transform(TEXTS)

    def test_bfloat16_is_close(self, folder, library_model):
        encoder = SentenceTransformerEncoder(folder, cache=None, dtype="bfloat16")
        np.testing.assert_allclose(
            encoder.transform(TEXTS), library_model.encode(TEXTS), atol=0.05
        )


class TestImages:
    @pytest.mark.parametrize(
        ("params", "options"),
        [
            ({}, {}),
            ({"truncate_dim": 4}, {"truncate_dim": 4}),
            ({"normalize": True}, {"normalize_embeddings": True}),
        ],
    )
    def test_features_equal_those_of_the_library(self, clip_folder, images, params, options):
        encoder = SentenceTransformerImageEncoder(clip_folder, cache=None, **params)
        expected = st.SentenceTransformer(clip_folder, device="cpu").encode(images, **options)
        np.testing.assert_allclose(encoder.transform(images), expected, atol=1e-5)
        assert len(encoder.get_feature_names_out()) == expected.shape[1]

    def test_padded_images_are_whole(self, clip_folder, images):
        """With crop="pad", the features are those of the images on white squares."""
        squares = []
        for image in images:
            square = Image.new("RGB", (max(image.size),) * 2, "white")
            square.paste(image, tuple((max(image.size) - side) // 2 for side in image.size))
            squares.append(square)
        padded = SentenceTransformerImageEncoder(clip_folder, cache=None, crop="pad")
        cropped = SentenceTransformerImageEncoder(clip_folder, cache=None)
        features = padded.transform(images)
        np.testing.assert_allclose(features, cropped.transform(squares), atol=1e-5)
        assert not np.allclose(features[2], cropped.transform(images)[2], atol=1e-3)

    def test_large_images_are_reduced(self, clip_folder):
        encoder = SentenceTransformerImageEncoder(clip_folder, cache=None)
        gradient = np.linspace(0, 255, 4100, dtype=np.uint8)
        large = np.broadcast_to(gradient[:, None, None], (4100, 4200, 3))
        prepared = encoder._prepare_item(None, large)
        assert prepared.size == (2100, 2050)
        expected = st.SentenceTransformer(clip_folder, device="cpu").encode(
            [Image.fromarray(large)]
        )
        np.testing.assert_allclose(encoder.transform([large]), expected, atol=0.02)

    def test_both_encoders_share_a_model_and_align(self, clip_folder, images, tmp_path):
        both = {
            "image_encoder": SentenceTransformerImageEncoder(clip_folder),
            "text_encoder": SentenceTransformerEncoder(clip_folder),
        }
        models = {id(encoder._get_network().model) for encoder in both.values()}
        assert len(models) == 1
        aligner = KernelAligner(**both).fit(images, TEXTS[:4])
        aligner.save_pretrained(tmp_path / "model")
        loaded = load_pretrained(tmp_path / "model")
        np.testing.assert_allclose(loaded.transform(images), aligner.transform(images), atol=1e-6)

    def test_name_with_prefix(self, clip_folder):
        encoder = resolve_encoder(f"sentence-transformers:{clip_folder}", "image")
        assert type(encoder) is SentenceTransformerImageEncoder

    def test_text_model_raises(self, folder, images):
        encoder = SentenceTransformerImageEncoder(folder, cache=None)
        with pytest.raises(ValueError, match="does not accept images, only text"):
            encoder.transform(images)

    def test_name_of_packaged_text_model_raises(self, images):
        encoder = SentenceTransformerImageEncoder("all-MiniLM-L6-v2", cache=None)
        with pytest.raises(ValueError, match="does not accept images, only text"):
            encoder.transform(images)

    def test_export_raises(self, clip_folder, images):
        aligner = KernelAligner(
            image_encoder=SentenceTransformerImageEncoder(clip_folder),
            text_encoder=SentenceTransformerEncoder(clip_folder),
        ).fit(images, TEXTS[:4])
        with pytest.raises(ValueError, match="Use TransformersImageEncoder"):
            as_open_clip(aligner)


class TestUse:
    def test_aligner_is_saved_with_the_encoder(self, folder, tmp_path):
        X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
        encoder = SentenceTransformerEncoder(folder, prompt="query", truncate_dim=6)
        aligner = KernelAligner(text_encoder=encoder).fit(X, TEXTS)
        aligner.save_pretrained(tmp_path / "model")
        loaded = load_pretrained(tmp_path / "model")
        assert loaded.text_encoder.get_params()["truncate_dim"] == 6
        np.testing.assert_allclose(
            loaded.transform_text(TEXTS), aligner.transform_text(TEXTS), atol=1e-6
        )

    def test_name_with_prefix(self, folder):
        encoder = resolve_encoder(f"sentence-transformers:{folder}", "text")
        assert type(encoder) is SentenceTransformerEncoder

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"prompt": 3}, "prompt must be None or a str"),
            ({"dtype": "fp16"}, "dtype must be one of float32, bfloat16, float16, not 'fp16'"),
            ({"truncate_dim": 0}, "truncate_dim must be None or an integer >= 1"),
            ({"normalize": "auto"}, "normalize must be True or False"),
            ({"model_name": "all-MiniLM-L6-v3"}, "Did you mean 'all-MiniLM-L6-v2'"),
        ],
    )
    def test_invalid_parameters_raise(self, folder, params, message):
        encoder = SentenceTransformerEncoder(**{"model_name": folder, **params})
        with pytest.raises(ValueError, match=message):
            encoder.transform(TEXTS)

    def test_missing_library_raises_with_remedy(self, folder, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
        encoder = SentenceTransformerEncoder(folder, revision="another", cache=None)
        with pytest.raises(ImportError, match=r"sklearn-ape\[sentence-transformers\]"):
            encoder.transform(TEXTS)


@pytest.fixture
def plain_folder(tmp_path):
    """Return the folder of a model that `TransformersTextEncoder` computes, too."""
    (tmp_path / "transformer").mkdir()
    transformer = modules.Transformer(text_folder(tmp_path / "transformer"))
    pooling = modules.Pooling(transformer.get_embedding_dimension())
    model = st.SentenceTransformer(
        modules=[transformer, pooling, modules.Normalize()], truncate_dim=5, device="cpu"
    )
    model.save(str(tmp_path / "model"))
    return tmp_path / "model"


@pytest.mark.parametrize("encoder_class", [SentenceTransformerEncoder, TransformersTextEncoder])
def test_declared_truncation_is_applied(plain_folder, encoder_class, tmp_path):
    """Features that were cached before the file changed are not used."""
    config = plain_folder / "config_sentence_transformers.json"
    declared = config.read_text()
    config.write_text(declared.replace('"truncate_dim": 5', '"truncate_dim": null'))
    assert encoder_class(str(plain_folder), cache=tmp_path).transform(TEXTS).shape[1] > 5
    config.write_text(declared)
    features = encoder_class(str(plain_folder), cache=tmp_path).transform(TEXTS)
    expected = st.SentenceTransformer(str(plain_folder), device="cpu").encode(TEXTS)
    assert expected.shape[1] == 5
    np.testing.assert_allclose(features, expected, atol=1e-5)
