"""LiTAligner: trained parameters, fitting and errors, with tiny text encoders."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from skorch.callbacks import Callback

from sklearn_ape import LiTAligner, ZeroShotClassifier, load_pretrained
from sklearn_ape.encoders import OpenCLIPTextEncoder, TransformersTextEncoder

transformers = pytest.importorskip("transformers")

ADJECTIVES = [f"kind{i}" for i in range(12)]
NOUNS = [f"thing{i}" for i in range(20)]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}


def save_encoder(folder, kind="bert"):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", *ADJECTIVES, *NOUNS]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    text = {**SMALL, "vocab_size": len(vocabulary)}
    vision = {**SMALL, "image_size": 16, "patch_size": 8}
    vision.pop("max_position_embeddings")
    config = {
        "bert": lambda: transformers.BertConfig(**text),
        "clip": lambda: transformers.CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=6
        ),
        "siglip": lambda: transformers.SiglipConfig(text_config=text, vision_config=vision),
        "t5": lambda: transformers.T5Config(
            vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=24, num_heads=2, num_layers=2
        ),
        "fnet": lambda: transformers.FNetConfig(**{**text, "num_attention_heads": None}),
    }[kind]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", eos_token="[SEP]"
    ).save_pretrained(folder)
    return TransformersTextEncoder(str(folder))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def pairs():
    """Return 240 images, each the sum of an adjective and a noun, and their captions."""
    rng = np.random.default_rng(0)
    adjectives, nouns = rng.standard_normal((12, 24)), rng.standard_normal((20, 24))
    concepts = [(a, n) for a in range(12) for n in range(20)]
    concepts = [concepts[i] for i in rng.permutation(240)]
    image = np.stack([adjectives[a] + nouns[n] for a, n in concepts]).astype(np.float32)
    return image, [f"a {ADJECTIVES[a]} {NOUNS[n]}" for a, n in concepts]


def small(encoder, **parameters):
    defaults = {
        "max_epochs": 3, "batch_size": 32, "learning_rate": 3e-3, "head_learning_rate": 1e-2,
        "random_state": 0,
    }  # fmt: skip
    return LiTAligner(text_encoder=encoder, **(defaults | parameters))


@pytest.fixture(scope="module")
def fitted(encoder, pairs):
    """Return an aligner with the parameters of `small`, which tests do not change."""
    return small(encoder).fit(*pairs)


@pytest.fixture(scope="module")
def briefly_fitted(encoder, pairs):
    """Return an aligner fitted in one epoch, which tests do not change."""
    return small(encoder, max_epochs=1).fit(*pairs)


class TokenBatchNorm(torch.nn.BatchNorm1d):
    """Batch norm of the features of all tokens."""

    def forward(self, hidden_states):
        return super().forward(hidden_states.transpose(1, 2)).transpose(1, 2)


def weights(module):
    return {name: p.detach().clone() for name, p in module.state_dict().items()}


def find_changed(encoder, aligner):
    """Return the names of the tower's weights that differ from those of the encoder."""
    initial = dict(encoder._load_network(torch.device("cpu")).model.named_parameters())
    tuned = aligner.module_.text_head.tower.named_parameters()
    return {name for name, parameter in tuned if not torch.equal(parameter, initial[name])}


class TestWhatIsTrained:
    def test_fit_does_not_change_the_encoder(self, encoder, pairs):
        """Other aligners in the process use the same network."""
        before = encoder.transform(pairs[1][:5])
        network = encoder._get_network().model
        initial = weights(network)
        aligner = small(encoder).fit(*pairs)
        assert encoder._get_network().model is network
        assert all(torch.equal(initial[name], p) for name, p in weights(network).items())
        assert not any(p.requires_grad for p in network.parameters())
        after = TransformersTextEncoder(encoder.model_name, cache=None).transform(pairs[1][:5])
        np.testing.assert_array_equal(before, after)
        assert len(find_changed(encoder, aligner)) > 10

    def test_unlocked_layers_none_trains_all_used_weights(self, encoder, fitted):
        """The pooler is not trained, because features do not depend on it."""
        tower = fitted.module_.text_head.tower
        names = {name for name, _ in tower.named_parameters() if not name.startswith("pooler")}
        assert find_changed(encoder, fitted) == names
        n_tower = sum(p.numel() for n, p in tower.named_parameters() if n in names)
        assert fitted.n_parameters_ == n_tower + 16 * 24 + 24

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("n_layers", [0, 1, 2])
    def test_only_unlocked_layers_are_trained(self, encoder, pairs, n_layers):
        aligner = small(encoder, unlocked_layers=n_layers, weight_decay=0.5).fit(*pairs)
        names = [name for name, _ in aligner.module_.text_head.tower.named_parameters()]
        layers = tuple(f"encoder.layer.{i}." for i in range(3 - n_layers, 3))
        expected = {name for name in names if name.startswith(layers)} if n_layers else set()
        assert find_changed(encoder, aligner) == expected

    def test_image_embeddings_are_standardized_features(self, encoder, pairs):
        aligner = small(encoder, early_stopping=False).fit(*pairs)
        standardized = (pairs[0] - pairs[0].mean(axis=0)) / pairs[0].std(axis=0)
        expected = standardized / np.linalg.norm(standardized, axis=1, keepdims=True)
        np.testing.assert_allclose(aligner.transform(pairs[0]), expected, atol=1e-5)

    def test_untrained_tower_gives_the_features_of_the_encoder(self, encoder, pairs):
        """Stored tokens are padded per batch, which must not change features of any length."""
        texts = [pairs[1][0], NOUNS[3], f"{pairs[1][1]} {pairs[1][2]}", "a"]
        tower = small(encoder, unlocked_layers=0).fit(*pairs).module_.text_head
        with torch.inference_mode():
            features = tower.features(torch.from_numpy(tower.tokenize(texts)))
        np.testing.assert_allclose(features, encoder.transform(texts), atol=1e-5)

    def test_all_features_of_the_tower_have_one_scale(self, briefly_fitted):
        """Some features of MiniLM hardly vary; with a scale per feature training fails."""
        projection = briefly_fitted.module_.text_head.projection
        assert len(projection.standardize.scale.unique()) == 1

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("kind", ["clip", "siglip", "t5"])
    def test_towers_of_other_models_are_trained(self, tmp_path, pairs, kind):
        """Features equal the encoder's, and vision towers and decoders are not stored."""
        encoder = save_encoder(tmp_path, kind)
        aligner = small(encoder, unlocked_layers=1, max_epochs=1).fit(*pairs)
        names = [name for name, _ in aligner.module_.text_head.tower.named_parameters()]
        assert not any(name.startswith(("vision", "visual", "decoder")) for name in names)
        trained = find_changed(encoder, aligner)
        assert trained
        assert not any("embed" in name for name in trained)
        tower = small(encoder, unlocked_layers=0, max_epochs=1).fit(*pairs).module_.text_head
        with torch.inference_mode():
            features = tower.features(torch.from_numpy(tower.tokenize(pairs[1][:4])))
        np.testing.assert_allclose(features, encoder.transform(pairs[1][:4]), atol=1e-5)


class TestFit:
    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
    def test_fit_learns_concepts(self, encoder, pairs, loss):
        image, captions = pairs
        aligner = small(encoder, loss=loss, max_epochs=15).fit(image[:180], captions[:180])
        assert aligner.score(image[180:], captions[180:]) > 0.2  # chance is 1 / 60
        assert aligner.history_[-1]["train_loss"] < aligner.history_[0]["train_loss"]
        assert {"epoch", "train_loss", "valid_recall", "logit_scale", "dur"} == set(
            aligner.history_[0]
        )
        recalls = [row["valid_recall"] for row in aligner.history_]
        assert aligner.best_epoch_ == int(np.argmax(recalls)) + 1

    @pytest.mark.exhaustive
    def test_best_epoch_is_kept_with_its_scale(self, encoder, pairs):
        """Early stopping restores the logit scale of the best epoch."""
        aligner = small(encoder, max_epochs=40, n_iter_no_change=2, learning_rate=3e-2)
        aligner.fit(*pairs)
        assert aligner.n_epochs_ == aligner.best_epoch_ + 2 < 40
        best = aligner.history_[aligner.best_epoch_ - 1]
        assert aligner.logit_scale_ == pytest.approx(best["logit_scale"], rel=1e-5)

    def test_same_seed_gives_bitwise_identical_fits(self, encoder, pairs, fitted):
        """Dropout of the tower does not depend on the global generator either."""
        before = copy.deepcopy(np.random.get_state())  # noqa: NPY002
        torch.rand(7)
        state = torch.get_rng_state()
        second = small(encoder).fit(*pairs)
        assert torch.equal(state, torch.get_rng_state())
        assert before[1].tolist() == np.random.get_state()[1].tolist()  # noqa: NPY002
        assert second.fingerprint_ == fitted.fingerprint_
        assert small(encoder, random_state=1).fit(*pairs).fingerprint_ != fitted.fingerprint_

    @pytest.mark.exhaustive
    def test_gradient_checkpointing_does_not_change_the_fit(self, encoder, pairs, fitted):
        checkpointed = small(encoder, gradient_checkpointing=True).fit(*pairs)
        assert checkpointed.fingerprint_ == fitted.fingerprint_
        pickle.dumps(checkpointed)

    @pytest.mark.exhaustive
    def test_autocast_of_the_caller_does_not_change_a_fit_with_checkpointing(self, encoder, pairs):
        """The backward pass computes activations again, from copies of the weights."""
        aligner = small(encoder, gradient_checkpointing=True, dtype="bfloat16", max_epochs=2)
        expected = clone(aligner).fit(*pairs).fingerprint_
        with torch.autocast("cpu", torch.bfloat16):
            assert clone(aligner).fit(*pairs).fingerprint_ == expected

    @pytest.mark.exhaustive
    def test_bfloat16_keeps_float32_weights_and_embeddings(self, encoder, pairs):
        """Only the computation of the tower is in bfloat16."""
        aligner = small(encoder, dtype="bfloat16", max_epochs=15).fit(*pairs)
        assert aligner.transform_text(pairs[1][:2]).dtype == np.float32
        assert {p.dtype for p in aligner.module_.parameters()} == {torch.float32}
        assert aligner.score(*pairs) > 0.2

    @pytest.mark.exhaustive
    def test_several_and_shared_captions_are_positives(self, encoder, pairs):
        image, captions = pairs
        several = [[caption, caption.split()[-1]] for caption in captions]
        aligner = small(encoder, max_epochs=15).fit(image, several)
        assert aligner.retrieval_report(image, several)["image_to_text"][10] > 0.5

    def test_tokens_beyond_max_length_are_ignored(self, encoder, pairs):
        aligner = small(encoder, max_length=4, max_epochs=1).fit(*pairs)
        first, second = aligner.transform_text(["a kind1 thing1", "a kind1 thing2"])
        np.testing.assert_array_equal(first, second)

    def test_n_components_sets_the_embedding_width(self, encoder, pairs):
        aligner = small(encoder, n_components=5, max_epochs=1).fit(*pairs)
        assert aligner.transform(pairs[0]).shape == (240, 5)
        assert aligner.transform_text(["a"]).shape == (1, 5)
        assert aligner.n_components_ == 5
        assert len(aligner.get_feature_names_out()) == 5

    def test_interruption_by_a_callback_warns(self, encoder, pairs):
        class Interrupt(Callback):
            def on_epoch_end(self, net, **kwargs):
                if len(net.history) == 2:
                    raise KeyboardInterrupt

        with pytest.warns(UserWarning, match="stopped after 2 of 3 epochs"):
            small(encoder, callbacks=[Interrupt()]).fit(*pairs)

    def test_divergence_raises_with_the_parameters_to_lower(self, encoder, pairs):
        with pytest.raises(FloatingPointError, match=r"Lower learning_rate.*head_learning_rate"):
            small(encoder, learning_rate=1e30).fit(*pairs)


class TestScikitLearn:
    def test_equal_texts_are_encoded_once(self, briefly_fitted, monkeypatch):
        batch_sizes = []
        tower = type(briefly_fitted.module_.text_head)
        features = tower.features
        monkeypatch.setattr(
            tower, "features", lambda self, t: batch_sizes.append(len(t)) or features(self, t)
        )
        embeddings = briefly_fitted.transform_text(["a", "a kind1", "a", "a"])
        assert batch_sizes == [2]
        np.testing.assert_array_equal(embeddings[0], embeddings[3])
        assert not np.allclose(embeddings[0], embeddings[1])

    @pytest.mark.exhaustive
    def test_pickle_has_the_trained_weights_and_clone_has_not(self, tmp_path, pairs, monkeypatch):
        encoder = save_encoder(tmp_path)
        aligner = small(encoder).fit(*pairs)
        stored = pickle.dumps(aligner)
        monkeypatch.setattr(
            TransformersTextEncoder, "_load_network", None
        )  # loading the encoder would fail
        restored = pickle.loads(stored)
        np.testing.assert_array_equal(
            restored.transform_text(pairs[1]), aligner.transform_text(pairs[1])
        )
        assert restored.fingerprint_ == aligner.fingerprint_
        cloned = clone(aligner)
        assert not hasattr(cloned, "module_")
        assert len(pickle.dumps(cloned)) < len(stored) / 4

    def test_statistics_of_batch_norms_are_saved(self, tmp_path, pairs, monkeypatch):
        """Training changes these buffers, which are not parameters of the tower."""
        embeddings_class = transformers.models.bert.modeling_bert.BertEmbeddings
        initialize = embeddings_class.__init__

        def initialize_with_batch_norm(self, config):
            initialize(self, config)
            self.LayerNorm = TokenBatchNorm(config.hidden_size)

        monkeypatch.setattr(embeddings_class, "__init__", initialize_with_batch_norm)
        text_encoder, checkpoint = save_encoder(tmp_path / "bert"), tmp_path / "checkpoint"
        aligner = small(text_encoder, max_epochs=1, checkpoint=checkpoint).fit(*pairs)
        batch_norm = aligner.module_.text_head.tower.embeddings.LayerNorm
        assert batch_norm.num_batches_tracked > 0
        aligner.save_pretrained(tmp_path / "model")
        restored = small(text_encoder, max_epochs=1, checkpoint=checkpoint).fit(*pairs)
        for copied in (load_pretrained(tmp_path / "model"), restored):
            assert copied.fingerprint_ == aligner.fingerprint_
            np.testing.assert_array_equal(
                copied.transform_text(pairs[1]), aligner.transform_text(pairs[1])
            )

    @pytest.mark.exhaustive
    def test_pipeline_and_classifier_predict(self, encoder, pairs):
        image, captions = pairs
        truth = [caption.split()[-1] for caption in captions]
        model = make_pipeline("passthrough", small(encoder, max_epochs=8))
        model.fit(image, [[caption, f"a {caption.split()[-1]}"] for caption in captions])
        classifier = ZeroShotClassifier(NOUNS, aligner=model, templates=["a {}"])
        assert classifier.score(image, truth) > 0.3  # chance is 1 / 20

    def test_name_and_frozen_encoder_give_equal_fits(self, encoder, pairs, briefly_fitted):
        expected = briefly_fitted.fingerprint_
        for text_encoder in (encoder.model_name, FrozenEstimator(encoder)):
            assert small(text_encoder, max_epochs=1).fit(*pairs).fingerprint_ == expected

    @pytest.mark.exhaustive
    def test_passes_all_estimator_checks_with_texts_as_y(self, encoder):
        """The checks pass numbers as y, which `fit` rejects, so they are converted to captions."""
        expected = {
            "check_complex_data": "its y is complex, which raises before X is checked",
            "check_dtype_object": "its y has objects that are not captions, which raises",
        }
        aligner = CaptionedLiTAligner(text_encoder=encoder, max_epochs=1, batch_size=32)
        results = check_estimator(
            aligner, on_skip=None, on_fail="raise", expected_failed_checks=expected
        )
        statuses = [result["status"] for result in results]
        assert statuses.count("passed") >= 45
        assert (
            len(statuses) - statuses.count("passed") <= 3
        )  # the array API check may be skipped too


def make_captions(y):
    y = np.asarray(y)
    if y.ndim == 0 or y.dtype.kind not in "fiu" or not np.isfinite(y).all():
        return None if y.ndim == 0 else y
    return [f"a {NOUNS[int(number) % 20]}" for number in y.reshape(len(y), -1)[:, 0]]


class CaptionedLiTAligner(LiTAligner):
    def fit(self, X, y):
        return super().fit(X, make_captions(y))

    def transform_text(self, y):
        return super().transform_text(make_captions(y))

    def score(self, X, y):
        return super().score(X, make_captions(y))


class TestInvalidInput:
    def test_features_as_captions_raise(self, encoder, pairs, briefly_fitted):
        image, _ = pairs
        for aligner in (small(encoder), small(None)):
            with pytest.raises(ValueError, match="y contains features, and LiTAligner"):
                aligner.fit(image, np.zeros((240, 4)))
        with pytest.raises(ValueError, match="y holds values that are not texts"):
            small(encoder).fit(image, np.arange(240))
        with pytest.raises(ValueError, match="y contains features, and LiTAligner"):
            briefly_fitted.transform_text(np.zeros((3, 4)))

    def test_encoders_that_cannot_be_trained_raise(self, pairs):
        for encoder in (TfidfVectorizer(), OpenCLIPTextEncoder()):
            with pytest.raises(TypeError, match="must be a TransformersTextEncoder or the name"):
                small(encoder).fit(*pairs)

    def test_encoder_without_mask_raises(self, tmp_path, pairs):
        with pytest.raises(ValueError, match="does not mask padding, so that it cannot be"):
            small(save_encoder(tmp_path, "fnet")).fit(*pairs)

    def test_captions_without_text_encoder_raise(self, pairs):
        with pytest.raises(ValueError, match=r"text_encoder is None\. Pass text_encoder="):
            small(None).fit(*pairs)

    def test_failed_fit_keeps_the_previous_fit(self, encoder, pairs):
        aligner = small(encoder, max_epochs=1).fit(*pairs)
        before = aligner.transform_text(["a kind1"])
        with pytest.raises(FloatingPointError):
            aligner.set_params(learning_rate=1e30).fit(*pairs)
        np.testing.assert_array_equal(aligner.transform_text(["a kind1"]), before)
        assert not hasattr(aligner, "_tower")

    def test_images_that_failed_to_encode_are_left_out(self, encoder, pairs):
        image = pairs[0].copy()
        image[7] = np.nan
        with pytest.warns(UserWarning, match=r"left out \(1 of .*: 7\."):
            aligner = small(encoder, max_epochs=1).fit(image, pairs[1])
        assert np.isnan(aligner.transform(image)[7]).all()

    @pytest.mark.parametrize(
        ("parameter", "value", "message"),
        [("batch_size", 1, "batch_size must be an integer >= 2, not 1"),
         ("unlocked_layers", 4, "unlocked_layers=4, but the text encoder has 3 layers"),
         ("unlocked_layers", -1, "unlocked_layers must be None or an integer >= 0"),
         ("n_components", 25, "n_components must be None or at most 24"),
         ("max_length", 0, "max_length must be None or an integer >= 1"),
         ("loss_params", {"logit_scale": 0}, r"loss_params\['logit_scale'\] must be a number in"),
         ("loss_params", {"tile_size": 4}, "loss_params has the unknown key 'tile_size'"),
         ("head_learning_rate", 0, r"head_learning_rate must be a number in \(0, inf\)"),
         ("gradient_checkpointing", "no", "gradient_checkpointing must be True or False"),
         ("dtype", "float16", "dtype must be one of auto, float32, bfloat16"),
         ("loss", "mse", "loss must be one of infonce, sigmoid"),
         ("device", "gpu", "device must be 'auto'")],
    )  # fmt: skip
    def test_invalid_parameter_raises(self, encoder, pairs, parameter, value, message):
        with pytest.raises(ValueError, match=message):
            small(encoder, **{parameter: value}).fit(*pairs)


def test_projection_of_clip_has_the_learning_rate_of_its_tower(tmp_path, pairs):
    """Only the linear map that is trained from scratch has the rate of the head."""
    rates = {}

    class RecordRates(Callback):
        def on_train_begin(self, net, **kwargs):
            names = {id(weight): name for name, weight in net.module_.named_parameters()}
            for group in net.optimizer_.param_groups:
                for weight in filter(lambda weight: id(weight) in names, group["params"]):
                    rates[names[id(weight)]] = group.get("initial_lr", group["lr"])

    encoder = save_encoder(tmp_path, "clip")
    small(encoder, max_epochs=1, callbacks=[("rates", RecordRates())]).fit(*pairs)
    assert rates["text_head.tower.text_projection.weight"] == pytest.approx(3e-3)
    assert rates["text_head.projection.linear.weight"] == pytest.approx(1e-2)
