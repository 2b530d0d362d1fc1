"""KernelAligner against kernel ridge regression of scikit-learn on whitened images."""

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.preprocessing import normalize

from sklearn_ape import APEAligner, KernelAligner
from sklearn_ape.aligners import _kernel_ridge, kernel
from sklearn_ape.aligners._closed_form import (
    Targets,
    fit_logit_scale,
    make_linear_maps,
    whiten_images,
)
from sklearn_ape.aligners._kernel_maps import make_kernel_maps
from sklearn_ape.encoders import HeadPairs
from sklearn_ape.training.data import PairDataset


def whitened(image, whitening, owner=None):
    """Return the embeddings of distinct images by a decomposition in double precision."""
    units = normalize(image.astype(np.float64))
    covariance = np.cov(units.T, bias=True)
    if owner is not None:
        groups = [units[owner == number] for number in np.unique(owner)]
        deviations = np.concatenate([group - group.mean(axis=0) for group in groups])
        n_samples = sum(len(group) - 1 for group in groups)
        style = deviations.T @ deviations / n_samples
        weight = n_samples / (n_samples + image.shape[1])
        style *= np.trace(covariance) / np.trace(style)
        covariance = (1 - weight) * covariance + weight * style
        whitening /= 1 + 2 * weight
    variances, directions = np.linalg.eigh(covariance)
    nonzero = variances > 1e-6 * variances.max()
    scales = np.sqrt(variances[nonzero] / variances.max() + whitening)
    return normalize((units - units.mean(axis=0)) @ directions[:, nonzero] / scales)


def of_several_images(seed=0):
    """Features of 90 images with 40 captions: some have one image, some have many."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((90, 12)).astype(np.float32)
    text = rng.standard_normal((40, 6)).astype(np.float32)
    owner = np.concatenate([np.arange(40), rng.integers(0, 8, 50)])
    return image, text, owner


def test_image_map_equals_direct_whitening(concepts):
    """Gram matrices are compared, since signs of directions are arbitrary."""
    aligner = KernelAligner(whitening=0.1).fit(concepts.image, concepts.text)
    embeddings, expected = aligner.transform(concepts.image), whitened(concepts.image, 0.1)
    assert embeddings.shape == expected.shape
    np.testing.assert_allclose(embeddings @ embeddings.T, expected @ expected.T, atol=1e-4)


@pytest.mark.parametrize(("offset", "in_twos"), [(0, False), (200, False), (0, True)])
def test_image_map_of_repeated_captions_equals_direct_whitening(offset, in_twos):
    """The covariance within captions is part of the one that is whitened."""
    image, text, owner = of_several_images()
    image += offset
    if in_twos:
        image, owner = image[:80], np.arange(80) % 40
    aligner = KernelAligner(whitening=0.1).fit(image, text[owner])
    embeddings, expected = aligner.transform(image), whitened(image, 0.1, owner)
    np.testing.assert_allclose(embeddings @ embeddings.T, expected @ expected.T, atol=1e-4)


def test_style_of_images_with_one_caption_is_suppressed():
    """Strong differences within captions do not decide which images are similar."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(50), 8)
    concepts, text = rng.standard_normal((50, 4)), rng.standard_normal((50, 6))
    image = np.hstack([concepts[owner], 5 * rng.standard_normal((400, 4))])
    # Without this, the rates are 0.35 and 0.01.
    for n_components, rate in ((None, 0.5), (4, 0.9)):
        aligner = KernelAligner(n_components=n_components)
        embeddings = aligner.fit(image, text[owner]).transform(image)
        similarities = embeddings @ embeddings.T
        np.fill_diagonal(similarities, -1)
        assert np.mean(owner[similarities.argmax(axis=1)] == owner) > rate


def test_copies_of_images_do_not_change_the_whitening():
    """Differences as small as rounding errors are not taken for style."""
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((60, 8)), rng.standard_normal((60, 6))
    single = KernelAligner().fit(image, text).transform(image)
    copies = np.vstack([image, image + 3e-5 * rng.standard_normal((60, 8))])
    doubled = KernelAligner().fit(copies, np.vstack([text, text])).transform(image)
    np.testing.assert_allclose(doubled @ doubled.T, single @ single.T, atol=1e-4)


@pytest.mark.parametrize("gamma", [2.0, "scale"])
def test_text_map_equals_kernel_ridge_regression(gamma):
    """A caption is weighted by its images: one row per pair gives the same result."""
    image, text, owner = of_several_images()
    aligner = KernelAligner(gamma=gamma, ridge=0.5).fit(image, text[owner])
    embeddings = aligner.transform(image)
    targets = embeddings - embeddings.mean(axis=0)
    new = np.random.default_rng(1).standard_normal((20, 6)).astype(np.float32)

    def kernel(one, other):
        return np.exp(aligner.gamma_ * (normalize(one) @ normalize(other).T - 1))

    by_pair = KernelRidge(alpha=0.5, kernel="precomputed").fit(
        kernel(text[owner], text[owner]), targets
    )
    counts = np.bincount(owner)
    means = np.stack([targets[owner == number].mean(axis=0) for number in range(40)])
    by_text = KernelRidge(alpha=0.5, kernel="precomputed").fit(
        kernel(text, text), means, sample_weight=counts
    )
    text_embeddings = aligner.transform_text(new)
    for expected in (
        by_pair.predict(kernel(new, text[owner])),
        by_text.predict(kernel(new, text)),
    ):
        np.testing.assert_allclose(text_embeddings, normalize(expected), atol=1e-4)


def test_linear_maps_equal_ridge_regression():
    image, text, owner = of_several_images()
    pairs = PairDataset(image, text, np.column_stack([np.arange(90), owner]))
    maps = make_linear_maps(pairs, whiten_images(pairs, 0.03, None), ridge=0.3)
    embeddings = whitened(image, 0.03, owner)
    units = normalize(text[owner].astype(np.float64))
    alpha = 0.3 * units.var(axis=0).mean() * len(units)
    signs = (maps.image(torch.from_numpy(image)).numpy() * embeddings[:, ::-1]).sum(axis=0)
    expected = Ridge(alpha=alpha).fit(units, embeddings[:, ::-1] * np.sign(signs))
    expected = (units - units.mean(axis=0)) @ expected.coef_.T
    np.testing.assert_allclose(maps.text(torch.from_numpy(text[owner])), expected, atol=1e-4)


def test_gamma_scales_with_the_variance_of_the_captions():
    """The same captions in a narrow cone give the same accuracy."""
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((80, 8)), rng.standard_normal((80, 20))
    wide = KernelAligner().fit(image, text)
    narrow = KernelAligner().fit(image, text + 3)
    assert wide.gamma_ == pytest.approx(6.8, rel=0.05)
    assert narrow.gamma_ > 5 * wide.gamma_
    assert KernelAligner(gamma=3).fit(image, text).gamma_ == 3


def test_all_captions_as_anchors_give_the_exact_solution(concepts):
    exact = KernelAligner().fit(concepts.image, concepts.text)
    enough = KernelAligner(max_anchors=300).fit(concepts.image, concepts.text)
    assert enough.fingerprint_ == exact.fingerprint_


def test_few_anchors_approximate_smooth_maps():
    angle = np.linspace(0, 3, 600)
    text = np.column_stack([np.cos(angle), np.sin(angle)])
    image = np.column_stack([np.sin(k * angle) for k in range(1, 6)])
    exact = KernelAligner().fit(image, text)
    few = KernelAligner(max_anchors=60).fit(image, text)
    assert few.module_.text_head.base.anchors.shape == (60, 2)
    cosines = (exact.transform_text(text) * few.transform_text(text)).sum(axis=1)
    assert cosines.min() > 0.99
    repeated = KernelAligner(max_anchors=60).fit(image, text)
    other = KernelAligner(max_anchors=60, random_state=1).fit(image, text)
    assert few.fingerprint_ == repeated.fingerprint_ != other.fingerprint_


def test_few_anchors_minimize_the_squared_errors_of_all_pairs():
    """The minimum of squared errors over all pairs, with the ridge on the span of the anchors."""
    image, text, owner = of_several_images()
    aligner = KernelAligner(gamma=2.0, ridge=0.5, max_anchors=20).fit(image, text[owner])
    anchors = aligner.module_.text_head.base.anchors.double().numpy()
    embeddings = aligner.transform(image)

    def kernel(features):
        return np.exp(2 * (normalize(features.astype(np.float64)) @ anchors.T - 1))

    by_pair = kernel(text[owner])
    coefficients = np.linalg.solve(
        by_pair.T @ by_pair + 0.5 * kernel(anchors),
        by_pair.T @ (embeddings - embeddings.mean(axis=0)),
    )
    expected = normalize(kernel(text) @ coefficients)
    np.testing.assert_allclose(aligner.transform_text(text), expected, atol=2e-3)


def test_captions_beyond_the_memory_are_fitted_through_the_most_similar_anchor(monkeypatch):
    """The minimum of squared errors of all pairs, if predictions are the kernel times another.

    The prediction for a caption is that for the most similar anchor times the kernel of both.
    """
    monkeypatch.setattr(kernel, "count_fitting_anchors", lambda device: 20)
    image, text, owner = of_several_images()
    aligner = KernelAligner(gamma=2.0, ridge=0.5).fit(image, text[owner])
    anchors = aligner.module_.text_head.base.anchors.double().numpy()
    assert len(anchors) == 20
    embeddings = aligner.transform(image)
    texts = normalize(text[owner].astype(np.float64))
    cosines = texts @ anchors.T
    nearest = cosines.argmax(axis=1)
    between_anchors = np.exp(2 * (anchors @ anchors.T - 1))
    factors = np.exp(2 * (cosines.max(axis=1) - 1))
    assert factors.min() < 0.8
    rows = factors[:, None] * between_anchors[nearest]
    coefficients = np.linalg.solve(
        rows.T @ rows + 0.5 * between_anchors,
        rows.T @ (embeddings - embeddings.mean(axis=0)),
    )
    expected = normalize(np.exp(2 * (cosines - 1)) @ coefficients)
    np.testing.assert_allclose(aligner.transform_text(text[owner]), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("max_anchors", "ridge", "gamma"), [(500, 0.3, 0.01), (5000, 1e-6, "scale"), (500, 0.3, 1e5)]
)
def test_captions_equal_in_single_precision_are_solved(max_anchors, ridge, gamma):
    """Rounding makes eigenvalues of these matrices negative."""
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((1500, 4)), rng.standard_normal((1500, 2))
    aligner = KernelAligner(max_anchors=max_anchors, ridge=ridge, gamma=gamma).fit(image, text)
    assert np.isfinite(aligner.transform_text(text)).all()


def test_captions_of_zeros_are_ignored():
    """A vectorizer returns zeros for captions of unknown words."""
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((80, 8)), rng.standard_normal((80, 5))
    text[60:] = 0
    aligner = KernelAligner().fit(image, text)
    without = KernelAligner().fit(image[:60], text[:60])
    assert aligner.fingerprint_ == without.fingerprint_
    assert np.isfinite(aligner.transform_text(text)).all()


def test_logit_scale_is_that_of_a_solution_without_the_held_out_pairs(concepts, monkeypatch):
    """An approximation needs a second solution. With all texts as anchors, one is enough."""
    scale = KernelAligner(gamma=2.0).fit(concepts.image, concepts.text).logit_scale_
    # Conjugate gradients give no predictions of held-out texts.
    monkeypatch.setattr(_kernel_ridge, "count_fitting_anchors", lambda *args: 120)
    iterative = KernelAligner(gamma=2.0, max_anchors=1000).fit(concepts.image, concepts.text)
    assert scale == pytest.approx(iterative.logit_scale_, rel=1e-3)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("cls", [KernelAligner, APEAligner])
def test_logit_scale_of_few_images_suits_new_images(features, cls):
    """Images that the whitening is computed from seem less similar to each other than new ones.

    If the held-out images were among them, the scales would be 19 and 32 instead of 9.
    """
    aligner = cls(random_state=0).fit(features.image[:150], features.text[:150])
    new = aligner.transform(features.image[150:]), aligner.transform_text(features.text[150:])
    best = fit_logit_scale(*new, np.column_stack([np.arange(150)] * 2))
    assert aligner.logit_scale_ == pytest.approx(best, rel=0.4)


def test_fewer_components_are_the_directions_of_largest_variance(concepts):
    full = KernelAligner().fit(concepts.image, concepts.text)
    few = KernelAligner(n_components=5).fit(concepts.image, concepts.text)
    assert few.transform(concepts.image).shape == (300, 5)
    np.testing.assert_array_equal(
        few.module_.image_head.base.directions, full.module_.image_head.base.directions[:, :5]
    )
    assert full.n_components_ == 8  # the 32 features are linear in 8 concepts


def test_head_pairs_are_used_like_training_pairs(concepts):
    rng = np.random.default_rng(1)
    head = HeadPairs(rng.standard_normal((5, 32)), rng.standard_normal((5, 16)).astype(np.float32))
    aligner = KernelAligner(head_pairs=head).fit(concepts.image, concepts.text)
    data = aligner._fit_pairs(concepts.image, concepts.text)
    images, texts = data.pairs.T
    same = KernelAligner().fit(data.image[images], data.text[texts])
    assert len(same.module_.text_head.base.anchors) == 305
    np.testing.assert_allclose(
        aligner.transform_text(concepts.text), same.transform_text(concepts.text), atol=1e-5
    )


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [("gamma", 0, r"gamma must be a number in \(0, inf\), not 0"),
     ("gamma", "wide", "gamma must be a number above 0, 'auto' or 'scale', not 'wide'"),
     ("ridge", 0, r"ridge must be a number in \(0, inf\)"),
     ("whitening", -1, "whitening must be a number"),
     ("n_components", 33, "n_components must be None or at most 32, .*, not 33"),
     ("max_anchors", 1, "max_anchors must be .auto. or an integer >= 2"),
     ("device", "gpu", "device must be 'auto'")],
)  # fmt: skip
def test_invalid_parameter_raises(concepts, parameter, value, message):
    with pytest.raises(ValueError, match=message):
        KernelAligner(**{parameter: value}).fit(concepts.image, concepts.text)


def test_anchors_do_not_depend_on_held_out_pairs():
    """Held-out captions remain in the features when the logit scale is fitted."""
    image, text, owner = of_several_images()
    pairs = np.column_stack([np.arange(90), owner])[:30]
    options = {"gamma": 2.0, "ridge": 0.3, "max_anchors": 99, "seed": 0}
    options["device"] = torch.device("cpu")

    def solve(data):
        return make_kernel_maps(Targets(data, whiten_images(data, 0.03, None)), **options)

    maps = solve(PairDataset(image, text, pairs))
    reference = solve(PairDataset(image[:30], text[:30], pairs))
    np.testing.assert_array_equal(maps.text.coefficients, reference.text.coefficients)
    np.testing.assert_array_equal(maps.image.directions, reference.image.directions)


def test_logit_scale_of_many_images_of_few_labels_suits_new_images(concepts):
    """Their labels are not held out of the fit, so that the fit of the rest is computed."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 4000)
    images = (concepts.image[labels] + 2 * rng.standard_normal((4000, 32))).astype(np.float32)
    texts = concepts.text[:6]
    aligner = KernelAligner().fit(images[:2000], texts[labels[:2000]])
    new = aligner.transform(images[2000:]), aligner.transform_text(texts)
    best = fit_logit_scale(*new, np.column_stack([np.arange(2000), labels[2000:]]))
    assert aligner.logit_scale_ == pytest.approx(best, rel=0.1)
