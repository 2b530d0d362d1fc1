"""What every encoder promises: lazy weights, one cache, named errors, sklearn's manners."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import (
    EncodingError,
    OpenCLIPImageEncoder,
    OpenCLIPTextEncoder,
    TimmImageEncoder,
    TransformersImageEncoder,
    TransformersTextEncoder,
)
from sklearn_ape.encoders._base import FrozenEncoder
from sklearn_ape.encoders._engines._torch import TorchEngine

ALL = [
    TimmImageEncoder,
    TransformersImageEncoder,
    TransformersTextEncoder,
    OpenCLIPImageEncoder,
    OpenCLIPTextEncoder,
]
TEXTS = ["a cat", "two dogs on a long walk through the woods", "a rocket"]


@pytest.fixture(scope="module")
def paths():
    return load_openmoji().images[:12]


@pytest.fixture(scope="module")
def truth(paths):
    return TimmImageEncoder(cache=None).transform(paths)


@pytest.fixture
def encoder(tmp_path):
    return TimmImageEncoder(cache=tmp_path / "cache")


@pytest.fixture
def no_weights(monkeypatch):
    def fails(self, *args):
        raise AssertionError("the network was called for")

    monkeypatch.setattr(FrozenEncoder, "_shared", fails)


def gained(encoder, X):
    """Return the hits and misses of one transform."""
    before = encoder.cache_info()
    encoder.transform(X)
    after = encoder.cache_info()
    return after.hits - before.hits, after.misses - before.misses


# ---------------------------------------------------------------- lazy weights


@pytest.mark.parametrize("cls", ALL)
def test_constructing_cloning_pickling_load_nothing(cls, no_weights):
    """Parameters are stored as they come, round trip, and pickles are small."""
    encoder = cls(batch_size=3, cache=None, on_error="nan")
    assert clone(encoder).get_params() == encoder.get_params()
    assert cls(**encoder.get_params()).get_params() == encoder.get_params()
    assert encoder.set_params(verbose=1).verbose == 1
    assert len(pickle.dumps(encoder)) < 10_000
    odd = object()
    for name in encoder.get_params():
        assert getattr(cls(**{name: odd}), name) is odd


def test_fit_loads_nothing_and_returns_self(no_weights):
    """fit checks the form of X alone."""
    for encoder, X in ((TimmImageEncoder(), ["a.png"]), (TransformersTextEncoder(), TEXTS)):
        assert encoder.fit(X) is encoder


def test_clones_share_one_network(paths):
    """Ninety megabytes are not loaded anew for every candidate of a search."""
    first = TimmImageEncoder()
    first.transform(paths[:1])
    assert clone(first)._network().model is first._network().model


def test_pickle_works_in_a_fresh_process(tmp_path, paths, truth):
    """A pickle holds no weights, before and after use, and gives the same features elsewhere."""
    encoder = TimmImageEncoder(cache=None)
    encoder.transform(paths[:2])
    content = pickle.dumps(encoder)
    assert len(content) < 10_000
    (tmp_path / "encoder.pkl").write_bytes(content)
    code = (
        "import pickle, sys, numpy as np\n"
        "encoder = pickle.load(open(sys.argv[1], 'rb'))\n"
        "np.save(sys.argv[2], encoder.transform(sys.argv[3:]))\n"
    )
    out = tmp_path / "out.npy"
    command = [sys.executable, "-c", code, tmp_path / "encoder.pkl", out, *paths[:2]]
    subprocess.run(command, check=True)
    np.testing.assert_allclose(np.load(out), truth[:2], atol=1e-5)


def test_import_is_light():
    """Importing the encoders imports no deep learning library but torch."""
    code = (
        "import sys, sklearn_ape.encoders\n"
        "print([m for m in ('timm', 'transformers', 'open_clip') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- cache


def test_content_not_name_is_the_key(encoder, paths, tmp_path):
    """A copied or renamed file hits; a changed one of the same name, size and time misses."""
    path = tmp_path / "a.bmp"
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    os.utime(path, (10**9, 10**9))
    assert gained(encoder, [path]) == (0, 1)
    assert gained(encoder, [shutil.copy(path, tmp_path / "b.bmp"), path]) == (2, 0)
    Image.fromarray(pixels + 200).save(path)
    os.utime(path, (10**9, 10**9))
    assert gained(encoder, [path]) == (0, 1)


def test_duplicates_are_encoded_once(encoder, paths, truth):
    """Equal items of one call cost one pass, and every row gets its feature."""
    X = [paths[0], paths[1], Path(paths[0])] * 2
    assert gained(encoder, X) == (4, 2)
    features = encoder.transform(X)
    np.testing.assert_allclose(features, truth[[0, 1, 0] * 2], atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [{"pooling": "mean"}, {"crop": "pad"}, {"output": "logits"}, {"dtype": "bfloat16"}],
)
def test_parameters_of_the_image_feature_miss(encoder, paths, other):
    """What changes a feature changes its key."""
    encoder.transform(paths[:1])
    assert gained(clone(encoder).set_params(**other), paths[:1]) == (0, 1)


@pytest.mark.parametrize("other", [{"normalize": False}, {"max_length": 4}, {"pooling": "cls"}])
def test_parameters_of_the_text_feature_miss(tmp_path, other):
    """The same for texts."""
    encoder = TransformersTextEncoder(cache=tmp_path)
    encoder.transform(TEXTS)
    assert gained(clone(encoder).set_params(**other), TEXTS) == (0, 3)


@pytest.mark.parametrize(
    "other",
    [{"batch_size": 1}, {"n_jobs": 2}, {"device": "cpu"}, {"verbose": 1}, {"on_error": "nan"}],
)
def test_other_parameters_hit(encoder, paths, other):
    """What does not change a feature does not change its key."""
    encoder.transform(paths[:1])
    assert gained(clone(encoder).set_params(**other), paths[:1]) == (1, 0)


def test_killed_run_resumes(tmp_path, paths, truth):
    """After SIGKILL in mid-run, the batches finished before are not computed again."""
    if not hasattr(signal, "SIGKILL"):
        pytest.skip("no SIGKILL here")
    code = (
        "import os, signal, sys\n"
        "from sklearn_ape.encoders import TimmImageEncoder\n"
        "class Killed(TimmImageEncoder):\n"
        "    def _features_of(self, *batch):\n"
        "        global n\n"
        "        n += 1\n"
        "        if n > 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super()._features_of(*batch)\n"
        "n = 0\n"
        "Killed.__name__ = 'TimmImageEncoder'\n"
        "Killed(cache=sys.argv[1], batch_size=2, engine='torch').transform(sys.argv[2:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path, *paths])
    assert done.returncode == -signal.SIGKILL
    encoder = TimmImageEncoder(cache=tmp_path, batch_size=2)
    before = encoder.cache_info()
    np.testing.assert_allclose(encoder.transform(paths), truth, atol=1e-5)
    after = encoder.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (6, 6)


def test_damaged_cache_gives_the_right_features(encoder, paths, truth):
    """Flipped bytes in the file cost time, never truth."""
    encoder.transform(paths)
    file = encoder.cache / "features.sqlite"
    sound = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(3):
        damaged = np.frombuffer(sound, dtype=np.uint8).copy()
        damaged[rng.integers(len(damaged), size=len(damaged) // 4000)] ^= 0xFF
        file.write_bytes(damaged.tobytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_allclose(encoder.transform(paths), truth, atol=1e-5)


def test_threads_encode_each_picture_once(encoder, paths, truth):
    """Two threads that want the same pictures share the work of one."""
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(clone(encoder).transform(paths)))
        for _ in range(3)
    ]
    before = encoder.cache_info()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert encoder.cache_info().misses - before.misses == len(paths)
    for features in results:
        np.testing.assert_allclose(features, truth, atol=1e-5)


def test_threads_share_a_tokenizer():
    """Encoders of one network with other parameters do not disturb each other's tokenizer."""
    lengths = [3, 8, None]
    texts = [f"the text number {number} " * (1 + number % 5) for number in range(24)]
    found = {}
    encoders = [
        TransformersTextEncoder(max_length=length, cache=None, batch_size=4) for length in lengths
    ]
    expected = [encoder.transform(texts) for encoder in encoders]

    def work(place):
        found[place] = encoders[place].transform(texts)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in range(3):
        np.testing.assert_allclose(found[place], expected[place], atol=1e-5)


# ---------------------------------------------------------------- forms of X


def test_every_form_of_a_picture_gives_the_same_feature(paths, truth):
    """Path, str, bytes, PIL image and array of one picture; lists and arrays of them."""
    image = Image.open(paths[0])
    array = np.asarray(image.convert("RGB"))
    forms = [paths[0], Path(paths[0]), Path(paths[0]).read_bytes(), image, array]
    features = TimmImageEncoder(cache=None).transform(forms)
    np.testing.assert_allclose(features, truth[[0] * 5], atol=1e-5)
    stack = np.stack([array, array[::-1]])
    np.testing.assert_allclose(TimmImageEncoder().transform(stack)[0], truth[0], atol=1e-5)
    grey = np.zeros((2, 30, 40), dtype=np.uint8)
    assert TimmImageEncoder().transform(grey).shape == (2, 1280)


def test_columns(paths, truth):
    """Object arrays, pandas with an odd index, polars, pyarrow, a column of Hugging Face."""
    pd, pl, pa = map(pytest.importorskip, ("pandas", "polars", "pyarrow"))
    few = paths[:3]
    columns = [
        tuple(few),
        np.array(few),
        np.array(few, dtype=object),
        pd.Series(few, index=[9, 9, 3]),
        pl.Series(few),
        pa.array(few),
        pa.chunked_array([few[:1], few[1:]]),
    ]
    for column in columns:
        np.testing.assert_allclose(TimmImageEncoder().transform(column), truth[:3], atol=1e-5)
    texts = TransformersTextEncoder().transform(TEXTS)
    for column in (pd.Series(TEXTS, index=[5, 5, 1]), pl.Series(TEXTS), pa.array(TEXTS)):
        np.testing.assert_array_equal(TransformersTextEncoder().transform(column), texts)


def test_hugging_face_column(paths, truth):
    """A column of `datasets` holds PIL images; the dataset itself is refused with its columns."""
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": paths[:3]}).cast_column("image", datasets.Image())
    np.testing.assert_allclose(TimmImageEncoder().transform(data["image"]), truth[:3], atol=1e-5)
    with pytest.raises(ValueError, match=r"table with the columns \['image'\]"):
        TimmImageEncoder().transform(data)


@pytest.mark.parametrize("method", ["fit", "transform"])
@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("a.png", r"single image, not a sequence of them: pass a list, \[X\]"),
        (b"abc", "single image"),
        (bytearray(b"abc"), "single image"),
        (Path("a.png"), "single image"),
        (Image.new("RGB", (2, 2)), "single image"),
        (np.zeros((20, 30, 3), dtype=np.uint8), r"pass a single picture as \[X\]"),
        (np.zeros((20, 30), dtype=np.uint8), r"pass a single picture as \[X\]"),
        (np.zeros((20, 1280)), "features need no image encoder"),
        ([], "X is empty: 0 images"),
        (None, "must be a sequence of images .* not NoneType"),
        ({"a": "a.png"}, "must be a sequence of images .* not dict"),
        ({"a.png"}, "must be a sequence of images .* not set"),
        ((path for path in "ab"), "must be a sequence of images .* not generator"),
        (np.array("a.png"), "not a single object"),
    ],
)
def test_what_is_no_sequence(method, X, message, no_weights):
    """Each has its own error, in fit as in transform, before any weights are loaded."""
    with pytest.raises(ValueError, match=message):
        getattr(TimmImageEncoder(), method)(X)


def test_tables_are_refused_by_the_names_of_their_columns(no_weights):
    """pandas, polars and pyarrow tables: the error lists the columns to choose from."""
    pd, pl, pa = map(pytest.importorskip, ("pandas", "polars", "pyarrow"))
    content = {"path": ["a.png"], "caption": ["a cat"]}
    for table in (pd.DataFrame(content), pl.DataFrame(content), pa.table(content)):
        with pytest.raises(ValueError, match=r"table with the columns \['path', 'caption'\]"):
            TimmImageEncoder().transform(table)


# ---------------------------------------------------------------- bad items


def test_error_names_rows_items_and_remedy(paths, no_weights):
    """Every bad row is in `errors`, five in the message, and no network was loaded."""
    bad = [f"missing{number}.png" for number in range(7)]
    with pytest.raises(EncodingError, match="7 images cannot be encoded") as caught:
        TimmImageEncoder(cache=None).transform([paths[0], *bad])
    message = str(caught.value)
    assert "row 1: 'missing0.png' does not exist" in message
    assert "and 2 more" in message
    assert "pass on_error='nan' to TimmImageEncoder" in message
    assert list(caught.value.errors) == list(range(1, 8))
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.errors == caught.value.errors
    assert str(again) == message


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (None, "row 0: None is of type NoneType"),
        (float("nan"), "row 0: nan is of type float"),
        (b"", r"row 0: the bytes object is empty"),
        (np.zeros((3, 8, 9), dtype=np.uint8), r"row 0: the array is .*\(3, 8, 9\).*come last"),
        (np.zeros((1, 300), dtype=np.uint8), r"row 0: the array is too narrow: 300 x 1"),
    ],
)
def test_messages_read_well(item, message):
    """Row, item and what is wrong with it make one sentence."""
    with pytest.raises(EncodingError, match=message):
        TimmImageEncoder(cache=None).transform([item])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("", "'' is empty: expected a text"),
        (" \n", "is empty: expected a text"),
        (None, "None is no text .a missing caption"),
        (float("nan"), "nan is no text .a missing caption"),
        (7, "7 is of type int: expected a str"),
        (b"a cat", "is of type bytes: expected a str"),
        (["a cat"], "is of type list: expected a str"),
        (np.zeros(3), "the array is of type ndarray: expected a str"),
        ("half a pair \ud800", "no valid Unicode"),
    ],
)
def test_bad_texts(item, message, no_weights):
    """An empty or missing caption is named, before the network is loaded."""
    with pytest.raises(EncodingError, match=f"row 1: .*{message}"):
        TransformersTextEncoder(cache=None).transform(["a cat", item])


def test_pandas_missing_texts(no_weights):
    """pandas' own missing value is one, too."""
    pd = pytest.importorskip("pandas")
    for missing in (pd.NA, pd.NaT):
        with pytest.raises(EncodingError, match="is no text"):
            TransformersTextEncoder(cache=None).transform([missing])


def test_picture_given_as_text(paths, no_weights):
    """A path to a picture in place of a caption is a mix-up; a caption with a dot is not."""
    with pytest.raises(EncodingError, match="captions go to the text encoder"):
        TransformersTextEncoder(cache=None).transform([paths[0]])


def test_on_error_nan(encoder, paths, truth, tmp_path):
    """Bad rows are NaN, good ones right and cached; one warning, and `errors_` names all."""
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(paths[3]).read_bytes()[:200])
    X = [paths[0], "none.png", paths[1], cut, None, paths[2]]
    encoder.set_params(on_error="nan", batch_size=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        features = encoder.transform(X)
    (warning,) = caught
    assert warning.filename == __file__
    assert "3 images cannot be encoded" in str(warning.message)
    assert list(encoder.errors_) == [1, 3, 4]
    np.testing.assert_array_equal(np.isnan(features).all(axis=1), [0, 1, 0, 1, 1, 0])
    np.testing.assert_allclose(features[[0, 2, 5]], truth[:3], atol=1e-5)
    assert gained(encoder, paths[:3]) == (3, 0)
    assert encoder.errors_ == {}


def test_on_error_nan_with_nothing_good():
    """All rows bad is still an array of the right width."""
    with pytest.warns(UserWarning, match="2 images"):
        assert TimmImageEncoder(on_error="nan").transform([None, "x.png"]).shape == (2, 1280)


def test_on_error_raise_keeps_finished_batches(encoder, paths, tmp_path):
    """What was encoded before the bad picture need not be encoded again."""
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(paths[3]).read_bytes()[:200])
    with pytest.raises(EncodingError, match=r"row 5: .*damaged or cut short"):
        encoder.set_params(batch_size=2).transform([*paths[:5], cut])
    assert gained(encoder, paths[:5]) == (5, 0)


def test_numbers_that_are_not_finite_are_an_error(paths, monkeypatch):
    """A network that overflows gives an error, not a feature, and nothing is cached."""
    call = TorchEngine.__call__
    monkeypatch.setattr(TorchEngine, "__call__", lambda *args: call(*args) + np.float32("inf"))
    with pytest.raises(EncodingError, match="not finite in float32"):
        TimmImageEncoder(cache=None, engine="torch").transform(paths[:1])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batch_size": 0}, "batch_size must be 'auto' or an integer >= 1, not 0"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"batch_size": None}, "batch_size"),
        ({"pooling": "max"}, "pooling must be one of auto, mean, gem, cls, cls.mean, not 'max'"),
        ({"crop": "squash"}, "crop must be one of center, pad"),
        ({"output": "probabilities"}, "output must be one of features, logits"),
        ({"dtype": "float64"}, "dtype must be one of float32, bfloat16, float16"),
        ({"dtype": torch.float32}, "dtype must be one of"),
        ({"device": "gpu"}, "device must be 'auto'"),
        ({"on_error": "ignore"}, "on_error must be one of raise, nan"),
        ({"model_name": None}, "model_name must be a str, not None"),
        ({"model_name": ""}, "model_name must be a str"),
    ],
)
def test_bad_parameters(parameters, message, no_weights):
    """A wrong parameter is named with its choices, in fit as in transform."""
    for method in ("fit", "transform"):
        with pytest.raises(ValueError, match=message):
            getattr(TimmImageEncoder(**parameters), method)(["a.png"])


@pytest.mark.parametrize("cls", ALL)
def test_no_cuda(cls, monkeypatch, no_weights):
    """device="cuda" on a machine without it names device="auto"."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="Use device='auto'"):
        cls(device="cuda").fit(["a"])


# ---------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize("cls", ALL)
def test_tags_and_fitted(cls):
    """A frozen encoder needs no fit, and says which input it takes."""
    encoder = cls()
    tags = get_tags(encoder)
    assert not tags.requires_fit
    assert not tags.input_tags.two_d_array
    assert tags.input_tags.string == (cls in (TransformersTextEncoder, OpenCLIPTextEncoder))
    assert tags.input_tags.three_d_array != tags.input_tags.string
    check_is_fitted(encoder)


def test_output(paths, truth):
    """float32, C-contiguous, writable and the same whatever the batch size and workers."""
    for parameters in ({"batch_size": 1}, {"batch_size": 5, "n_jobs": 2}):
        features = TimmImageEncoder(cache=None, **parameters).transform(paths[:6])
        assert features.dtype == np.float32
        assert features.flags.c_contiguous
        assert features.flags.writeable
        np.testing.assert_allclose(features, truth[:6], atol=1e-5)
    cached = TimmImageEncoder()
    cached.transform(paths)[:] = 0
    np.testing.assert_allclose(cached.transform(paths), truth, atol=1e-5)
    texts = [
        TransformersTextEncoder(cache=None, batch_size=size).transform(TEXTS) for size in (1, 3)
    ]
    np.testing.assert_allclose(*texts, atol=1e-5)


def test_pipeline_unfitted(paths, truth):
    """A Pipeline of frozen steps works without fit."""
    np.testing.assert_allclose(
        make_pipeline(TimmImageEncoder()).transform(paths), truth, atol=1e-5
    )


def test_feature_names_follow_the_parameters(paths):
    """Before and after transform, and after set_params has changed the width."""
    encoder = TimmImageEncoder()
    names = encoder.get_feature_names_out()
    assert names[0] == "timmimageencoder0"
    assert len(names) == 1280
    encoder.transform(paths[:1])
    assert len(encoder.get_feature_names_out()) == 1280
    encoder.set_params(output="logits")
    assert len(encoder.get_feature_names_out()) == 1000
    assert len(TransformersTextEncoder().get_feature_names_out()) == 384


def test_set_output(paths, truth):
    """pandas (keeping the index of a Series) and polars come out with named columns."""
    pd, pl = map(pytest.importorskip, ("pandas", "polars"))
    series = pd.Series(paths[:3], index=[7, 5, 6])
    frame = TimmImageEncoder().set_output(transform="pandas").transform(series)
    assert list(frame.index) == [7, 5, 6]
    assert frame.columns[-1] == "timmimageencoder1279"
    np.testing.assert_allclose(frame.to_numpy(), truth[:3], atol=1e-5)
    frame = TimmImageEncoder().set_output(transform="polars").transform(paths[:3])
    assert isinstance(frame, pl.DataFrame)
    assert frame.shape == (3, 1280)


def test_global_random_state_is_left_alone(paths):
    """Neither loading nor encoding draws from numpy's or torch's global generator."""
    from sklearn_ape.encoders import _networks

    _networks._kept.clear()
    np_state, torch_state = np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    TimmImageEncoder(cache=None).transform(paths[:1])
    TransformersTextEncoder(cache=None).transform(TEXTS[:1])
    np.testing.assert_array_equal(np.random.get_state()[1], np_state[1])  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), torch_state)


def test_progress_bar_counts_every_item(paths, capsys, monkeypatch, tmp_path):
    """With verbose=1 the bar ends at its total, bad pictures included."""
    bars = []

    class Bar:
        def __init__(self, total, **options):
            self.total, self.n, self.disabled = total, 0, options["disable"]
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *exc_info):
            pass

        def update(self, n):
            self.n += n

    monkeypatch.setattr("sklearn_ape.encoders._base.tqdm", Bar)
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(paths[3]).read_bytes()[:200])
    with pytest.warns(UserWarning, match="1 image cannot"):
        TimmImageEncoder(cache=None, on_error="nan", batch_size=2, verbose=1).transform(
            [*paths[:4], cut]
        )
    assert [(bar.n, bar.total, bar.disabled) for bar in bars] == [(5, 5, False)]
