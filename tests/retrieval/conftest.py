"""Aligners of real images, and of features with structure."""

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
