"""Declared lower-casing and prompts, compared with sentence-transformers."""

import json
import warnings

import numpy as np
import pytest

from sklearn_ape import LiTAligner
from sklearn_ape.encoders import TransformersTextEncoder
from tests.encoders.test_transformers import TEXT, TEXTS, image_config, saved, tokenizer

transformers = pytest.importorskip("transformers")

LOUD = [text.upper() for text in TEXTS]
NOTHING = {"pooling_mode_mean_tokens": True}


@pytest.fixture
def siglip(tmp_path):
    """A tiny SigLIP with a case-sensitive tokenizer, as Gemma's."""
    saved(tmp_path, image_config("siglip"), prepare=tokenizer())
    return tmp_path


def sentence_model(folder, prompts=None, default=None, pooling=NOTHING, **sentence):
    """Write a tiny BERT as sentence-transformers would."""
    saved(folder, transformers.BertConfig(**TEXT), prepare=tokenizer())
    kinds = ["Transformer", "Pooling"]
    modules = [
        {"idx": n, "name": str(n), "path": "" if n == 0 else f"{n}_{kind}",
         "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]  # fmt: skip
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, **pooling}
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": 16, **sentence},
        "config_sentence_transformers.json": {
            "prompts": prompts or {},
            "default_prompt_name": default,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return TransformersTextEncoder(str(folder), cache=None, engine="torch")


def theirs(folder, texts):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)


class TestSigLIP:
    def test_case_does_not_change_features(self, siglip):
        encoder = TransformersTextEncoder(str(siglip), cache=None)
        loud, quiet = encoder.transform(LOUD), encoder.transform(TEXTS)
        np.testing.assert_array_equal(loud, quiet)
        assert np.abs(quiet[0] - quiet[1]).max() > 1e-3

    def test_case_does_not_change_mean_pooling(self, siglip):
        encoder = TransformersTextEncoder(str(siglip), cache=None, pooling="mean")
        np.testing.assert_array_equal(encoder.transform(LOUD), encoder.transform(TEXTS))

    def test_lower_case_changes_cache_key(self, siglip):
        assert TransformersTextEncoder(str(siglip))._identity()["lower"] is True

    @pytest.mark.parametrize("name", ["SiglipTokenizer", "Siglip2Tokenizer"])
    def test_lower_casing_tokenizer_keeps_cache_key(self, siglip, name):
        file = siglip / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": name}))
        assert "lower" not in TransformersTextEncoder(str(siglip))._identity()

    def test_lit_tower_lower_cases(self, siglip):
        """LiT uses the encoder's preparation of texts."""
        image = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
        aligner = LiTAligner(text_encoder=str(siglip), max_epochs=1, random_state=0)
        aligner.fit(image, TEXTS)
        np.testing.assert_array_equal(aligner.transform_text(LOUD), aligner.transform_text(TEXTS))


class TestSentenceTransformers:
    def test_model_without_prompt_keeps_cache_key(self, tmp_path):
        encoder = sentence_model(tmp_path, prompts={"query": "", "document": ""})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            identity = encoder._identity()
        assert identity.keys() == {
            "weights", "library", "pooling", "normalize", "max_length"
        }  # fmt: skip
        np.testing.assert_allclose(encoder.transform(LOUD), theirs(tmp_path, LOUD), atol=1e-5)

    def test_do_lower_case_is_applied(self, tmp_path):
        encoder = sentence_model(tmp_path, do_lower_case=True)
        features = encoder.transform(LOUD)
        np.testing.assert_allclose(features, theirs(tmp_path, LOUD), atol=1e-5)
        np.testing.assert_array_equal(features, encoder.transform(TEXTS))
        assert encoder._identity()["lower"] is True

    def test_default_prompt_is_prepended(self, tmp_path):
        encoder = sentence_model(tmp_path, {"query": "the dog ", "other": "cat "}, "query")
        features = encoder.transform(TEXTS)
        np.testing.assert_allclose(features, theirs(tmp_path, TEXTS), atol=1e-5)
        assert encoder._identity()["prompt"] == "the dog "
        (tmp_path / "config_sentence_transformers.json").unlink()
        prompted = encoder.transform([f"the dog {text}" for text in TEXTS])
        np.testing.assert_allclose(prompted, features, atol=1e-6)

    def test_prompts_without_default_warn(self, tmp_path):
        encoder = sentence_model(tmp_path, {"query": "the dog ", "passage": "cat "})
        with pytest.warns(UserWarning, match=r"has prompts \('query', 'passage'\) but no default"):
            features = encoder.transform(TEXTS)
        np.testing.assert_allclose(features, theirs(tmp_path, TEXTS), atol=1e-5)

    def test_prompt_excluded_from_pooling_raises(self, tmp_path):
        pooling = {**NOTHING, "include_prompt": False}
        encoder = sentence_model(tmp_path, {"query": "the dog "}, "query", pooling)
        with pytest.raises(ValueError, match="files declare 'mean without the prompt'"):
            encoder.transform(TEXTS)

    def test_missing_default_prompt_raises(self, tmp_path):
        encoder = sentence_model(tmp_path, {"query": "the dog "}, "passage")
        with pytest.raises(ValueError, match="default_prompt_name='passage' is not among"):
            encoder.transform(TEXTS)
