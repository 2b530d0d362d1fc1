"""Retrievers whose aligner or parameters were changed after fit."""

import copy
import pickle

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_ape import APEAligner, CCAAligner, CrossModalRetriever, load_pretrained

STALE = "aligner was changed since this CrossModalRetriever was fitted"


@pytest.fixture
def pipeline(concepts):
    pipeline = make_pipeline(StandardScaler(), PCA(8, random_state=0), CCAAligner())
    return pipeline.fit(concepts.image, concepts.text)


@pytest.fixture
def retriever(pipeline, concepts):
    return CrossModalRetriever(pipeline).fit(concepts.image)


def assert_refused(retriever, image, text, folder, match=STALE):
    for ask in (
        lambda: retriever.search(text, modality="text"),
        lambda: retriever.search(image),
        lambda: retriever.kneighbors(image),
        lambda: retriever.add(image),
        lambda: retriever.save_pretrained(folder),
    ):
        with pytest.raises(ValueError, match=match):
            ask()


def changes():
    def refit_a_step(pipeline, data):
        pipeline[0].fit(data.image[:20])

    def refit_the_aligner(pipeline, data):
        pipeline[-1].fit(pipeline[:-1].transform(data.image[:90]), data.text[:90])

    def refit_all(pipeline, data):
        pipeline.fit(data.image[:90], data.text[:90])

    def set_an_attribute(pipeline, data):
        pipeline[0].with_mean = False

    def set_a_parameter(pipeline, data):
        pipeline.set_params(standardscaler__with_std=False)

    def replace_a_step(pipeline, data):
        pipeline.set_params(standardscaler="passthrough")

    return [
        refit_a_step,
        refit_the_aligner,
        refit_all,
        set_an_attribute,
        set_a_parameter,
        replace_a_step,
    ]


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.__name__)
def test_changed_aligner_raises_until_the_next_fit(
    change, retriever, pipeline, concepts, tmp_path
):
    change(pipeline, concepts)
    image, text = concepts.image[:5], concepts.text[:5]
    assert_refused(retriever, image, text, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    retriever.fit(concepts.image)
    fresh = CrossModalRetriever(pipeline).fit(concepts.image)
    np.testing.assert_array_equal(retriever.search(image).indices, fresh.search(image).indices)


def test_restoring_a_parameter_makes_the_retriever_current(retriever, concepts):
    expected = retriever.search(concepts.image[:3])
    retriever.set_params(aligner__standardscaler__with_mean=False)
    with pytest.raises(ValueError, match="restore the parameter"):
        retriever.search(concepts.image[:3])
    retriever.set_params(aligner__standardscaler__with_mean=True)
    np.testing.assert_array_equal(retriever.search(concepts.image[:3]).scores, expected.scores)


def test_options_that_do_not_change_embeddings_may_be_set_after_fit(retriever, concepts):
    retriever.set_params(aligner__verbose=True, aligner__memory="folder")
    retriever.search(concepts.image[:3])


@pytest.mark.parametrize(
    "parameters", [{"crop": "pad"}, {"views": 2}, {"pooling": "mean"}, {"dtype": "bfloat16"}]
)
def test_changed_image_encoder_raises(
    parameters, image_encoder, text_encoder, captioned_images, features
):
    aligner = CCAAligner(text_encoder=text_encoder).fit(features.image, captioned_images.captions)
    pipeline = make_pipeline(copy.copy(image_encoder), aligner)
    images = captioned_images.images[:4]
    retriever = CrossModalRetriever(pipeline).fit(images)
    pipeline[0].set_params(n_jobs=1, batch_size=2, on_error="nan", verbose=0, engine="torch")
    assert retriever.search(images[:1], k=1, modality="image").indices == [[0]]
    pipeline[0].set_params(**parameters)
    with pytest.raises(ValueError, match=STALE):
        retriever.search(images[:1], k=1, modality="image")
    with pytest.raises(ValueError, match=STALE):
        retriever.search(["a cat"])


def test_changed_encoders_of_a_fitted_aligner_raise(real_aligner, captioned_images, tmp_path):
    aligner = copy.deepcopy(real_aligner)
    images = captioned_images.images[:4]
    retriever = CrossModalRetriever(aligner).fit(images)
    # The parameter is the encoder of the next fit of the aligner, which uses a clone.
    aligner.image_encoder.crop = "pad"
    assert retriever.search(images[:1], k=1, modality="image").indices == [[0]]
    aligner.text_encoder_.max_length = 3
    assert_refused(retriever, images, ["a cat"], tmp_path / "model")


@pytest.mark.parametrize(
    "make_copy",
    [copy.copy, copy.deepcopy, lambda retriever: pickle.loads(pickle.dumps(retriever))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_are_current_if_the_retriever_is(make_copy, retriever, concepts):
    copied = make_copy(retriever)
    copied.search(concepts.image[:1])
    retriever.aligner[0].with_mean = False
    stale = make_copy(retriever)
    with pytest.raises(ValueError, match=STALE):
        stale.search(concepts.image[:1])
    retriever.aligner[0].with_mean = True
    copied.aligner[0].with_std = False
    with pytest.raises(ValueError, match=STALE):
        copied.search(concepts.image[:1])


def test_pickle_of_an_earlier_version_is_current(retriever, concepts):
    state = retriever.__getstate__()
    del state["_at_fit"]
    old = CrossModalRetriever.__new__(CrossModalRetriever)
    old.__setstate__(state)
    old.search(concepts.image[:1])
    old.aligner[0].with_mean = False
    with pytest.raises(ValueError, match=STALE):
        old.search(concepts.image[:1])


def test_loaded_retriever_detects_changes(concepts, tmp_path):
    aligner = CCAAligner().fit(concepts.image, concepts.text)
    CrossModalRetriever(aligner).fit(concepts.image).save_pretrained(tmp_path / "model")
    loaded = load_pretrained(tmp_path / "model")
    loaded.search(concepts.image[:1])
    loaded.aligner_.fit(concepts.image[:90], concepts.text[:90])
    with pytest.raises(ValueError, match=STALE):
        loaded.search(concepts.image[:1])


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"index": "faiss"}, "index='faiss' was set after fit"),
        ({"dtype": "float16"}, "dtype='float16' was set after fit"),
        ({"aligner": None}, "aligner=None was set after fit"),
        ({"aligner": CCAAligner()}, r"aligner=CCAAligner\(\.\.\.\) was set after fit"),
    ],
)
def test_fit_parameter_set_after_fit_raises(parameters, match, retriever, concepts, tmp_path):
    before = retriever.get_params(deep=False)
    retriever.set_params(**parameters)
    image, text = concepts.image[:5], concepts.text[:5]
    assert_refused(retriever, image, text, tmp_path / "model", match)
    retriever.set_params(**{name: before[name] for name in parameters})
    retriever.search(image)


def test_standardize_may_be_set_after_fit(retriever, pipeline, concepts):
    retriever.set_params(standardize=True)
    found = retriever.search(concepts.text[:3], modality="text")
    fresh = CrossModalRetriever(pipeline, standardize=True).fit(concepts.image)
    expected = fresh.search(concepts.text[:3], modality="text")
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_parameters_of_training_set_after_fit_do_not_matter(concepts):
    aligner = APEAligner(init=None, width=8, max_epochs=1, early_stopping=False, random_state=0)
    retriever = CrossModalRetriever(aligner.fit(concepts.image, concepts.text))
    retriever.fit(concepts.image)
    retriever.set_params(aligner__max_epochs=50, aligner__width=99)
    retriever.search(concepts.image[:1])
