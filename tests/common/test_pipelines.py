"""Pipelines, searches and classifiers as in user code, on real images."""

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline, make_pipeline

from sklearn_ape import APEAligner, ZeroShotClassifier
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder


class RowCount:
    """Forward hook that counts the rows that a network processes."""

    def __init__(self, encoder):
        self.rows = 0
        self._handle = encoder._get_network().model.register_forward_pre_hook(
            self._count, with_kwargs=True
        )

    def _count(self, module, args, kwargs):
        self.rows += len(args[0] if args else kwargs["input_ids"])

    def stop(self):
        self._handle.remove()
        return self.rows


@pytest.fixture
def encoders_without_cache(tmp_path):
    """Return encoders with an empty cache and the engine torch, which supports hooks."""
    options = {"cache": tmp_path, "engine": "torch"}
    return (
        TimmImageEncoder("efficientnet_lite0", output="logits", **options),
        TransformersTextEncoder("all-MiniLM-L6-v2", **options),
    )


@pytest.fixture(scope="module")
def pipeline(captioned_images, image_encoder, text_encoder):
    """Return a pipeline that is fitted on the first 200 images."""
    pipeline = Pipeline(
        [
            ("encode", image_encoder),
            ("align", APEAligner(text_encoder=text_encoder, max_epochs=5, random_state=0)),
        ]
    )
    return pipeline.fit(captioned_images.images[:200], captioned_images.captions[:200])


def test_pipeline_of_scikit_learn_fits_images_and_captions(pipeline, captioned_images):
    score = pipeline.score(captioned_images.images[200:], captioned_images.captions[200:])
    assert score > 0.08  # chance is 0.01


def test_zero_shot_classifier_scores_new_class_names(pipeline, captioned_images):
    labels = captioned_images.captions[200:]
    accuracy = ZeroShotClassifier(labels, aligner=pipeline).score(
        captioned_images.images[200:], labels
    )
    assert accuracy > 0.08  # chance is 0.01


def test_grid_search_encodes_every_image_and_caption_exactly_once(
    captioned_images, encoders_without_cache
):
    """Each feature is used by the fits and scores of 2 depths x 3 folds.

    The logits are used as features because a hook counts calls of the complete network.
    """
    image_encoder, text_encoder = encoders_without_cache
    images = [*captioned_images.images[:60], captioned_images.images[0]]
    captions = [*captioned_images.captions[:60], captioned_images.captions[0]]
    counts = RowCount(image_encoder), RowCount(text_encoder)
    before = image_encoder.cache_info().misses, text_encoder.cache_info().misses
    aligner = APEAligner(text_encoder=text_encoder, width=32, max_epochs=2, random_state=0)
    search = GridSearchCV(
        make_pipeline(image_encoder, aligner),
        {"apealigner__depth": [1, 4]},
        cv=KFold(3, shuffle=True, random_state=0),
        error_score="raise",
    )
    search.fit(images, captions)
    search.score(images, captions)
    assert [count.stop() for count in counts] == [60, 60]
    assert image_encoder.cache_info().misses - before[0] == 60
    assert text_encoder.cache_info().misses - before[1] == 60
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.exhaustive
def test_grid_search_over_depth_in_worker_processes(captioned_images, image_encoder, text_encoder):
    """Estimators, cache and encoders can be sent to worker processes."""
    aligner = APEAligner(text_encoder=text_encoder, width=32, max_epochs=2, random_state=0)
    search = {
        n_jobs: GridSearchCV(
            make_pipeline(image_encoder, aligner),
            {"apealigner__depth": [1, 2]},
            cv=2,
            n_jobs=n_jobs,
        ).fit(captioned_images.images[:40], captioned_images.captions[:40])
        for n_jobs in (1, 2)
    }
    np.testing.assert_allclose(
        search[1].cv_results_["mean_test_score"],
        search[2].cv_results_["mean_test_score"],
        atol=0.1,  # workers have other numbers of threads, which changes rounding
    )
