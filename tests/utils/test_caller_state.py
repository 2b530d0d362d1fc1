"""Independence of results from the caller's settings of torch and NumPy."""

import os
import threading
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import HashingVectorizer

from sklearn_ape import (
    APEAligner,
    ASIFAligner,
    CCAAligner,
    CLIPAligner,
    CrossModalRetriever,
    KernelAligner,
    LiTAligner,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
)
from sklearn_ape.aligners import as_open_clip
from sklearn_ape.aligners.starter import load_starter
from sklearn_ape.curation import find_near_duplicates
from sklearn_ape.devices import default_state
from sklearn_ape.encoders import (
    TimmImageEncoder,
    TransformersTextEncoder,
    classifier_head_pairs,
    weights,
)
from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.heads import HEAD_KINDS
from sklearn_ape.inspection import compute_similarity_maps
from sklearn_ape.metrics import expected_calibration_error, fit_temperature
from tests.aligners.test_clip import IMAGES, TEXTS
from tests.aligners.test_clip import save_model as saved_clip
from tests.aligners.test_lit import save_encoder as saved_bert

LABELS = ["cat", "dog", "house", "tree"]


@contextmanager
def set_to(write, value, default):
    write(value)
    try:
        yield
    finally:
        write(default)


@contextmanager
def seterr():
    before = np.seterr(all="raise")
    try:
        yield
    finally:
        np.seterr(**before)


@contextmanager
def all_states():
    with ExitStack() as stack:
        for name in ("autocast bfloat16", "default float64", "inference", "meta", "errstate"):
            stack.enter_context(STATES[name]())
        yield


STATES = {
    "autocast bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "default float64": lambda: set_to(torch.set_default_dtype, torch.float64, torch.float32),
    "default float16": lambda: set_to(torch.set_default_dtype, torch.float16, torch.float32),
    "default bfloat16": lambda: set_to(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "grad disabled": lambda: torch.set_grad_enabled(False),
    "meta": lambda: torch.device("meta"),
    "default device": lambda: set_to(torch.set_default_device, "meta", None),
    "deterministic": lambda: set_to(torch.use_deterministic_algorithms, True, False),
    "medium": lambda: set_to(torch.set_float32_matmul_precision, "medium", "highest"),
    "errstate": lambda: np.errstate(all="raise"),
    "seterr": seterr,
    "everything": all_states,
}
SMALL = {"max_epochs": 2, "width": 8, "batch_size": 64, "random_state": 0}
ALIGNERS = {
    **{f"head {kind}": lambda kind=kind: APEAligner(init=None, head=kind, **SMALL)
       for kind in HEAD_KINDS},
    "init auto": lambda: APEAligner(**SMALL),
    "init kernel": lambda: APEAligner(init="kernel", early_stopping=False, **SMALL),
    "init linear": lambda: APEAligner(init="linear", refit=False, **SMALL),
    "sigmoid": lambda: APEAligner(
        init=None, side="both", loss="sigmoid", optimizer="lion", mixup=0.2,
        optimizer_params={"clip_norm": 1.0}, loss_params={"structure_weight": 0.1}, **SMALL
    ),
    "Kernel": KernelAligner,
    "CCA": CCAAligner,
    "ASIF": lambda: ASIFAligner(power=16.0),
}  # fmt: skip


# Each aligner in a third of the states, and in several at once. All states would take long.
CASES = [
    (state, name)
    for row, state in enumerate(STATES)
    for column, name in enumerate(ALIGNERS)
    if (row + column) % 3 == 0 or state == "everything"
]


def pairs():
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((120, 6))
    return tuple(
        (concepts @ rng.standard_normal((6, width))).astype(np.float32) for width in (12, 10)
    )


@pytest.fixture(scope="module")
def fitted():
    """Return every kind of aligner, fitted with the default settings."""
    return {name: make().fit(*pairs()) for name, make in ALIGNERS.items()}


def embeddings_of(aligner):
    image, text = pairs()
    return {
        "transform": aligner.transform(image),
        "transform_text": aligner.transform_text(text),
        "similarity": aligner.similarity(image, text[:5]),
        "standardized": aligner.similarity(image, text[:5], standardize=True),
        "score": aligner.score(image, text),
    }


def assert_same(results, expected):
    assert results.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(results[name], expected[name], err_msg=name)


class TestAligners:
    @pytest.mark.sampled(11)
    @pytest.mark.parametrize(("state", "name"), CASES)
    def test_fit_gives_same_weights_in_any_state(self, fitted, state, name):
        with STATES[state]():
            aligner = ALIGNERS[name]().fit(*pairs())
        assert aligner.fingerprint_ == fitted[name].fingerprint_
        assert aligner.logit_scale_ == fitted[name].logit_scale_
        assert_same(embeddings_of(aligner), embeddings_of(fitted[name]))

    @pytest.mark.sampled(11)
    @pytest.mark.parametrize(("state", "name"), CASES)
    def test_embeddings_and_score_are_same_in_any_state(self, fitted, state, name):
        with STATES[state]():
            results = embeddings_of(fitted[name])
        assert_same(results, embeddings_of(fitted[name]))

    @pytest.mark.parametrize("name", ["head mlp", "init kernel", "CCA"])
    def test_loaded_model_is_same_in_any_state(self, fitted, name, tmp_path):
        fitted[name].save_pretrained(tmp_path / "model")
        with all_states():
            read = type(fitted[name]).from_pretrained(tmp_path / "model")
        assert read.fingerprint_ == fitted[name].fingerprint_
        assert_same(embeddings_of(read), embeddings_of(fitted[name]))
        for tensor in read.module_.state_dict().values() if name != "CCA" else ():
            assert not tensor.is_inference()

    def test_model_fitted_in_inference_mode_can_be_trained(self):
        """Tensors that are created in inference mode cannot have gradients."""
        with torch.inference_mode():
            aligner = ALIGNERS["head mlp"]().fit(*pairs())
        assert not any(tensor.is_inference() for tensor in aligner.module_.state_dict().values())
        rows = torch.from_numpy(pairs()[1])
        aligner.module_.train().text_head(rows).sum().backward()

    def test_starter_is_same_in_any_state(self):
        expected = load_starter()
        with all_states():
            aligner = load_starter.__wrapped__()  # not the cached aligner
        assert aligner.fingerprint_ == expected.fingerprint_
        for tensor in aligner.module_.state_dict().values():
            assert not tensor.is_inference()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return saved_bert(tmp_path_factory.mktemp("bert"))


def fit_lit(encoder, dtype):
    image, _ = pairs()
    texts = [f"a kind{row % 12} thing{row % 20}" for row in range(len(image))]
    aligner = LiTAligner(
        text_encoder=encoder, dtype=dtype, max_epochs=2, batch_size=32, learning_rate=1e-2,
        random_state=0,
    )  # fmt: skip
    return aligner.fit(image, texts)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def lit(encoder, request):
    return request.param, fit_lit(encoder, request.param)


class TestLiT:
    """LiT trains a copy of the text network that `fit` loads."""

    @pytest.mark.sampled(4)
    @pytest.mark.parametrize(
        "state", ["autocast bfloat16", "default float64", "inference", "meta", "everything"]
    )
    def test_fit_and_embeddings_of_lit_are_same_in_any_state(self, encoder, lit, state, tmp_path):
        dtype, aligner = lit
        texts = ["a kind1 thing2", "thing3"]
        with STATES[state]():
            fitted = fit_lit(encoder, dtype)
            embeddings = aligner.transform_text(texts)
        assert fitted.fingerprint_ == aligner.fingerprint_
        np.testing.assert_array_equal(embeddings, aligner.transform_text(texts))
        aligner.save_pretrained(tmp_path / "model")
        with STATES[state]():
            read = LiTAligner.from_pretrained(tmp_path / "model")
        np.testing.assert_array_equal(embeddings, read.transform_text(texts))


@pytest.fixture
def empty_network_cache():
    """Empty the cache of networks, so that they are loaded in the state of the test."""
    weights.shared_networks.clear()
    yield
    weights.shared_networks.clear()


ENCODERS = {
    "image": (lambda **options: TimmImageEncoder(**options),
              list(np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8))),
    "text": (lambda **options: TransformersTextEncoder(**options),
             ["a cat", "two dogs that run along the beach", "rain"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def expected_features():
    return {
        side: make(cache=None, engine="torch").transform(items)
        for side, (make, items) in ENCODERS.items()
    }


@pytest.mark.usefixtures("empty_network_cache")
class TestEncoders:
    @pytest.mark.sampled(7)
    @pytest.mark.parametrize("side", ENCODERS)
    @pytest.mark.parametrize("state", STATES)
    def test_features_and_cached_features_are_same_in_any_state(
        self, expected_features, state, side, tmp_path
    ):
        make, items = ENCODERS[side]
        with STATES[state]():
            encoder = make(cache=tmp_path, engine="torch")
            names = encoder.get_feature_names_out()
            features = encoder.transform(items)
        assert len(names) == features.shape[1]
        np.testing.assert_array_equal(features, expected_features[side])
        later = make(cache=tmp_path, engine="torch")
        before = later.cache_info()
        np.testing.assert_array_equal(later.transform(items), expected_features[side])
        assert later.cache_info().misses == before.misses
        network = later._get_network().model
        assert all(p.dtype == torch.float32 and not p.is_inference() for p in network.parameters())

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("engine", ["onnx", "openvino"])
    def test_exported_networks_are_same_in_any_state(self, engine, tmp_path):
        pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
        texts = ["a kind1 thing2", "thing3"]
        name = saved_bert(tmp_path / "bert").model_name
        with all_states():
            features = TransformersTextEncoder(name, cache=tmp_path, engine=engine).transform(
                texts
            )
        weights.shared_networks.clear()
        (tmp_path / "features.sqlite").unlink()
        later = TransformersTextEncoder(name, cache=tmp_path, engine=engine)
        np.testing.assert_array_equal(later.transform(texts), features)
        exact = TransformersTextEncoder(name, cache=None, engine="torch").transform(texts)
        np.testing.assert_allclose(features, exact, atol=1e-5)

    def test_features_in_half_precision_fit_under_errstate(self, tmp_path):
        rows = {b"a": np.array([1e-9, 1.0], dtype=np.float32)}
        with np.errstate(all="raise"), DiskFeatureCache(tmp_path, dtype="float16") as cache:
            cache.put_many(rows)
            assert cache.get_many(rows)[b"a"].tolist() == [0.0, 1.0]

    def test_head_pairs_are_same_in_any_state(self):
        expected = classifier_head_pairs(TimmImageEncoder())
        weights.shared_networks.clear()
        with all_states():
            pairs = classifier_head_pairs(TimmImageEncoder())
        np.testing.assert_array_equal(pairs.weights, expected.weights)

    @pytest.mark.parametrize("state", ["default float64", "everything"])
    def test_similarity_maps_are_same_in_any_state(self, state):
        images, encoder = ENCODERS["image"][1], load_starter().image_encoder_
        expected, _ = compute_similarity_maps(None, images, ["a cat"])
        expected_grid, _ = encoder.transform_grid(images)
        with STATES[state]():
            maps, _ = compute_similarity_maps(None, images, ["a cat"])
            grid, _ = encoder.transform_grid(images)
        np.testing.assert_array_equal(maps, expected)
        np.testing.assert_array_equal(grid, expected_grid)


def compute_clip(aligner):
    model, transform, tokenizer = as_open_clip(aligner)
    pixels = torch.stack([transform(input_image) for input_image in IMAGES])
    image = model.encode_image(pixels)
    text = model.encode_text(tokenizer(TEXTS))
    return {
        "transform": aligner.transform(IMAGES),
        "transform_text": aligner.transform_text(TEXTS),
        "similarity": aligner.similarity(IMAGES, TEXTS),
        "scale": aligner.logit_scale_,
        "pixels": pixels.numpy(),
        "image": image.numpy(),
        "text": text.numpy(),
        "open_clip scale": model.logit_scale.numpy(),
    }


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Return an aligner, and its results with the default settings."""
    folder = tmp_path_factory.mktemp("clip")
    saved_clip(folder)
    aligner = CLIPAligner(str(folder), cache=None, device="cpu")
    return aligner, compute_clip(aligner)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("state", STATES)
def test_clip_and_its_open_clip_model_are_same_in_any_state(state, clip):
    """CLIP_benchmark runs models under autocast, which must not change the embeddings."""
    aligner, expected = clip
    with STATES[state]():
        results = compute_clip(aligner)
    assert_same(results, expected)


@pytest.fixture(scope="module")
def labelled_features():
    """Return an aligner with a text encoder of scikit-learn, and image features with labels."""
    rng = np.random.default_rng(0)
    y = np.array(LABELS)[rng.integers(0, 4, 80)]
    centers = {label: rng.standard_normal(12) for label in LABELS}
    X = np.array([centers[label] + 0.3 * rng.standard_normal(12) for label in y], np.float32)
    aligner = CCAAligner(text_encoder=HashingVectorizer(n_features=16), ridge=1e-3).fit(X, y)
    return aligner, X, y


def _logits(y):
    """Return large logits, often of wrong classes, so that small probabilities underflow."""
    right = 300.0 * (y[:, None] == np.array(LABELS))
    return right + np.random.default_rng(0).normal(0, 300, right.shape)


def compute_results(aligner, X, y):
    sharp = ZeroShotClassifier(LABELS, aligner=aligner, logit_scale=1e4)
    standardized = ZeroShotClassifier(LABELS, aligner=aligner, standardize=True, threshold=0.5)
    several = MultiLabelZeroShotClassifier(LABELS, aligner=aligner, logit_scale=1e4)
    retriever = CrossModalRetriever(aligner, standardize=True).fit(X)
    hits = retriever.search(["cat", "a dog"], k=3)
    return {
        "predict_proba": sharp.predict_proba(X),
        "predict_top_k": sharp.predict_top_k(X, 2)[1],
        "predict": standardized.predict(X),
        "predict_proba_together": standardized.predict_proba_together(X),
        "standardized": standardized.predict_proba(X),
        "score": sharp.score(X, y),
        "several": several.predict_proba(X),
        "temperature": fit_temperature(_logits(y), y),
        "calibration": expected_calibration_error(y, sharp.predict_proba(X)),
        "search": np.array(hits.scores),
        "duplicates": find_near_duplicates(X),
    }


@pytest.fixture(scope="module")
def expected_results(labelled_features):
    return compute_results(*labelled_features)


@pytest.mark.parametrize("state", STATES)
def test_predictions_metrics_and_searches_are_same_in_any_state(
    labelled_features, expected_results, state
):
    with STATES[state]():
        results = compute_results(*labelled_features)
    assert_same(results, expected_results)


@pytest.mark.parametrize("state", STATES)
def test_settings_of_caller_are_restored(state):
    def settings():
        return (
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_autocast_enabled("cpu"),
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(),
            np.geterr(),
        )

    with STATES[state]():
        before = settings()
        with pytest.raises(ZeroDivisionError), default_state():
            _ = 1 / 0
        assert settings() == before


def test_nested_and_parallel_computations_restore_default_dtype():
    inside, proceed = threading.Event(), threading.Event()

    def compute():
        with default_state():
            inside.set()
            proceed.wait(10)

    with STATES["default float64"]():
        thread = threading.Thread(target=compute)
        thread.start()
        inside.wait(10)
        with default_state(), default_state():
            assert torch.get_default_dtype() == torch.float32
        proceed.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("forks_within", [False, True])
def test_child_forked_during_computation_has_default_dtype_of_caller(forks_within):
    """The computation may run in another thread, which does not exist in the child."""
    inside, proceed = threading.Event(), threading.Event()

    def compute():
        with default_state():
            inside.set()
            proceed.wait(10)

    thread = threading.Thread(target=compute)
    child, status = 0, 1
    with STATES["default float64"]():
        try:
            if forks_within:
                with default_state():
                    child = os.fork()
            else:
                thread.start()
                inside.wait(10)
                child = os.fork()
            status = 0 if torch.get_default_dtype() == torch.float64 else 2
        finally:
            if child == 0:
                os._exit(status)
        proceed.set()
        if not forks_within:
            thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_precision_of_one_backend_is_not_changed():
    """torch raises if the global precision is read while backends have different ones."""
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this torch has no precision by backend")
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    try:
        with default_state():
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
