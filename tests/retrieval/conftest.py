"""Aligners of real pictures, and of features in which there is something to find."""

import pytest

from sklearn_ape import CCAAligner, KernelAligner


@pytest.fixture(scope="session")
def real_aligner(pictures, features, image_encoder, text_encoder):
    """Takes pictures and words."""
    aligner = KernelAligner(image_encoder=image_encoder, text_encoder=text_encoder)
    return aligner.fit(pictures.images, pictures.captions)


@pytest.fixture
def aligner(concepts):
    """Takes features of both sides."""
    return CCAAligner().fit(concepts.image, concepts.text)
