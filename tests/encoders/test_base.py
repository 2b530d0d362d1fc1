"""Common behaviour of encoders: lazy loading of weights and scikit-learn's conventions."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.fixes import parse_version
from sklearn.utils.validation import check_is_fitted

from sklearn_ape import KernelAligner, load_pretrained
from sklearn_ape.encoders import (
    EncodingFailedWarning,
    OpenCLIPTextEncoder,
    TimmImageEncoder,
    TransformersTextEncoder,
    _encoding,
)
from sklearn_ape.utils.concurrency import LRUCache
from tests.encoders import test_transformers as hf
from tests.encoders.conftest import ALL

TEXTS = ["a cat", "two dogs on a long walk through the woods", "a rocket"]


@pytest.mark.parametrize("cls", ALL)
def test_constructor_clone_and_pickle_load_no_weights(cls, no_weights):
    """Parameters are stored unchanged, and pickles are small."""
    encoder = cls(batch_size=3, cache=None, on_error="nan")
    assert clone(encoder).get_params() == encoder.get_params()
    assert cls(**encoder.get_params()).get_params() == encoder.get_params()
    assert encoder.set_params(verbose=1).verbose == 1
    assert len(pickle.dumps(encoder)) < 10_000
    odd = object()
    for name in encoder.get_params():
        assert getattr(cls(**{name: odd}), name) is odd


def test_fit_loads_no_weights_and_returns_self(no_weights):
    """fit only checks parameters and X."""
    for encoder, X in ((TimmImageEncoder(), ["a.png"]), (TransformersTextEncoder(), TEXTS)):
        assert encoder.fit(X) is encoder


def test_clones_share_one_network(paths):
    """The candidates of a search share the loaded weights."""
    first = TimmImageEncoder()
    first.transform(paths[:1])
    assert clone(first)._get_network().model is first._get_network().model


@pytest.mark.exhaustive
def test_pickle_works_in_a_fresh_process(tmp_path, paths, truth):
    """Pickles contain no weights, and the encoder gives equal features in a new process.

    Unpickling imports no deep learning library except torch.
    """
    encoder = TimmImageEncoder(cache=None)
    encoder.transform(paths[:2])
    content = pickle.dumps(encoder)
    assert len(content) < 10_000
    (tmp_path / "encoder.pkl").write_bytes(content)
    code = (
        "import pickle, sys, numpy as np\n"
        "encoder = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print([m for m in ('timm', 'transformers', 'open_clip') if m in sys.modules])\n"
        "np.save(sys.argv[2], encoder.transform(sys.argv[3:]))\n"
    )
    out = tmp_path / "out.npy"
    command = [sys.executable, "-c", code, tmp_path / "encoder.pkl", out, *paths[:2]]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines()[0] == "[]"
    np.testing.assert_allclose(np.load(out), truth[:2], atol=1e-5)


class TestOtherWeightsThanAtFit:
    """The heads of an aligner are wrong for the features of another network."""

    CAPTIONS = ("a cat", "the dog", "cat on the mat", "dog runs", "the mat", "a dog on a cat")

    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "text"
        self.save(folder, seed=0)
        return folder

    @pytest.fixture
    def aligner(self, folder):
        features = np.random.default_rng(0).standard_normal((6, 4))
        return KernelAligner(text_encoder=str(folder)).fit(features, self.CAPTIONS)

    @staticmethod
    def save(folder, seed):
        config = hf.transformers.BertConfig(**hf.TEXT)
        hf.save_model(folder, config, seed=seed, prepare=hf.tokenizer())

    def test_replaced_weights_raise(self, aligner, folder, tmp_path):
        saved, pickled = tmp_path / "saved", pickle.dumps(aligner)
        self.save(folder, seed=1)
        for fitted in (aligner, pickle.loads(pickled)):
            with pytest.raises(ValueError, match=r"has other weights here .* fit again"):
                fitted.transform_text(TEXTS)
        aligner.save_pretrained(saved)  # records the weights of the fit
        with pytest.raises(ValueError, match="has other weights here"):
            load_pretrained(saved)
        self.save(folder, seed=0)
        expected = aligner.transform_text(TEXTS)
        np.testing.assert_array_equal(load_pretrained(saved).transform_text(TEXTS), expected)

    def test_moved_folder_raises(self, aligner, folder, tmp_path):
        folder.rename(tmp_path / "moved")
        message = f"does not exist here. Copy the folder with the weights to {str(folder)!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            aligner.transform_text(TEXTS)

    def test_next_fit_uses_the_new_weights(self, aligner, folder):
        self.save(folder, seed=1)
        aligner.fit(np.eye(6), self.CAPTIONS)
        assert aligner.transform_text(TEXTS).shape[0] == len(TEXTS)

    def test_model_downloaded_after_fit_is_recorded(self, monkeypatch):
        """The commit of a model on the hub is unknown until its files are in the local cache."""
        commits = iter([None, "name@" + "1" * 40, "name@" + "2" * 40])
        monkeypatch.setattr(
            TransformersTextEncoder, "_compute_weights_fingerprint", lambda self: next(commits)
        )
        encoder = pickle.loads(pickle.dumps(TransformersTextEncoder("owner/name").fit(TEXTS)))
        with pytest.raises(ValueError, match=r"other weights here \(name@2+\) than .*\(name@1+\)"):
            encoder.transform(TEXTS)


@pytest.mark.parametrize("cls", ALL)
def test_tags_declare_input_and_no_fit(cls):
    encoder = cls()
    tags = get_tags(encoder)
    assert not tags.requires_fit
    assert not tags.input_tags.two_d_array
    assert tags.input_tags.string == (cls in (TransformersTextEncoder, OpenCLIPTextEncoder))
    assert tags.input_tags.three_d_array != tags.input_tags.string
    check_is_fitted(encoder)


def test_output_is_contiguous_and_writable(paths, truth):
    features = TimmImageEncoder(cache=None, batch_size=5, n_jobs=2).transform(paths[:6])
    assert features.flags.c_contiguous
    assert features.flags.writeable
    np.testing.assert_allclose(features, truth[:6], atol=1e-5)


def test_pipeline_works_without_fit(paths, truth):
    np.testing.assert_allclose(
        make_pipeline(TimmImageEncoder()).transform(paths), truth, atol=1e-5
    )


def test_feature_names_follow_the_parameters(paths):
    """Names are right before and after transform, and after set_params changes their number."""
    encoder = TimmImageEncoder()
    names = encoder.get_feature_names_out()
    assert names[0] == "timmimageencoder0"
    assert len(names) == 1280
    encoder.transform(paths[:1])
    assert len(encoder.get_feature_names_out()) == 1280
    encoder.set_params(output="logits")
    assert len(encoder.get_feature_names_out()) == 1000
    assert len(TransformersTextEncoder().get_feature_names_out()) == 384


@pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.8"),
    reason="scikit-learn keeps the index of a frame, but not of a Series",
)
def test_set_output_keeps_the_index_of_a_series(paths):
    pd = pytest.importorskip("pandas")
    series = pd.Series(paths[:3], index=[7, 5, 6])
    frame = TimmImageEncoder().set_output(transform="pandas").transform(series)
    assert list(frame.index) == [7, 5, 6]


def test_global_random_state_is_unchanged(paths):
    """Neither loading nor encoding draws from numpy's or torch's global generator."""
    from sklearn_ape.encoders import weights

    weights.shared_networks.clear()
    np_state, torch_state = np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    TimmImageEncoder(cache=None).transform(paths[:1])
    TransformersTextEncoder(cache=None).transform(TEXTS[:1])
    np.testing.assert_array_equal(np.random.get_state()[1], np_state[1])  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), torch_state)


@pytest.fixture
def bars(monkeypatch):
    """Progress bars that were made."""
    bars = []

    class Bar:
        def __init__(self, total, desc, delay, **options):
            self.total, self.desc, self.delay, self.n, self.updates = total, desc, delay, 0, []
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *exc_info):
            pass

        def update(self, n=1):
            self.n += n
            self.updates.append(n)

    monkeypatch.setattr("tqdm.tqdm", Bar)
    return bars


def test_progress_bars_count_every_item(paths, bars, tmp_path):
    """The bars end at their total, including invalid images."""
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(paths[3]).read_bytes()[:200])
    encoder = TimmImageEncoder(cache=None, on_error="nan", batch_size=2, verbose=1)
    with pytest.warns(UserWarning, match="1 image cannot"):
        encoder.transform([*paths[:4], cut])
    assert [(bar.desc, bar.n, bar.total) for bar in bars] == [
        ("Reading", 5, 5),
        (encoder.model_name, 5, 5),
    ]


def test_progress_bar_appears_at_once_while_the_network_is_loaded(paths, bars, monkeypatch):
    """Nothing was shown during the seconds in which a network is loaded and exported."""
    monkeypatch.setattr(_encoding, "_random_weights", LRUCache(max_entries=8))
    encoder = TimmImageEncoder(cache=None, verbose=1)
    for _ in range(2):
        encoder.transform(paths[:2])
    assert [bar.delay for bar in bars if bar.desc == encoder.model_name] == [0, 0.5]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_progress_bar_of_encode_to_counts_every_item(bars, tmp_path, n_jobs):
    """With one job, it advances within chunks: a chunk of photographs takes half a minute."""
    encoder = TransformersTextEncoder(cache=None, batch_size=2)
    texts = [f"text {number}" for number in range(10)]
    encoder.encode_to(tmp_path / "a.npy", texts, chunk_size=6, n_jobs=n_jobs, verbose=1)
    (bar,) = bars
    assert bar.n == bar.total == 10
    assert sorted(filter(None, bar.updates)) == ([2] * 5 if n_jobs == 1 else [4, 6])


def test_failed_items_warn_with_encoding_failed_warning():
    """Users can filter the warning by its class."""
    assert issubclass(EncodingFailedWarning, UserWarning)
    with pytest.warns(EncodingFailedWarning, match="1 text cannot be encoded"):
        TransformersTextEncoder(on_error="nan").transform(["a cat", None])
