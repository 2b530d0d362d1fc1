"""Fixtures of the classifier tests: a small model of real images."""

import pytest
from sklearn.pipeline import make_pipeline

from sklearn_ape import APEAligner, KernelAligner
from sklearn_ape.utils.concurrency import LRUCache
from sklearn_ape.zero_shot import _label_embeddings


@pytest.fixture(autouse=True)
def empty_label_cache(monkeypatch):
    """Empty the cache of label embeddings, since mutation testing runs tests repeatedly."""
    monkeypatch.setattr(_label_embeddings, "_cache", LRUCache(max_bytes=2**28))


@pytest.fixture(scope="session")
def aligner(features, captioned_images, text_encoder):
    """Return an aligner that is fitted on the first 150 images."""
    return KernelAligner(text_encoder=text_encoder).fit(
        features.image[:150], captioned_images.captions[:150]
    )


@pytest.fixture(scope="session")
def model(captioned_images, features, image_encoder, text_encoder):
    """Return a model that is trained on the first 200 images; the last 100 are for testing."""
    aligner = APEAligner(text_encoder=text_encoder, width=256, max_epochs=30, random_state=0)
    return make_pipeline(image_encoder, aligner).fit(
        captioned_images.images[:200], captioned_images.captions[:200]
    )


@pytest.fixture(scope="session")
def held_out(captioned_images):
    return (
        captioned_images.images[200:],
        captioned_images.categories[200:],
        captioned_images.captions[200:],
    )
