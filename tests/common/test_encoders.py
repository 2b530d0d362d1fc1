"""Common tests of all encoders of images and texts.

scikit-learn runs only one of its checks on these encoders, because they do not take tables.
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
# Each class gets the parameters from this table that it has.
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
    """Return a folder with the same images as files."""
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
    """Return five items that any container can hold: texts or paths of images."""
    if encoder._modality == "text":
        return tiny.TEXTS
    return [str(folder / f"{number}.png") for number in range(5)]


@pytest.fixture
def features(encoder, items):
    return encoder.transform(items)


def test_every_encoder_class_is_tested(all_encoders):
    assert sorted(all_encoders) == NAMES
    assert len(NAMES) == 7


class TestParameters:
    def test_parameters_round_trip_through_get_and_set(self, encoder):
        odd = {name: object() for name in encoder.get_params()}
        assert encoder.set_params(**odd).get_params() == odd
        assert clone(type(encoder)(**odd), safe=False).get_params().keys() == odd.keys()
        with pytest.raises(ValueError, match="Invalid parameter"):
            encoder.set_params(no_such=1)

    @pytest.mark.sampled(3)
    def test_fit_and_transform_keep_parameters(self, encoder, items):
        before = dict(encoder.get_params())
        assert encoder.fit(items) is encoder
        encoder.transform(items)
        assert encoder.get_params() == before

    def test_check_estimator_passes(self, encoder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # check_estimator warns that it runs only one check
            results = check_estimator(encoder, on_fail="raise", on_skip=None)
        assert [result["status"] for result in results] == ["passed"]


class TestSameFeatures:
    @pytest.mark.sampled(3)
    def test_repeated_calls_fit_transform_and_clones_give_equal_features(
        self, encoder, items, features
    ):
        assert features.dtype == np.float32
        assert features.shape == (5, len(encoder.get_feature_names_out()))
        assert np.ptp(features, axis=0).max() > 1e-3  # features differ
        np.testing.assert_array_equal(encoder.transform(items), features)
        np.testing.assert_array_equal(encoder.fit_transform(items), features)
        np.testing.assert_array_equal(clone(encoder).transform(items), features)

    @pytest.mark.sampled(3)
    def test_order_of_items_does_not_change_features(self, encoder, items, features):
        order = np.array([3, 1, 4, 0, 2])
        found = encoder.transform([items[place] for place in order])
        np.testing.assert_allclose(found, features[order], **CLOSE)

    @pytest.mark.sampled(5)
    @pytest.mark.parametrize("batch_size", [1, 2, 64])
    def test_batch_size_does_not_change_features(self, encoder, items, features, batch_size):
        found = encoder.set_params(batch_size=batch_size).transform(items)
        np.testing.assert_allclose(found, features, **CLOSE)

    @pytest.mark.sampled(3)
    def test_features_do_not_depend_on_other_items(self, encoder, items, features):
        """The feature of an item is the same in any subset, also if the item is repeated."""
        alone = np.concatenate([encoder.transform([item]) for item in items])
        np.testing.assert_allclose(alone, features, **CLOSE)
        found = encoder.transform([items[2], items[0], items[2]])
        np.testing.assert_allclose(found, features[[2, 0, 2]], **CLOSE)

    @pytest.mark.sampled(3)
    def test_every_container_gives_equal_features(self, encoder, items, features):
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

    @pytest.mark.sampled(3)
    def test_pickle_gives_equal_features(self, encoder, items, features):
        content = pickle.dumps(encoder)
        assert len(content) < 10_000
        np.testing.assert_array_equal(pickle.loads(content).transform(items), features)

    @pytest.mark.sampled(3)
    def test_cache_gives_equal_features(self, encoder, items, features, tmp_path):
        encoder.set_params(cache=tmp_path)
        for _ in range(2):
            np.testing.assert_allclose(encoder.transform(items), features, **CLOSE)


class TestOutput:
    @pytest.mark.sampled(3)
    def test_set_output_names_columns(self, encoder, items, features):
        for library in ("pandas", "polars"):
            module = pytest.importorskip(library)
            found = clone(encoder).set_output(transform=library).transform(items)
            assert isinstance(found, module.DataFrame)
            assert list(found.columns) == encoder.get_feature_names_out().tolist()
            np.testing.assert_allclose(found.to_numpy(), features, **CLOSE)

    @pytest.mark.sampled(3)
    def test_writing_into_features_does_not_change_later_ones(self, encoder, items, features):
        """The result is a copy, with and without a cache."""
        encoder.set_params(cache="memory")
        encoder.transform(items)[:] = 0
        np.testing.assert_allclose(encoder.transform(items), features, **CLOSE)

    @pytest.mark.sampled(3)
    def test_invalid_items_raise_with_their_row_or_give_nan(self, encoder, items, features):
        bad = [items[0], None, items[1]]
        with pytest.raises(ValueError, match="row 1: None"):
            encoder.transform(bad)
        with pytest.warns(UserWarning, match="row 1: None"):
            found = encoder.set_params(on_error="nan").transform(bad)
        np.testing.assert_allclose(found[[0, 2]], features[:2], **CLOSE)
        assert np.isnan(found[1]).all()

    def test_global_generators_are_not_used(self, encoder, items):
        states = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
        encoder.transform(items)
        np.testing.assert_array_equal(np.random.get_state()[1], states[0])  # noqa: NPY002
        assert torch.equal(torch.random.get_rng_state(), states[1])


class TestConcurrency:
    @pytest.mark.sampled(3)
    def test_threads_that_share_an_encoder_get_equal_features(self, encoder, items, features):
        """Four threads use one encoder and clones of it at the same time."""
        with ThreadPoolExecutor(4) as pool:
            some = [encoder, clone(encoder)] * 4
            for found in pool.map(lambda one: one.transform(items), some):
                np.testing.assert_allclose(found, features, **CLOSE)


# "fork" is not tested: torch hangs in a forked child if the parent has used OpenMP.
@pytest.mark.exhaustive
@pytest.mark.parametrize("way", ["forkserver", "spawn"])
def test_encoders_in_another_process_give_equal_features(way, all_encoders, folder):
    """All encoders can be sent to a process that is started in any supported way."""
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
        # The child could not import a function of this file; a method is pickled with its encoder.
        waiting = [pool.apply_async(encoder.transform, (items,)) for encoder, items in jobs]
        found = [one.get(timeout=120) for one in waiting]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)
