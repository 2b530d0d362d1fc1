"""Same seed, same bits: with any number of jobs, any state of the cache, any order of calls.

What does not hold to the bit is said on the page docs/numerics.md, and its bound is tested here.
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
from tests.robustness.numerics.text_cases import ByContent

CAPTIONS = [f"a photo of {number} cats and {'many ' * (number % 7)}dogs" for number in range(16)]
# Of the features' largest number, and of 1 less the cosine: what the batch may change.
BATCH_BOUND, COSINE_BOUND = 5e-6, 1e-10


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    found = []
    for number in range(6):
        cloud = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        found.append(folder / f"{number}.png")
        Image.fromarray(cloud).resize((64 + 8 * number, 64)).save(found[-1])
    return found


def same_fit(one, other):
    assert one.fingerprint_ == other.fingerprint_
    assert one.logit_scale_ == other.logit_scale_
    np.testing.assert_array_equal(one.bank_.text, other.bank_.text)


@pytest.fixture(params=[name for name in ALIGNERS if name != "ASIFAligner"])
def aligner(request):
    return clone(ALIGNERS[request.param])


class TestFits:
    def test_again_and_after_others_used_random_numbers(self, aligner):
        one = clone(aligner).fit(IMAGE, TEXT)
        before = torch.get_rng_state()
        torch.rand(7)
        np.random.rand(7)  # noqa: NPY002
        same_fit(one, clone(aligner).fit(IMAGE, TEXT))
        same_fit(one, aligner.fit(IMAGE, TEXT))
        same_fit(one, aligner.fit(IMAGE, TEXT))  # once more on what is fitted
        torch.set_rng_state(before)

    def test_leave_the_global_generators_alone(self, aligner):
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        aligner.fit(IMAGE, TEXT)
        assert torch.equal(torch_state, torch.get_rng_state())
        np.testing.assert_array_equal(numpy_state[1], np.random.get_state()[1])  # noqa: NPY002

    def test_in_a_thread(self, aligner):
        one = clone(aligner).fit(IMAGE, TEXT)
        worker = threading.Thread(target=aligner.fit, args=(IMAGE, TEXT))
        worker.start()
        worker.join()
        same_fit(one, aligner)

    def test_in_several_threads_at_once(self):
        """Weights and dropped units come from torch's one generator; they take turns."""
        aligner = APEAligner(init=None, width=16, max_epochs=5, random_state=0)
        alone = clone(aligner).fit(IMAGE, TEXT)
        with ThreadPoolExecutor(4) as pool:
            for fitted in pool.map(lambda _: clone(aligner).fit(IMAGE, TEXT), range(8)):
                same_fit(alone, fitted)

    def test_with_any_number_of_threads_of_torch(self, aligner):
        """Answers, not bits: products are added up in another order."""
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

    def test_a_search_in_threads(self):
        """Joblib's threads share a generator, its processes do not."""
        aligner = APEAligner(init=None, width=16, max_epochs=3, random_state=0)
        search = GridSearchCV(aligner, {"depth": [1, 2]}, cv=KFold(2))
        one = clone(search).fit(IMAGE, TEXT)
        with joblib.parallel_backend("threading", n_jobs=4):
            two = clone(search).fit(IMAGE, TEXT)
        np.testing.assert_array_equal(
            one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"]
        )
        same_fit(one.best_estimator_, two.best_estimator_)

    def test_of_a_text_tower(self):
        encoder = TransformersTextEncoder(_tiny_text_folder(), cache=None, engine="torch")
        tower = LiTAligner(text_encoder=encoder, max_epochs=1, batch_size=20, random_state=0)
        one = clone(tower).fit(IMAGE[:60], SENTENCES)
        torch.rand(3)
        two = clone(tower).fit(IMAGE[:60], SENTENCES)
        assert one.fingerprint_ == two.fingerprint_

    @pytest.mark.parametrize(
        "aligner", [APEAligner(init=None, width=16, max_epochs=2, random_state=0), CCAAligner()]
    )
    def test_searches_with_any_number_of_jobs(self, aligner):
        """Scores of every fold, and the aligner that is fitted at the end."""
        grid = {"depth": [1, 2]} if "depth" in aligner.get_params() else {"ridge": [0.1, 1.0]}
        one, two = (
            GridSearchCV(aligner, grid, cv=KFold(2), n_jobs=n_jobs).fit(IMAGE, TEXT)
            for n_jobs in (1, 2)
        )
        for name, scores in one.cv_results_.items():
            if "score" in name and "time" not in name:
                np.testing.assert_array_equal(scores, two.cv_results_[name])
        assert one.best_params_ == two.best_params_
        same_fit(one.best_estimator_, two.best_estimator_)


class TestFeatures:
    """Of encoders, whose batches depend on what the cache holds and on the other items."""

    def caches(self, tmp_path):
        return [None, "memory", tmp_path / "folder", DiskFeatureCache(tmp_path / "other")]

    def test_an_empty_a_warm_and_no_cache(self, tmp_path):
        """What is read is what was written, to the bit."""
        encoder = TransformersTextEncoder(engine="torch", cache=None)
        expected = encoder.transform(CAPTIONS)
        for cache in self.caches(tmp_path):
            cached = clone(encoder).set_params(cache=cache)
            np.testing.assert_array_equal(cached.transform(CAPTIONS), expected)
            np.testing.assert_array_equal(cached.transform(CAPTIONS), expected)
            np.testing.assert_array_equal(cached.transform(CAPTIONS[::-1])[::-1], expected)

    @pytest.mark.parametrize("engine", ["torch", "openvino", "onnx"])
    def test_a_half_warm_cache_and_other_company_differ_by_rounding_alone(self, engine, tmp_path):
        pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
        encoder = TransformersTextEncoder(engine=engine, cache=None)
        expected = encoder.transform(CAPTIONS)
        half_warm = clone(encoder).set_params(cache=tmp_path / "features")
        half_warm.transform(CAPTIONS[::3])
        close(half_warm.transform(CAPTIONS), expected)
        close(encoder.transform(CAPTIONS[5:]), expected[5:])

    @pytest.mark.parametrize("engine", ["torch", "openvino", "onnx"])
    def test_batches_of_one_have_no_company(self, engine, tmp_path, paths):
        """With batch_size=1 and a named engine a feature is the item's alone, to the bit."""
        pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
        for cls, items in ((TransformersTextEncoder, CAPTIONS), (TimmImageEncoder, paths)):
            encoder = cls(engine=engine, batch_size=1, cache=None)
            expected = encoder.transform(items)
            half_warm = clone(encoder).set_params(cache=tmp_path / cls.__name__)
            half_warm.transform(items[::3])
            np.testing.assert_array_equal(half_warm.transform(items), expected)
            np.testing.assert_array_equal(encoder.transform(items[:3]), expected[:3])
            np.testing.assert_array_equal(encoder.transform(items[::-1])[::-1], expected)

    @pytest.mark.parametrize("engine", ["torch", "openvino"])
    def test_any_number_of_jobs(self, engine, paths):
        pytest.importorskip(engine)
        encoder = TimmImageEncoder(engine=engine, batch_size=4, cache=None)
        expected = encoder.set_params(n_jobs=1).transform(paths)
        for n_jobs in (2, -1, None):
            found = clone(encoder).set_params(n_jobs=n_jobs).transform(paths)
            np.testing.assert_array_equal(found, expected)

    def test_fits_on_a_cold_and_on_a_warm_cache(self, tmp_path):
        encoder = TransformersTextEncoder(engine="torch", cache=tmp_path / "features")
        aligner = KernelAligner(text_encoder=encoder)
        cold = clone(aligner).fit(IMAGE[:16], CAPTIONS)
        warm = clone(aligner).fit(IMAGE[:16], CAPTIONS)
        same_fit(cold, warm)

    def test_fits_on_a_half_warm_cache_answer_alike(self, tmp_path):
        encoder = TransformersTextEncoder(engine="torch", cache=tmp_path / "features")
        cold = KernelAligner(text_encoder=clone(encoder).set_params(cache=None))
        encoder.transform(CAPTIONS[::3])
        half = KernelAligner(text_encoder=encoder)
        one, two = (
            some.fit(IMAGE[:16], CAPTIONS).similarity(IMAGE[:16], CAPTIONS)
            for some in (cold, half)
        )
        np.testing.assert_allclose(one, two, atol=1e-3)

    def test_an_encoder_of_ones_own(self):
        """Captions that stand several times are encoded once, whatever their order."""
        aligner = CCAAligner(text_encoder=ByContent())
        one = clone(aligner).fit(IMAGE[:16], CAPTIONS)
        np.testing.assert_array_equal(
            one.transform_text(CAPTIONS[::-1])[::-1], one.transform_text(CAPTIONS)
        )


def close(found, expected):
    """Assert that features differ by what the order of additions changes, and no more."""
    largest = np.abs(expected).max()
    assert np.abs(found - expected).max() <= BATCH_BOUND * largest
    one, two = (rows.astype(np.float64) for rows in (found, expected))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    assert (1 - (one * two).sum(axis=1) / lengths).max() <= COSINE_BOUND
