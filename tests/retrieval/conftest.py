"""Aligners of real images and of features with structure, and a comparison of results."""

import numpy as np
import pytest

from sklearn_ape import CCAAligner, KernelAligner


@pytest.fixture(scope="session")
def real_aligner(captioned_images, features, image_encoder, text_encoder):
    """Aligner that takes images and texts."""
    aligner = KernelAligner(image_encoder=image_encoder, text_encoder=text_encoder)
    return aligner.fit(captioned_images.images, captioned_images.captions)


@pytest.fixture
def aligner(concepts):
    """Aligner that takes features of both sides."""
    return CCAAligner().fit(concepts.image, concepts.text)


def assert_equal(actual, expected):
    """Compare the results of two searches."""
    np.testing.assert_array_equal(actual.indices, expected.indices)
    np.testing.assert_allclose(actual.scores, expected.scores, atol=1e-6)
    assert actual.items == expected.items
