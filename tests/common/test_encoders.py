"""What scikit-learn checks of transformers of tables, for every encoder of images and texts.

scikit-learn runs a single check on estimators that take no table, so these stand in its place.
"""

import multiprocessing
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

from sklearn_ape import encoders as public
from sklearn_ape.encoders.base import FrozenEncoder
from tests.encoders import tiny_networks as tiny

NAMES = sorted(
    name
    for name in public.__all__
    if isinstance(getattr(public, name), type) and issubclass(getattr(public, name), FrozenEncoder)
)
IMAGES = list(np.random.default_rng(0).integers(0, 256, size=(5, 40, 50, 3), dtype=np.uint8))
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
# Each class takes those of the parameters that it has.
SETTINGS = {
    "defaults": {},
    "in small batches": {"batch_size": 2, "n_jobs": 2, "verbose": 1},
    "one by one from a cache": {"batch_size": 1, "cache": "memory", "engine": "torch"},
    "other features": {
        "crop": "pad",
        "max_length": 4,
        "normalize": False,
        "pooling": "mean",
        "views": 2,
    },
}


@pytest.fixture(scope="module")
def all_encoders(tmp_path_factory):
    return tiny.encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same images as files."""
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


@pytest.fixture(params=[(name, setting) for name in NAMES for setting in SETTINGS], ids="-".join)
def encoder(request, all_encoders):
    name, setting = request.param
    encoder = clone(all_encoders[name])
    known = {k: v for k, v in SETTINGS[setting].items() if k in encoder.get_params()}
    return encoder.set_params(**known)


@pytest.fixture
def items(encoder, folder):
    """Five items that any container can hold: texts, or paths of images."""
    if encoder._modality == "text":
        return tiny.TEXTS
    return [str(folder / f"{number}.png") for number in range(5)]


@pytest.fixture
def features(encoder, items):
    return encoder.transform(items)


def test_every_class_of_encoders_is_here(all_encoders):
    assert sorted(all_encoders) == NAMES
    assert len(NAMES) == 5


class TestParameters:
    def test_get_and_set_round_trip(self, encoder):
        odd = {name: object() for name in encoder.get_params()}
        assert encoder.set_params(**odd).get_params() == odd
        assert clone(type(encoder)(**odd), safe=False).get_params().keys() == odd.keys()
        with pytest.raises(ValueError, match="Invalid parameter"):
            encoder.set_params(no_such=1)

    def test_fit_and_transform_leave_them_alone(self, encoder, items):
        before = dict(encoder.get_params())
        assert encoder.fit(items) is encoder
        encoder.transform(items)
        assert encoder.get_params() == before

    def test_scikit_learns_own_check(self, encoder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that there is one check alone
            results = check_estimator(encoder, on_fail="raise", on_skip=None)
        assert [result["status"] for result in results] == ["passed"]


class TestSameFeatures:
    def test_twice_and_by_fit_transform_and_clones(self, encoder, items, features):
        assert features.dtype == np.float32
        assert features.shape == (5, len(encoder.get_feature_names_out()))
        assert np.ptp(features, axis=0).max() > 1e-3  # not all alike
        np.testing.assert_array_equal(encoder.transform(items), features)
        np.testing.assert_array_equal(encoder.fit_transform(items), features)
        np.testing.assert_array_equal(clone(encoder).transform(items), features)

    def test_in_any_order(self, encoder, items, features):
        order = np.array([3, 1, 4, 0, 2])
        found = encoder.transform([items[place] for place in order])
        np.testing.assert_allclose(found, features[order], **CLOSE)

    @pytest.mark.parametrize("batch_size", [1, 2, 64])
    def test_in_batches_of_any_size(self, encoder, items, features, batch_size):
        found = encoder.set_params(batch_size=batch_size).transform(items)
        np.testing.assert_allclose(found, features, **CLOSE)

    def test_alone_and_together(self, encoder, items, features):
        """Subset invariance: no item depends on its company, nor on how often it comes."""
        alone = np.concatenate([encoder.transform([item]) for item in items])
        np.testing.assert_allclose(alone, features, **CLOSE)
        found = encoder.transform([items[2], items[0], items[2]])
        np.testing.assert_allclose(found, features[[2, 0, 2]], **CLOSE)

    def test_in_every_container(self, encoder, items, features):
        pd, pl, pa = map(pytest.importorskip, ("pandas", "polars", "pyarrow"))
        datasets = pytest.importorskip("datasets")
        containers = {
            "tuple": tuple(items),
            "ndarray of str": np.array(items),
            "ndarray of object": np.array(items, dtype=object),
            "pandas": pd.Series(items, index=[9, 9, 3, 1, 0]),
            "pandas string": pd.Series(items, dtype="string"),
            "polars": pl.Series(items),
            "arrow": pa.array(items),
            "arrow chunks": pa.chunked_array([items[:2], items[2:]]),
            "column": datasets.Dataset.from_dict({"item": items})["item"],
        }
        for name, container in containers.items():
            found = encoder.transform(container)
            np.testing.assert_allclose(found, features, err_msg=name, **CLOSE)

    def test_after_a_pickle(self, encoder, items, features):
        content = pickle.dumps(encoder)
        assert len(content) < 10_000
        np.testing.assert_array_equal(pickle.loads(content).transform(items), features)

    def test_with_a_cache(self, encoder, items, features, tmp_path):
        encoder.set_params(cache=tmp_path)
        for _ in range(2):
            np.testing.assert_allclose(encoder.transform(items), features, **CLOSE)


class TestOutput:
    def test_named_columns(self, encoder, items, features):
        for library in ("pandas", "polars"):
            module = pytest.importorskip(library)
            found = clone(encoder).set_output(transform=library).transform(items)
            assert isinstance(found, module.DataFrame)
            assert list(found.columns) == encoder.get_feature_names_out().tolist()
            np.testing.assert_allclose(found.to_numpy(), features, **CLOSE)

    def test_is_the_users_own(self, encoder, items, features):
        """Writing into an answer changes no later one, cached or not."""
        encoder.set_params(cache="memory")
        encoder.transform(items)[:] = 0
        np.testing.assert_allclose(encoder.transform(items), features, **CLOSE)

    def test_bad_items_are_named_or_nan(self, encoder, items, features):
        bad = [items[0], None, items[1]]
        with pytest.raises(ValueError, match="row 1: None"):
            encoder.transform(bad)
        with pytest.warns(UserWarning, match="row 1: None"):
            found = encoder.set_params(on_error="nan").transform(bad)
        np.testing.assert_allclose(found[[0, 2]], features[:2], **CLOSE)
        assert np.isnan(found[1]).all()

    def test_global_generators_are_left_alone(self, encoder, items):
        states = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
        encoder.transform(items)
        np.testing.assert_array_equal(np.random.get_state()[1], states[0])  # noqa: NPY002
        assert torch.equal(torch.random.get_rng_state(), states[1])


class TestConcurrency:
    def test_four_threads_share_an_encoder(self, encoder, items, features):
        """One encoder, and clones of it, in four threads at once."""
        with ThreadPoolExecutor(4) as pool:
            some = [encoder, clone(encoder)] * 4
            for found in pool.map(lambda one: one.transform(items), some):
                np.testing.assert_allclose(found, features, **CLOSE)


# Not "fork": after OpenMP has computed in the parent, torch hangs in a forked child.
@pytest.mark.exhaustive
@pytest.mark.parametrize("way", ["forkserver", "spawn"])
def test_encoders_work_in_another_process(way, all_encoders, folder):
    """All encoders in another process."""
    if way not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not {way}")
    jobs = [
        (encoder, tiny.TEXTS if encoder._modality == "text" else
         [str(folder / f"{number}.png") for number in range(5)])
        for encoder in all_encoders.values()
    ]  # fmt: skip
    expected = [encoder.transform(items) for encoder, items in jobs]
    context = multiprocessing.get_context(way)
    with context.Pool(1) as pool:
        # Methods travel with their encoder; a function of this file could not be found there.
        waiting = [pool.apply_async(encoder.transform, (items,)) for encoder, items in jobs]
        found = [one.get(timeout=120) for one in waiting]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)
