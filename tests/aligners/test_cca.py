"""CCAAligner: canonical correlations, invariances and parameters."""

import numpy as np
import pytest
from sklearn.cross_decomposition import CCA

from sklearn_ape import CCAAligner


@pytest.fixture
def views():
    """Two well-conditioned views of 3 of 6 and 5 concepts."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((500, 3))
    image = np.hstack([shared, rng.standard_normal((500, 3))]) + 0.3 * rng.standard_normal(
        (500, 6)
    )
    text = np.hstack([shared, rng.standard_normal((500, 2))]) + 0.5 * rng.standard_normal((500, 5))
    return image @ rng.standard_normal((6, 6)) + 3, text @ rng.standard_normal((5, 5)) - 1


def directions(aligner, image, text):
    """Projections without normalization and without weights."""
    weight = aligner.correlations_ ** (aligner.power / 2)
    sides = (aligner._projections["image"], image), (aligner._projections["text"], text)
    return [(x - side.mean) @ side.matrix / weight for side, x in sides]


def test_correlations_equal_scikit_learn(views):
    """Without ridge this is CCA: NIPALS finds the same correlations, one direction at a time."""
    image, text = views
    aligner = CCAAligner(ridge=0).fit(image, text)
    reference = CCA(n_components=5, max_iter=5000, tol=1e-10)
    scores = reference.fit_transform(image, text)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(*(s.T for s in scores), strict=True)]
    np.testing.assert_allclose(aligner.correlations_, expected, atol=1e-4)


def test_directions_are_white_and_have_stated_correlations(views):
    """Each direction has variance 1 and correlates only with its partner."""
    aligner = CCAAligner(ridge=0).fit(*views)
    a, b = directions(aligner, *views)
    np.testing.assert_allclose(a.T @ a / 500, np.eye(5), atol=1e-4)
    np.testing.assert_allclose(b.T @ b / 500, np.eye(5), atol=1e-4)
    np.testing.assert_allclose(a.T @ b / 500, np.diag(aligner.correlations_), atol=1e-4)


def test_result_is_invariant_to_affine_maps_of_features(views):
    """Plain CCA does not depend on the basis of the features."""
    image, text = views
    rng = np.random.default_rng(1)
    other = image @ rng.standard_normal((6, 6)) + 5, text @ rng.standard_normal((5, 5)) - 2
    one, two = CCAAligner(ridge=0).fit(image, text), CCAAligner(ridge=0).fit(*other)
    np.testing.assert_allclose(two.correlations_, one.correlations_, atol=1e-4)
    np.testing.assert_allclose(two.similarity(*other), one.similarity(image, text), atol=1e-3)


def test_large_ridge_keeps_the_directions(concepts):
    """Every correlation is then small, and none was above the rounding error: all were zeros."""
    images, texts = concepts.image, concepts.text
    one, other = (CCAAligner(ridge=ridge).fit(images, texts) for ridge in (1e4, 1e12))
    assert one.n_components_ == other.n_components_ == 8
    np.testing.assert_allclose(one.transform(images), other.transform(images), atol=1e-3)


def test_ridge_is_relative_to_the_variance(views):
    """Features in other units are regularized equally."""
    image, text = views
    one, two = CCAAligner().fit(image, text), CCAAligner().fit(1000 * image, text / 1000)
    np.testing.assert_allclose(two.correlations_, one.correlations_, atol=1e-5)
    assert np.all(one.correlations_ < CCAAligner(ridge=0).fit(image, text).correlations_)


def test_similarity_weights_directions_by_correlation(views):
    """As in CSA; power=0 is the plain cosine of the canonical variables."""
    image, text = views
    for power in (0.0, 1.0, 3.0):
        aligner = CCAAligner(power=power).fit(image, text)
        a, b = directions(aligner, image[:9], text[:9])
        weight = aligner.correlations_**power
        expected = (weight * a) @ b.T
        expected /= np.sqrt((weight * a**2).sum(axis=1)[:, None] * (weight * b**2).sum(axis=1))
        np.testing.assert_allclose(aligner.similarity(image[:9], text[:9]), expected, atol=1e-5)


def test_fewer_components_are_the_first_components(views):
    full, few = CCAAligner().fit(*views), CCAAligner(n_components=2).fit(*views)
    assert few.n_components_ == 2
    assert few.transform(views[0]).shape == (500, 2)
    np.testing.assert_allclose(few.correlations_, full.correlations_[:2])
    assert few.n_parameters_ == (6 + 6 * 2) + (5 + 5 * 2)


def test_components_of_rank_deficient_features(concepts):
    """All features are made of 8 concepts, so further directions would be rounding error."""
    for ridge in (0, 1e-3, 1.0):
        assert CCAAligner(ridge=ridge).fit(concepts.image, concepts.text).n_components_ == 8


def test_repeated_images_are_weighted_by_their_pairs(views):
    """An image with two captions has the weight of two images."""
    image, text = views
    image, text = np.vstack([image[:100], image[:50]]), text[:150]
    aligner = CCAAligner(ridge=0).fit(image, text)
    a, b = directions(aligner, image, text)
    np.testing.assert_allclose(a.T @ a / 150, np.eye(5), atol=1e-4)
    np.testing.assert_allclose(a.T @ b / 150, np.diag(aligner.correlations_), atol=1e-4)


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [("ridge", -1, r"ridge must be a number in \[0, inf\), not -1"),
     ("power", "big", "power must be a number"),
     ("n_components", 0, "n_components must be None or an integer >= 1"),
     ("n_components", 6, "n_components must be None or at most 5 .* not 6")],
)  # fmt: skip
def test_invalid_parameter_raises(views, parameter, value, message):
    with pytest.raises(ValueError, match=message):
        CCAAligner(**{parameter: value}).fit(*views)
