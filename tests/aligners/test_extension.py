"""Extension of a fitted aligner by further pairs: APEAligner(init=aligner)."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler, normalize
from torch.nn.functional import cross_entropy

from sklearn_ape import APEAligner, CCAAligner, KernelAligner, LiTAligner, load_starter
from sklearn_ape.aligners import _extension, _kernel_maps
from sklearn_ape.aligners._extension import Extension, choose_encoder
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder
from sklearn_ape.heads import TwoTower
from sklearn_ape.training.data import PairDataset
from sklearn_ape.training.net import embed_pairs

# Weight and ridge of a pair with the default parameters.
WEIGHT, RIDGE = 0.1, 0.3


class Column:
    """Column of a Hugging Face dataset, which is neither a list nor an array."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, row):
        return self.values[row]


@pytest.fixture(scope="module")
def pairs():
    """Pairs of two kinds: the second has other texts and a constant in its images."""
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((700, 10))
    image = concepts @ rng.standard_normal((10, 32)) + 0.3 * rng.standard_normal((700, 32))
    text = concepts @ rng.standard_normal((10, 16)) + 0.5 * rng.standard_normal((700, 16))
    image[400:] += 2 * rng.standard_normal(32)
    text[400:] += rng.standard_normal(16)
    return SimpleNamespace(image=image.astype(np.float32), text=text.astype(np.float32))


@pytest.fixture(scope="module")
def base(pairs):
    return KernelAligner().fit(pairs.image[:400], pairs.text[:400])


@pytest.fixture(scope="module")
def own(pairs):
    return pairs.image[400:500], pairs.text[400:500]


def extend(base, own, **init_params):
    return APEAligner(init=base, init_params=init_params).fit(*own)


@pytest.mark.parametrize("strength", [1.0, 0.1])
def test_text_embeddings_are_base_plus_kernel_ridge_regression(
    base, own, pairs, strength, monkeypatch
):
    monkeypatch.setattr(_extension, "_STRENGTHS", (strength,))
    image, text = own
    aligner = extend(base, own, own_share=0)
    targets = base.transform(image).astype(np.float64)
    targets -= targets.mean(axis=0)
    predictions = base.transform_text(text).astype(np.float64)
    scale = (predictions * targets).sum(axis=1).mean()

    def kernel(left, right):
        return np.exp(base.gamma_ * (normalize(left) @ normalize(right).T - 1))

    matrix = kernel(text, text) + RIDGE / WEIGHT * np.eye(len(text))
    coefficients = np.linalg.solve(matrix, targets - scale * predictions)
    new = pairs.text[500:]
    expected = scale * base.transform_text(new) + strength * kernel(new, text) @ coefficients
    np.testing.assert_allclose(aligner.transform_text(new), normalize(expected), atol=1e-4)


def test_images_are_centered_on_the_mean_of_own_images(base, own, pairs):
    centered = extend(base, own, own_share=0)
    mean = base.transform(own[0]).mean(axis=0)
    np.testing.assert_allclose(
        centered.transform(pairs.image), normalize(base.transform(pairs.image) - mean), atol=1e-5
    )
    plain = extend(base, own, center=False, own_share=0)
    np.testing.assert_allclose(
        plain.transform(pairs.image), base.transform(pairs.image), atol=1e-6
    )


def test_extension_is_better_than_the_base_and_than_own_pairs(base, own, pairs):
    test = pairs.image[500:], pairs.text[500:]
    extended = APEAligner(init=base).fit(*own).score(*test)
    assert extended > base.score(*test)
    assert extended > KernelAligner().fit(*own).score(*test)


def test_weight_changes_how_closely_pairs_are_fitted(base, own):
    errors = []
    for weight in (0.01, 4.0, 1000.0):
        aligner = extend(base, own, weight=weight, own_share=0)
        errors.append(1 - np.diag(aligner.similarity(*own)).mean())
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("own_share", ["auto", 0])
def test_correction_by_noisy_pairs_is_weak(own_share, monkeypatch):
    """The base knows the test images already, and the own pairs say little about them."""
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((10, 32)), rng.standard_normal((10, 16))

    def make_pairs(n_pairs, noise):
        concepts = rng.standard_normal((n_pairs, 10))
        image, text = (concepts @ matrix for matrix in maps)
        return image + noise * rng.standard_normal(image.shape), text

    base = KernelAligner().fit(*make_pairs(1000, 0.3))
    own, test = make_pairs(100, 8), make_pairs(300, 0.3)
    chosen = extend(base, own, own_share=own_share)
    assert chosen.score(*test) > base.score(*test) - 0.02
    monkeypatch.setattr(_extension, "_STRENGTHS", (1.0,))
    assert extend(base, own, own_share=0).score(*test) < base.score(*test) - 0.05


@pytest.mark.parametrize("center", [True, False])
def test_losses_that_are_compared_are_those_of_the_fitted_heads(base, own, center):
    """The cross-validation computes the corrected cosines itself, without the heads."""
    pairs = np.column_stack([np.arange(100), np.arange(100)])
    extension = Extension(base, PairDataset(*own, pairs), 0.1, center, torch.device("cpu"), 0)
    train, valid = pairs[:80], np.arange(80, 100)
    losses = extension._measure_losses(train, valid, (0.0, 0.3))
    held_out = PairDataset(own[0][80:], own[1][80:], pairs[:20])
    expected = []
    for share in (0.0, 0.3):
        for strength in _extension._STRENGTHS:
            image, text = embed_pairs(extension.fit(train, strength, share), held_out)
            cosines = torch.from_numpy(image @ text.T)
            target = torch.arange(20)
            expected.append(
                [
                    sum(
                        cross_entropy(s * m, target, reduction="none")
                        for m in (cosines, cosines.T)
                    )
                    / 2
                    for s in _extension._LOGIT_SCALES
                ]
            )
    np.testing.assert_allclose(losses, np.array(expected), atol=1e-3)


class TestOwnShare:
    """Share of a KernelAligner of the own pairs in the cosines."""

    def test_cosines_are_weighted_means(self, base, own, pairs):
        test = pairs.image[500:600], pairs.text[500:600]
        without = extend(base, own, own_share=0).similarity(*test)
        alone = KernelAligner().fit(*own).similarity(*test)
        for share in (0.3, 1.0):
            mixed = extend(base, own, own_share=share).similarity(*test)
            np.testing.assert_allclose(mixed, (1 - share) * without + share * alone, atol=1e-5)

    def test_own_heads_have_the_better_kernel(self, base, own, monkeypatch):
        """With 5,000 pairs, a KernelAligner compares two kernels."""
        monkeypatch.setattr(_kernel_maps, "_N_COMPARED_PAIRS", 100)
        monkeypatch.setattr(_kernel_maps, "_MIN_RELATIVE_GAIN", -1)  # the wide kernel always wins
        own_head = extend(base, own, own_share=0.3).module_.text_head.second
        narrow = KernelAligner(gamma="scale").fit(*own)
        assert float(own_head.base.gamma) == pytest.approx(narrow.gamma_ / 4, rel=0.2)

    def test_is_above_zero_if_the_base_was_fitted_to_noise(self, own, pairs):
        """An extension must not be worse than the own pairs alone."""
        rng = np.random.default_rng(0)
        useless = KernelAligner().fit(pairs.image[:400], rng.permutation(pairs.text[:400]))
        extended = APEAligner(init=useless).fit(*own)
        assert extended.own_share_ > 0
        test = pairs.image[500:], pairs.text[500:]
        assert extended.score(*test) >= KernelAligner().fit(*own).score(*test) - 0.02

    def test_is_zero_if_images_and_captions_do_not_match(self, base, own):
        image, text = own
        shuffled = np.random.default_rng(0).permutation(text)
        assert APEAligner(init=base).fit(image, shuffled).own_share_ == 0

    def test_is_zero_with_few_pairs_or_captions(self, base, own):
        image, text = own
        assert APEAligner(init=base).fit(image[:49], text[:49]).own_share_ == 0
        assert APEAligner(init=base).fit(image, np.repeat(text[:2], 50, axis=0)).own_share_ == 0

    def test_is_found_by_the_loss_of_pairs_that_were_held_out(self, base, own, monkeypatch):
        """Own heads know the pairs that they were fitted to, so the base would never be used."""
        image, text = own
        seen = []
        fit_own_heads = Extension._fit_own_heads
        monkeypatch.setattr(
            Extension,
            "_fit_own_heads",
            lambda self, pairs: seen.append(pairs) or fit_own_heads(self, pairs),
        )
        APEAligner(init=base).fit(image, text)
        assert [len(pairs) for pairs in seen[:5]] == [80] * 5
        counts = np.bincount(np.concatenate(seen[:5])[:, 0])
        assert counts.tolist() == [4] * 100  # each pair is held out once


def test_caption_of_several_images_is_one_anchor(base, own):
    image, text = own
    repeated = np.repeat(text[:50], 2, axis=0)
    aligner = extend(base, (image, repeated), own_share=0)
    assert len(aligner.module_.text_head.correction.anchors) == 50


def test_extension_can_be_extended(base, own, pairs):
    first = APEAligner(init=base).fit(*own)
    second = APEAligner(init=first).fit(pairs.image[500:600], pairs.text[500:600])
    test = pairs.image[600:], pairs.text[600:]
    assert second.score(*test) > base.score(*test)


def test_trained_aligner_can_be_extended(own, pairs):
    """A base without a kernel: gamma follows from the captions."""
    base = APEAligner(init=None, width=32, max_epochs=5, random_state=0)
    base.fit(pairs.image[:400], pairs.text[:400])
    aligner = APEAligner(init=base).fit(*own)
    assert np.isfinite(aligner.transform_text(pairs.text)).all()


def test_extension_of_a_wide_kernel_is_narrow(own, pairs, base):
    wide = KernelAligner(gamma=base.gamma_ / 4).fit(pairs.image[:400], pairs.text[:400])
    aligner = extend(wide, own, own_share=0)
    correction = aligner.module_.text_head.correction
    assert float(correction.gamma) == pytest.approx(base.gamma_, rel=1e-3)


def test_saved_extension_contains_the_base(base, own, pairs, tmp_path):
    aligner = extend(base, own, own_share=0.3)
    aligner.save_pretrained(tmp_path / "model")
    restored = APEAligner.from_pretrained(tmp_path / "model")
    assert restored.init is None
    assert restored.own_share_ == aligner.own_share_ == pytest.approx(0.3)
    np.testing.assert_array_equal(
        restored.transform_text(pairs.text), aligner.transform_text(pairs.text)
    )


def test_base_is_not_changed(base, own):
    before = base.fingerprint_
    APEAligner(init=base).fit(*own)
    assert base.module_.fingerprint() == before


def test_frozen_base_survives_clones(base, own):
    aligner = APEAligner(init=FrozenEstimator(base))
    assert np.isfinite(cross_val_score(aligner, *own, cv=2)).all()
    with pytest.raises(ValueError, match="FrozenEstimator"):
        clone(APEAligner(init=base)).fit(*own)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"init_params": {"weight": 0}}, r"init_params\['weight'\] must be a number"),
        ({"init_params": {"center": 1}}, r"init_params\['center'\] must be True or False"),
        ({"init_params": {"own_share": 1.1}}, "own_share.* must be a number in"),
        (
            {"init_params": {"own_share": "all"}},
            r"init_params\['own_share'\], if not 'auto', must",
        ),
        ({"init_params": {"share": 1}}, "init_params has the unknown key 'share'"),
        ({"init": "start"}, "init='start' is not the name .*'starter', a fitted"),
    ],
)
def test_invalid_parameter_raises(base, own, parameters, message):
    with pytest.raises(ValueError, match=message):
        APEAligner(**{"init": base, **parameters}).fit(*own)


def test_base_of_another_class_raises(own, pairs):
    base = CCAAligner().fit(pairs.image[:400], pairs.text[:400])
    with pytest.raises(TypeError, match="init must be a fitted APEAligner or KernelAligner"):
        APEAligner(init=base).fit(*own)
    with pytest.raises(TypeError, match="init must be an aligner"):
        APEAligner(init=3).fit(*own)


def test_aligner_with_another_text_module_as_base_raises(base, own):
    """The tower of LiTAligner takes tokens, to which no features can be added."""
    tuned = LiTAligner()
    tuned.module_ = TwoTower(base.module_.image_head, torch.nn.Linear(16, 32))
    tuned.n_components_ = 32
    with pytest.raises(TypeError, match="a fitted APEAligner or KernelAligner, not LiTAligner"):
        APEAligner(init=tuned).fit(*own)


def test_base_with_other_numbers_of_features_raises(base, own):
    image, text = own
    with pytest.raises(ValueError, match="X has 31 features, and init was fitted with 32"):
        APEAligner(init=base).fit(image[:, 1:], text)
    with pytest.raises(ValueError, match="y has 15 features, and init was fitted with 16"):
        APEAligner(init=base).fit(image, text[:, 1:])


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 255, (12, 40, 40, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def captions():
    return [f"noise number {number}" for number in range(12)]


@pytest.fixture(scope="module")
def extended(images, captions):
    return APEAligner(init="starter").fit(images, captions)


class TestEncodersThatLearn:
    """A fit of TfidfVectorizer on the own captions would change the columns of the base."""

    CAPTIONS = ("red cat", "blue dog", "green bus", "red dog", "blue cat", "red bus")

    @pytest.fixture
    def base(self):
        X = np.random.default_rng(0).standard_normal((6, 12)).astype(np.float32)
        aligner = KernelAligner(text_encoder=TfidfVectorizer())
        return aligner.fit(X, list(self.CAPTIONS)), X

    @pytest.mark.parametrize("encoder", [None, TfidfVectorizer()])
    def test_stay_as_fitted(self, base, encoder):
        base, X = base
        extended = APEAligner(init=base, text_encoder=encoder)
        extended.fit(X[:3], ["red cat", "ruby cat", "green bus"])
        assert extended.text_encoder_.vocabulary_ == base.text_encoder_.vocabulary_

    def test_with_other_parameters_raise(self, base):
        base, X = base
        extended = APEAligner(init=base, text_encoder=TfidfVectorizer(ngram_range=(1, 2)))
        with pytest.raises(ValueError, match="Pass text_encoder=None to use the encoder of init"):
            extended.fit(X[:3], list(self.CAPTIONS[:3]))


class TestEncodersOfTables:
    """Without the scaler of the base, its heads would get features of another scale."""

    SCALES = np.arange(1, 33)

    @pytest.mark.parametrize("parameters", [{}, {"image_encoder": StandardScaler()}])
    @pytest.mark.parametrize("n_steps", [0, 1, 2])
    def test_encode_own_images(self, pairs, own, n_steps, parameters):
        images, texts, scaler = pairs.image * self.SCALES, pairs.text, StandardScaler()
        scaled = scaler.fit(images[:400]).transform(images)
        expected = APEAligner(init=KernelAligner().fit(scaled[:400], texts[:400]))
        expected.fit(scaled[400:500], texts[400:500])
        if n_steps == 0:
            base = KernelAligner(image_encoder=scaler)
        else:
            steps = [scaler, FunctionTransformer()][:n_steps]
            base, parameters = make_pipeline(*steps, KernelAligner()), {}
        extended = APEAligner(init=base.fit(images[:400], texts[:400]), **parameters)
        embeddings = extended.fit(images[400:500], texts[400:500]).transform(images)
        np.testing.assert_allclose(embeddings, expected.transform(scaled), atol=1e-6)


def test_other_number_of_components_raises(base, own):
    with pytest.raises(ValueError, match="n_components must be None or that of init, 32"):
        APEAligner(init=base, n_components=10).fit(*own)


class TestStarter:
    def test_encoders_of_the_starter_are_used(self, extended, images, captions):
        assert extended.transform(images[:2]).shape == (2, 640)
        assert extended.transform_text(["a cat"]).shape == (1, 640)
        similarity = extended.similarity(images, captions)
        assert np.diag(similarity).mean() > similarity.mean() + 0.1

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("to_column", [Column, pa.array, np.array, pd.Series, tuple])
    def test_captions_in_any_sequence_are_encoded(self, extended, images, captions, to_column):
        aligner = APEAligner(init="starter").fit(images, to_column(captions))
        np.testing.assert_allclose(
            aligner.transform_text(captions), extended.transform_text(captions), atol=1e-5
        )

    @pytest.mark.exhaustive
    def test_table_of_captions_is_encoded(self, images, captions):
        several = [[caption, f"a {caption}"] for caption in captions]
        one, two = (
            APEAligner(init="starter").fit(images, y) for y in (several, np.array(several))
        )
        np.testing.assert_array_equal(one.transform_text(captions), two.transform_text(captions))

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("to_column", [Column, pd.Series])
    def test_images_in_any_sequence_are_encoded(self, extended, images, captions, to_column):
        """Pixels of an image in another sequence than a list were taken as features."""
        aligner = APEAligner(init="starter").fit(to_column(images), captions)
        np.testing.assert_allclose(
            aligner.transform(images), extended.transform(images), atol=1e-5
        )

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("to_sequence", [list, np.stack])
    def test_grey_images_are_encoded(self, images, captions, to_sequence):
        """Arrays of two dimensions were taken as features."""
        grey = to_sequence([image[..., 0] for image in images])
        colour = [np.repeat(image[..., :1], 3, axis=2) for image in images]
        one, two = (APEAligner(init="starter").fit(X, captions) for X in (grey, colour))
        np.testing.assert_allclose(one.transform(grey), two.transform(colour), atol=1e-5)

    def test_paths_in_an_arrow_column_are_encoded(self, extended, images, captions, tmp_path):
        paths = [str(tmp_path / f"{number}.png") for number in range(len(images))]
        for image, path in zip(images, paths, strict=True):
            Image.fromarray(image).save(path)
        aligner = APEAligner(init="starter").fit(pa.array(paths), captions)
        np.testing.assert_allclose(
            aligner.transform(images), extended.transform(images), atol=1e-5
        )

    @pytest.mark.parametrize("labels", [[0, 1] * 6, [b"cat"] * 12])
    def test_labels_as_captions_raise(self, images, labels):
        with pytest.raises(ValueError, match=r"y holds values that are not texts.*FewShot"):
            APEAligner(init="starter").fit(images, labels)

    def test_settings_of_given_encoders_are_those_of_the_starter(self, extended, images, captions):
        """Other settings give other features, for which the starter was not made."""
        aligner = APEAligner(
            init="starter",
            image_encoder=TimmImageEncoder("efficientnet_lite0", batch_size=4),
            text_encoder=TransformersTextEncoder("all-MiniLM-L6-v2"),
        )
        with pytest.warns(UserWarning, match="image_encoder is used with .*pooling='gem'"):
            aligner.fit(images, captions)
        assert aligner.image_encoder_.batch_size == 4
        np.testing.assert_allclose(
            aligner.transform(images), extended.transform(images), atol=1e-4
        )

    def test_encoder_of_another_model_raises(self, images, captions):
        aligner = APEAligner(init="starter", image_encoder=TimmImageEncoder("resnet18"))
        with pytest.raises(ValueError, match="image_encoder=None to use the encoder of init"):
            aligner.fit(images, captions)

    def test_restored_extension_takes_images(self, extended, images, tmp_path):
        extended.save_pretrained(tmp_path / "model")
        restored = APEAligner.from_pretrained(tmp_path / "model")
        assert restored.init == "starter"
        np.testing.assert_allclose(
            restored.transform(images), extended.transform(images), atol=1e-5
        )

    def test_starter_is_not_changed(self, extended):
        assert load_starter().module_.fingerprint() == load_starter().fingerprint_


class TestEncodersOfTheBase:
    def test_other_encoders_are_named(self):
        with pytest.raises(
            ValueError, match=r"image_encoder is PCA.* and init was fitted with Timm"
        ):
            APEAligner(init="starter", image_encoder=PCA(2)).fit([["a.png"]], ["a"])

    @pytest.mark.parametrize("freeze", [FrozenEstimator, lambda encoder: encoder])
    def test_encoder_may_be_frozen(self, freeze):
        base = load_starter()
        chosen = choose_encoder(freeze(base.text_encoder_), base.text_encoder_, "text")
        assert chosen.get_params() == base.text_encoder_.get_params()
