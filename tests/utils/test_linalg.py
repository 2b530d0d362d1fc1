"""Numerical linear algebra."""

import numpy as np
import pytest

from sklearn_ape.utils.linalg import compute_covariance, compute_mean, eigh_of_covariance


@pytest.mark.parametrize(("n_rows", "n_eigenvalues"), [(30, 30), (50, 50), (51, 100)])
def test_eigenvectors_give_the_covariance(n_rows, n_eigenvalues):
    """Those of fewer rows than features are computed in the space of the rows."""
    rng = np.random.default_rng(0)
    features = (rng.standard_normal((80, 100)) * np.arange(1, 101)).astype(np.float32)
    rows = rng.integers(0, 80, n_rows)  # some are repeated
    center = compute_mean(features, rows)
    matrix = compute_covariance(features, features, (rows, rows), (center, center))
    variances, directions = eigh_of_covariance(matrix, features, rows, center)
    assert variances.shape == (n_eigenvalues,)
    assert (np.diff(variances) >= 0).all()
    np.testing.assert_allclose(directions.T @ directions, np.eye(n_eigenvalues), atol=1e-12)
    np.testing.assert_allclose(directions * variances @ directions.T, matrix, atol=1e-9)
