"""SentenceTransformerEncoder on models that are built here, compared with the library."""

import numpy as np
import pytest
import torch

from sklearn_ape import KernelAligner, load_pretrained
from sklearn_ape.encoders import SentenceTransformerEncoder, TransformersTextEncoder
from sklearn_ape.encoders.resolve import resolve_encoder
from tests.encoders.tiny_networks import TEXTS, text_folder

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

    def test_bfloat16_is_close(self, folder, library_model):
        encoder = SentenceTransformerEncoder(folder, cache=None, dtype="bfloat16")
        np.testing.assert_allclose(
            encoder.transform(TEXTS), library_model.encode(TEXTS), atol=0.05
        )


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
