"""Encoders of transformers: pooling, texts, prompts and errors."""

import json
import warnings

import numpy as np
import pytest
import torch

from sklearn_ape import LiTAligner
from sklearn_ape.encoders import TransformersImageEncoder, TransformersTextEncoder
from sklearn_ape.features import DiskFeatureCache

transformers = pytest.importorskip("transformers")

IMAGES = list(np.random.default_rng(0).integers(0, 256, size=(3, 40, 50, 3), dtype=np.uint8))
TEXTS = ["a cat", "the dog runs on the mat", "cat"]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "the",
    "cat",
    "dog",
    "runs",
    "on",
    "mat",
]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
TEXT = {**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 16}


def tokenizer(**options):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", eos_token="[SEP]", **options
    )


def save_model(folder, config, seed=0, cls=None, prepare=None):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(config) if cls else transformers.AutoModel.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(folder)
    prepare.save_pretrained(folder)
    return model


def processor():
    size = {"height": 32, "width": 32}
    return transformers.ViTImageProcessor(size=size)


def image_config(kind):
    t = transformers
    return {
        "vit": lambda: t.ViTConfig(**VISION),
        "dinov2": lambda: t.Dinov2WithRegistersConfig(
            **{k: v for k, v in VISION.items() if k != "intermediate_size"}, num_register_tokens=2
        ),
        "convnext": lambda: t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
        "clip": lambda: t.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=6),
        "siglip": lambda: t.SiglipConfig(vision_config=VISION, text_config=TEXT),
    }[kind]()


@pytest.mark.parametrize("kind", ["vit", "dinov2", "convnext", "clip", "siglip"])
def test_image_pooling_equals_library(kind, tmp_path):
    """Every pooling equals the pooled output of the library."""
    model = save_model(tmp_path, image_config(kind), prepare=processor())
    with torch.inference_mode():
        pixels = processor()(images=IMAGES, return_tensors="pt")["pixel_values"]
        two_towers = hasattr(model, "get_image_features")
        output = (model.vision_model if two_towers else model)(pixel_values=pixels)
        last = output.last_hidden_state
        auto = model.get_image_features(pixel_values=pixels) if two_towers else output
        auto = getattr(auto, "pooler_output", auto)
    n_prefix = {"vit": 1, "dinov2": 3, "clip": 1}.get(kind, 0)
    mean = last.mean(dim=(2, 3)) if last.ndim == 4 else last[:, n_prefix:].mean(dim=1)
    expected = {"auto": auto, "mean": mean}
    if n_prefix:
        expected |= {"cls": last[:, 0], "cls+mean": torch.cat([last[:, 0], mean], dim=1)}
    encoder = TransformersImageEncoder(str(tmp_path), cache=None, batch_size=2)
    for pooling, features in expected.items():
        actual = encoder.set_params(pooling=pooling).transform(IMAGES)
        np.testing.assert_allclose(actual, features, atol=1e-4, rtol=1e-4)
    if not n_prefix:
        with pytest.raises(ValueError, match="needs a network with a class token"):
            encoder.set_params(pooling="cls").transform(IMAGES)


def test_missing_pooler_is_replaced_by_class_token(tmp_path):
    """The class token is used if the checkpoint lacks a pooler."""
    config = transformers.ViTConfig(**VISION)
    cls = transformers.ViTForImageClassification
    model = save_model(tmp_path, config, cls=cls, prepare=processor())
    with torch.inference_mode():
        pixels = processor()(images=IMAGES, return_tensors="pt")["pixel_values"]
        expected = model.vit(pixel_values=pixels).last_hidden_state[:, 0]
    actual = TransformersImageEncoder(str(tmp_path), cache=None).transform(IMAGES)
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("engine", ["torch", "onnx", "openvino"])
def test_masked_autoencoder_sees_all_patches(engine, tmp_path):
    """Features of ViT-MAE do not leave out random patches, as its training does."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, transformers.ViTMAEConfig(**VISION), prepare=processor())
    model = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.inference_mode():
        pixels = processor()(images=IMAGES, return_tensors="pt")["pixel_values"]
        last = model(pixel_values=pixels).last_hidden_state
    options = {"cache": DiskFeatureCache(tmp_path / "cache"), "engine": engine, "batch_size": 2}
    for pooling, expected in {"auto": last[:, 0], "mean": last[:, 1:].mean(dim=1)}.items():
        encoder = TransformersImageEncoder(str(folder), pooling=pooling, **options)
        np.testing.assert_allclose(encoder.transform(IMAGES), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "n_tokens"), [("roberta", 15), ("xlnet", 512)])
def test_long_text_is_cut_to_usable_positions(kind, n_tokens, tmp_path):
    """RoBERTa does not use its first positions, and XLNet accepts texts of any length."""
    sizes = {"vocab_size": 12, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16}
    configs = {
        "roberta": lambda: transformers.RobertaConfig(**TEXT, pad_token_id=0),
        "xlnet": lambda: transformers.XLNetConfig(**sizes),
    }
    save_model(tmp_path, configs[kind](), prepare=tokenizer())
    encoder = TransformersTextEncoder(str(tmp_path), cache=None)
    start = "cat " * (n_tokens - 3)  # two tokens are special
    texts = [f"{start} dog", f"{start} cat", f"{start} cat dog dog"]
    other, longest, cut = encoder.transform(texts)
    np.testing.assert_allclose(cut, longest, atol=1e-5)
    assert np.abs(longest - other).max() > 1e-4
    if kind == "roberta":
        with pytest.raises(ValueError, match="is more than the 15 positions"):
            encoder.set_params(max_length=16).transform(texts)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_text_pooling_equals_library(kind, tmp_path):
    """Pooling ignores padding."""
    t = transformers
    config = {
        "bert": lambda: t.BertConfig(**TEXT),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=12, n_positions=16, n_embd=16, n_layer=2, n_head=2
        ),
        "t5": lambda: t.T5Config(
            vocab_size=12, d_model=16, d_kv=8, d_ff=24, num_heads=2, num_layers=2
        ),
    }[kind]()
    tokenize = tokenizer(padding_side="left")
    model = save_model(tmp_path, config, prepare=tokenize)
    network = model.get_encoder() if kind == "t5" else model
    expected = {"mean": [], "cls": [], "cls+mean": [], "last": []}
    with torch.inference_mode():
        for text in TEXTS:
            ids = tokenize([text], return_tensors="pt")["input_ids"]
            last = network(input_ids=ids).last_hidden_state[0]
            expected["mean"].append(last.mean(dim=0))
            expected["cls"].append(last[0])
            expected["cls+mean"].append(torch.cat([last[0], last.mean(dim=0)]))
            expected["last"].append(last[-1])
    expected["auto"] = expected["mean"]
    encoder = TransformersTextEncoder(str(tmp_path), cache=None)
    for pooling, features in expected.items():
        actual = encoder.set_params(pooling=pooling).transform(TEXTS)
        np.testing.assert_allclose(actual, torch.stack(features), atol=1e-4, rtol=1e-4)
    lengths = encoder.set_params(normalize=True).transform(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(lengths, axis=1), 1, atol=1e-5)
    cut = encoder.set_params(max_length=3, normalize=False).transform(["cat dog", "cat mat"])
    np.testing.assert_allclose(cut[0], cut[1], atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_text_embedding_of_two_tower_model(kind, tmp_path):
    """ "auto" is the model's text embedding, independent of the batch."""
    tokenize = tokenizer()
    config = image_config(kind)
    config.text_config.eos_token_id = 3
    model = save_model(tmp_path, config, prepare=tokenize)
    padding = (
        {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    )
    tokens = tokenize(TEXTS, return_tensors="pt", **padding)
    mask = {} if kind == "siglip" else {"attention_mask": tokens["attention_mask"]}
    with torch.inference_mode():
        expected = model.get_text_features(input_ids=tokens["input_ids"], **mask)
    expected = getattr(expected, "pooler_output", expected)
    for size in (1, 3):
        encoder = TransformersTextEncoder(str(tmp_path), cache=None, batch_size=size)
        np.testing.assert_allclose(encoder.transform(TEXTS), expected, atol=1e-4, rtol=1e-4)
    width = encoder.set_params(pooling="mean").transform(TEXTS).shape[1]
    assert width == 16


@pytest.fixture
def sentence_folder(tmp_path):
    save_model(tmp_path, transformers.BertConfig(**TEXT), prepare=tokenizer())

    def write(pooling, *more):
        kinds = ["Transformer", "Pooling", *more]
        modules = [
            {"idx": n, "name": str(n), "path": f"{n}_{kind}", "type": f"x.models.{kind}"}
            for n, kind in enumerate(kinds)
        ]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "1_Pooling").mkdir(exist_ok=True)
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        return TransformersTextEncoder(str(tmp_path), cache=None)

    return write


@pytest.mark.parametrize(
    ("declared", "ours"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls+mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_declared_pooling_is_used(sentence_folder, declared, ours):
    """ "auto" follows old and new sentence-transformers files."""
    auto = sentence_folder(declared, "Normalize").transform(TEXTS)
    encoder = sentence_folder(declared).set_params(pooling=ours, normalize=True)
    np.testing.assert_allclose(auto, encoder.transform(TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    ("declared", "more"),
    [
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ()),
        ({"pooling_mode_weightedmean_tokens": True}, ()),
        ({"pooling_mode_max_tokens": True}, ()),
        ({"pooling_mode_mean_tokens": True}, ("Dense",)),
    ],
)
def test_unsupported_declared_pooling_raises(sentence_folder, declared, more):
    encoder = sentence_folder(declared, *more)
    with pytest.raises(ValueError, match=r"not supported for this model.* Pass pooling='mean'"):
        encoder.transform(TEXTS)
    assert encoder.set_params(pooling="mean").transform(TEXTS).shape == (3, 16)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"modality_config": {"text": {}, "message": {}}}, "chat template"),
        ({"processing_kwargs": {"text": {"max_length": 4}}}, "processing_kwargs"),
        ({"modality_config": {"text": {}}, "processing_kwargs": {"image": {}}}, None),
    ],
)
def test_unsupported_declared_preparation_raises(sentence_folder, tmp_path, options, name):
    """sentence-transformers 6 passes texts through the chat template that a tokenizer has."""
    encoder = sentence_folder({"pooling_mode": "mean"})
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(options))
    if name is not None:
        with pytest.raises(ValueError, match=f"whose files declare 'mean and {name}'"):
            encoder.transform(TEXTS)
        encoder.set_params(pooling="mean")
    assert encoder.transform(TEXTS).shape == (3, 16)


def test_minilm_equals_sentence_transformers():
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sklearn_ape.encoders.weights import find_packaged_file

    texts = ["a cat", "Ein Hund läuft über die Straße.", "a long text " * 200, "日本語"]
    folder = str(find_packaged_file("all-MiniLM-L6-v2").parent)
    expected = sentence_transformers.SentenceTransformer(folder, device="cpu").encode(texts)
    actual = TransformersTextEncoder(cache=None, device="cpu").transform(texts)
    actual /= np.linalg.norm(actual, axis=1, keepdims=True)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_replaced_model_folder_is_reloaded(tmp_path):
    """Another model in the same folder is loaded and encoded again."""
    encoder = TransformersTextEncoder(str(tmp_path))
    config = transformers.BertConfig(**TEXT)
    save_model(tmp_path, config, prepare=tokenizer())
    first = encoder.transform(TEXTS)
    save_model(tmp_path, config, seed=1, prepare=tokenizer())
    second = encoder.transform(TEXTS)
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_allclose(second, encoder.set_params(cache=None).transform(TEXTS), atol=1e-6)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damaged_model_folder_raises(tmp_path, file):
    """Errors of the library become a ValueError with the folder."""
    save_model(tmp_path, transformers.BertConfig(**TEXT), prepare=tokenizer())
    (tmp_path / file).write_bytes(b"garbage" * 9)
    with pytest.raises(ValueError, match="is a folder that could not be loaded"):
        TransformersTextEncoder(str(tmp_path)).transform(TEXTS)


@pytest.mark.parametrize("kind", ["Bert", "T5", "DebertaV2"])
def test_missing_tokenizer_raises(kind, tmp_path):
    """transformers makes a tokenizer without a vocabulary, for which all texts are alike."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    config = getattr(transformers, f"{kind}Config")(
        **(sizes | {"vocab_size": 12} if kind == "T5" else TEXT)
    )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"without the files of its tokenizer.* Save the token"):
        TransformersTextEncoder(str(tmp_path), cache=None).transform(TEXTS)


def test_settings_of_the_wrong_type_raise(tmp_path):
    save_model(tmp_path, transformers.BertConfig(**TEXT), prepare=tokenizer())
    (tmp_path / "sentence_bert_config.json").write_text("[16]")
    with pytest.raises(ValueError, match="is a folder that could not be loaded"):
        TransformersTextEncoder(str(tmp_path), cache=None).transform(TEXTS)


def test_max_length_beyond_positions_raises(tmp_path):
    n_positions = TEXT["max_position_embeddings"]
    save_model(tmp_path, transformers.BertConfig(**TEXT), prepare=tokenizer())
    encoder = TransformersTextEncoder(str(tmp_path), max_length=n_positions + 1, cache=None)
    with pytest.raises(ValueError, match=f"max_length={n_positions + 1} is more than"):
        encoder.transform(["cat"])
    assert len(encoder.set_params(max_length=n_positions).transform(["cat " * 99])) == 1


def test_max_length_without_room_for_text_raises(tmp_path):
    """All texts would have the same features, or would not be truncated."""
    save_model(tmp_path, transformers.BertConfig(**TEXT), prepare=tokenizer())
    for length in (1, 2):  # the tokenizer adds two tokens
        encoder = TransformersTextEncoder(str(tmp_path), max_length=length, cache=None)
        with pytest.raises(ValueError, match=f"max_length={length} leaves no room .* at least 3"):
            encoder.transform(["cat", "dog"])
    features = encoder.set_params(max_length=3).transform(["cat", "dog", "cat dog"])
    assert not np.allclose(features[0], features[1])
    np.testing.assert_allclose(features[0], features[2], rtol=1e-5)


def test_batches_are_sorted_by_tokens(tmp_path, monkeypatch):
    """Texts are sorted by tokens, not letters, to reduce padding."""
    save_model(tmp_path, transformers.BertConfig(**TEXT), prepare=tokenizer())
    encoder = TransformersTextEncoder(str(tmp_path), batch_size=2, cache=None)
    encoder.transform(["cat"])  # the first call also checks whether padding changes features
    shapes = []
    tensors = TransformersTextEncoder._make_tensors

    def record(self, network, batch):
        inputs = tensors(self, network, batch)
        shapes.append((len(batch), inputs[0].shape[1], int(inputs[1].sum())))
        return inputs

    monkeypatch.setattr(TransformersTextEncoder, "_make_tensors", record)
    # Four words of one letter have more tokens than one word of five letters.
    texts = ["a a a a", "xxxxxxxxxx", "a a a cat", "yyyyyyyyyyyy"]
    together = encoder.fit(texts).transform(texts)
    # Threads prepare batches concurrently, so their order is not fixed.
    assert sorted((n, length) for n, length, _ in shapes) == [(2, 3), (2, 6)]
    assert all(n * length == words for n, length, words in shapes)
    alone = np.concatenate([encoder.transform([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("kind", ["fnet", "convbert", "aimv2"])
def test_features_do_not_depend_on_the_batch(kind, tmp_path):
    """FNet does not mask padding, ConvBERT only in attention, and AIMv2 changes with a mask."""
    config = {
        "aimv2": lambda: transformers.Aimv2Config(
            vision_config=VISION, text_config={**TEXT, "eos_token_id": 3}, projection_dim=6
        ),
        "fnet": lambda: transformers.FNetConfig(**{**TEXT, "num_attention_heads": None}),
        "convbert": lambda: transformers.ConvBertConfig(**TEXT, embedding_size=16, head_ratio=1),
    }[kind]()
    save_model(tmp_path, config, prepare=tokenizer())
    encoder = TransformersTextEncoder(str(tmp_path), batch_size=3, cache=None)
    alone = np.concatenate([encoder.transform([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.transform(TEXTS), alone, rtol=1e-5)


LOUD = [text.upper() for text in TEXTS]
NOTHING = {"pooling_mode_mean_tokens": True}


@pytest.fixture
def siglip(tmp_path):
    """A tiny SigLIP with a case-sensitive tokenizer, as Gemma's."""
    save_model(tmp_path, image_config("siglip"), prepare=tokenizer())
    return tmp_path


def sentence_model(folder, prompts=None, default=None, pooling=NOTHING, **sentence):
    """Write a tiny BERT as sentence-transformers would."""
    save_model(folder, transformers.BertConfig(**TEXT), prepare=tokenizer())
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

    def test_lit_tower_lower_cases(self, siglip):
        """LiT uses the encoder's preparation of texts."""
        image = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
        aligner = LiTAligner(text_encoder=str(siglip), max_epochs=1, random_state=0)
        aligner.fit(image, TEXTS)
        np.testing.assert_array_equal(aligner.transform_text(LOUD), aligner.transform_text(TEXTS))


class TestSentenceTransformers:
    def test_empty_prompts_do_not_warn(self, tmp_path):
        encoder = sentence_model(tmp_path, prompts={"query": "", "document": ""})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            features = encoder.transform(LOUD)
        np.testing.assert_allclose(features, theirs(tmp_path, LOUD), atol=1e-5)

    def test_do_lower_case_is_applied(self, tmp_path):
        encoder = sentence_model(tmp_path, do_lower_case=True)
        features = encoder.transform(LOUD)
        np.testing.assert_allclose(features, theirs(tmp_path, LOUD), atol=1e-5)
        np.testing.assert_array_equal(features, encoder.transform(TEXTS))

    def test_default_prompt_is_prepended(self, tmp_path):
        encoder = sentence_model(tmp_path, {"query": "the dog ", "other": "cat "}, "query")
        features = encoder.transform(TEXTS)
        np.testing.assert_allclose(features, theirs(tmp_path, TEXTS), atol=1e-5)
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
