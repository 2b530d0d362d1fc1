"""Bitwise reproducibility for any number of jobs, cache state and order of calls.

docs/numerics.md lists results that are equal only up to rounding. Their bounds are tested here.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold

from sklearn_ape import APEAligner, CCAAligner, KernelAligner, LiTAligner
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder
from sklearn_ape.features import DiskFeatureCache
from tests.robustness.numerics.estimators import (
    ALIGNERS,
    IMAGE,
    SENTENCES,
    TEXT,
    _tiny_text_folder,
)
from tests.robustness.numerics.text_cases import RandomTextEncoder

CAPTIONS = [f"a photo of {number} cats and {'many ' * (number % 7)}dogs" for number in range(16)]
# Bounds of changes by the batch: relative to the largest feature, and of 1 - cosine.
BATCH_BOUND, COSINE_BOUND = 5e-6, 1e-10
ENGINES = ["torch", "openvino", pytest.param("onnx", marks=pytest.mark.exhaustive)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(6):
        cloud = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(cloud).resize((64 + 8 * number, 64)).save(paths[-1])
    return paths


def assert_same_fit(one, other):
    assert one.fingerprint_ == other.fingerprint_
    assert one.logit_scale_ == other.logit_scale_
    np.testing.assert_array_equal(one.bank_.text, other.bank_.text)


@pytest.fixture(params=[name for name in ALIGNERS if name != "ASIFAligner"])
def aligner(request):
    return clone(ALIGNERS[request.param])


class TestFits:
    def test_refit_after_use_of_global_generators_is_bitwise_identical(self, aligner):
        one = clone(aligner).fit(IMAGE, TEXT)
        before = torch.get_rng_state()
        torch.rand(7)
        np.random.rand(7)  # noqa: NPY002
        assert_same_fit(one, clone(aligner).fit(IMAGE, TEXT))
        assert_same_fit(one, aligner.fit(IMAGE, TEXT))
        assert_same_fit(one, aligner.fit(IMAGE, TEXT))  # refit of a fitted aligner
        torch.set_rng_state(before)

    def test_fit_does_not_change_global_generators(self, aligner):
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        aligner.fit(IMAGE, TEXT)
        assert torch.equal(torch_state, torch.get_rng_state())
        np.testing.assert_array_equal(numpy_state[1], np.random.get_state()[1])  # noqa: NPY002

    def test_fit_in_a_thread_is_bitwise_identical(self, aligner):
        one = clone(aligner).fit(IMAGE, TEXT)
        worker = threading.Thread(target=aligner.fit, args=(IMAGE, TEXT))
        worker.start()
        worker.join()
        assert_same_fit(one, aligner)

    @pytest.mark.exhaustive
    def test_fits_in_concurrent_threads_are_bitwise_identical(self):
        """Initialization and dropout use the global generator of torch, so threads take turns."""
        aligner = APEAligner(init=None, width=16, max_epochs=5, random_state=0)
        alone = clone(aligner).fit(IMAGE, TEXT)
        with ThreadPoolExecutor(4) as pool:
            for fitted in pool.map(lambda _: clone(aligner).fit(IMAGE, TEXT), range(8)):
                assert_same_fit(alone, fitted)

    @pytest.mark.sampled(5)
    def test_number_of_torch_threads_changes_results_by_rounding(self, aligner):
        """The number of threads changes the order of sums."""
        n_threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            one = clone(aligner).fit(IMAGE, TEXT)
            torch.set_num_threads(2)
            two = aligner.fit(IMAGE, TEXT)
            np.testing.assert_allclose(
                one.similarity(IMAGE, TEXT), two.similarity(IMAGE, TEXT), atol=1e-3
            )
        finally:
            torch.set_num_threads(n_threads)

    @pytest.mark.exhaustive
    def test_search_in_threads_is_bitwise_identical(self):
        """Threads of joblib share the global generator, unlike its processes."""
        aligner = APEAligner(init=None, width=16, max_epochs=3, random_state=0)
        search = GridSearchCV(aligner, {"depth": [1, 2]}, cv=KFold(2))
        one = clone(search).fit(IMAGE, TEXT)
        with joblib.parallel_backend("threading", n_jobs=4):
            two = clone(search).fit(IMAGE, TEXT)
        np.testing.assert_array_equal(
            one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"]
        )
        assert_same_fit(one.best_estimator_, two.best_estimator_)

    @pytest.mark.exhaustive
    def test_refit_of_text_tower_is_bitwise_identical(self):
        encoder = TransformersTextEncoder(_tiny_text_folder(), cache=None, engine="torch")
        tower = LiTAligner(text_encoder=encoder, max_epochs=1, batch_size=20, random_state=0)
        one = clone(tower).fit(IMAGE[:60], SENTENCES)
        torch.rand(3)
        two = clone(tower).fit(IMAGE[:60], SENTENCES)
        assert one.fingerprint_ == two.fingerprint_

    @pytest.mark.exhaustive
    @pytest.mark.parametrize(
        "aligner", [APEAligner(init=None, width=16, max_epochs=2, random_state=0), CCAAligner()]
    )
    def test_number_of_jobs_does_not_change_search(self, aligner):
        """The scores of all folds and the refitted aligner are compared."""
        grid = {"depth": [1, 2]} if "depth" in aligner.get_params() else {"ridge": [0.1, 1.0]}
        one, two = (
            GridSearchCV(aligner, grid, cv=KFold(2), n_jobs=n_jobs).fit(IMAGE, TEXT)
            for n_jobs in (1, 2)
        )
        for name, scores in one.cv_results_.items():
            if "score" in name and "time" not in name:
                np.testing.assert_array_equal(scores, two.cv_results_[name])
        assert one.best_params_ == two.best_params_
        assert_same_fit(one.best_estimator_, two.best_estimator_)


@pytest.mark.usefixtures("shared_exports")
class TestFeatures:
    """Features of encoders, whose batches depend on cached and other items."""

    def caches(self, tmp_path):
        return [None, "memory", tmp_path / "folder", DiskFeatureCache(tmp_path / "other")]

    @pytest.mark.exhaustive
    def test_features_with_empty_full_and_no_cache_are_bitwise_identical(self, tmp_path):
        """Cached features are returned bitwise identical."""
        encoder = TransformersTextEncoder(engine="torch", cache=None)
        expected = encoder.transform(CAPTIONS)
        for cache in self.caches(tmp_path):
            cached = clone(encoder).set_params(cache=cache)
            np.testing.assert_array_equal(cached.transform(CAPTIONS), expected)
            np.testing.assert_array_equal(cached.transform(CAPTIONS), expected)
            np.testing.assert_array_equal(cached.transform(CAPTIONS[::-1])[::-1], expected)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_partly_filled_cache_and_other_items_change_only_rounding(self, engine, tmp_path):
        pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
        encoder = TransformersTextEncoder(engine=engine, cache=None)
        expected = encoder.transform(CAPTIONS)
        partly_cached = clone(encoder).set_params(cache=tmp_path / "features")
        partly_cached.transform(CAPTIONS[::3])
        assert_close(partly_cached.transform(CAPTIONS), expected)
        assert_close(encoder.transform(CAPTIONS[5:]), expected[5:])

    @pytest.mark.parametrize("engine", ENGINES)
    def test_features_in_batches_of_one_do_not_depend_on_other_items(
        self, engine, tmp_path, paths
    ):
        """With batch_size=1 and a given engine, features are bitwise identical."""
        pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
        for cls, items in ((TransformersTextEncoder, CAPTIONS), (TimmImageEncoder, paths)):
            encoder = cls(engine=engine, batch_size=1, cache=None)
            expected = encoder.transform(items)
            partly_cached = clone(encoder).set_params(cache=tmp_path / cls.__name__)
            partly_cached.transform(items[::3])
            np.testing.assert_array_equal(partly_cached.transform(items), expected)
            np.testing.assert_array_equal(encoder.transform(items[:3]), expected[:3])
            np.testing.assert_array_equal(encoder.transform(items[::-1])[::-1], expected)

    @pytest.mark.parametrize("engine", ["torch", "openvino"])
    def test_number_of_jobs_does_not_change_features(self, engine, paths):
        pytest.importorskip(engine)
        encoder = TimmImageEncoder(engine=engine, batch_size=4, cache=None)
        expected = encoder.set_params(n_jobs=1).transform(paths)
        for n_jobs in (2, -1, None):
            features = clone(encoder).set_params(n_jobs=n_jobs).transform(paths)
            np.testing.assert_array_equal(features, expected)

    def test_fits_with_empty_and_full_cache_are_bitwise_identical(self, tmp_path):
        encoder = TransformersTextEncoder(engine="torch", cache=tmp_path / "features")
        aligner = KernelAligner(text_encoder=encoder)
        cold = clone(aligner).fit(IMAGE[:16], CAPTIONS)
        warm = clone(aligner).fit(IMAGE[:16], CAPTIONS)
        assert_same_fit(cold, warm)

    @pytest.mark.exhaustive
    def test_fit_with_partly_filled_cache_gives_nearly_equal_similarities(self, tmp_path):
        encoder = TransformersTextEncoder(engine="torch", cache=tmp_path / "features")
        cold = KernelAligner(text_encoder=clone(encoder).set_params(cache=None))
        encoder.transform(CAPTIONS[::3])
        half = KernelAligner(text_encoder=encoder)
        one, two = (
            aligner.fit(IMAGE[:16], CAPTIONS).similarity(IMAGE[:16], CAPTIONS)
            for aligner in (cold, half)
        )
        np.testing.assert_allclose(one, two, atol=1e-3)

    def test_features_of_other_encoders_do_not_depend_on_order(self):
        """Repeated captions are encoded once, in any order."""
        aligner = CCAAligner(text_encoder=RandomTextEncoder())
        one = clone(aligner).fit(IMAGE[:16], CAPTIONS)
        np.testing.assert_array_equal(
            one.transform_text(CAPTIONS[::-1])[::-1], one.transform_text(CAPTIONS)
        )


def assert_close(features, expected):
    """Check that features differ only by rounding."""
    largest = np.abs(expected).max()
    assert np.abs(features - expected).max() <= BATCH_BOUND * largest
    one, two = (rows.astype(np.float64) for rows in (features, expected))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    assert (1 - (one * two).sum(axis=1) / norms).max() <= COSINE_BOUND
