"""Engines: agreement with torch, exports on disk and fallback to torch."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import (
    TimmImageEncoder,
    TransformersTextEncoder,
    _engine,
    _engine_factory,
    weights,
)
from sklearn_ape.encoders._engine import TorchEngine

OTHERS = ("onnx", "openvino")
TEXTS = ["a cat", "a photograph of two dogs on a beach", "rain " * 90, "x", "a red umbrella"]


@pytest.fixture(scope="module")
def paths():
    return load_openmoji().images[200:211]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return a folder with a small network, which is exported quickly."""
    timm = pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("resnet10t", pretrained=False, num_classes=3)
        timm.models.save_for_hf(model.eval(), str(folder), safe_serialization=True)
    return str(folder)


@pytest.fixture(autouse=True)
def _no_shared_engines():
    """Remove engines that other tests created."""
    weights._networks.clear()


def exports(folder):
    return sorted(path for path in (Path(folder) / "engines").iterdir() if path.is_dir())


def cosine_distances(a, b):
    return 1 - (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("engine", OTHERS)
def test_engine_features_equal_torch(engine, paths, tmp_path):
    """Features of images and texts, in batches of different sizes, equal torch's."""
    pytest.importorskip(_engine._PACKAGES[engine][0])
    for encoder, items in ((TimmImageEncoder(), paths), (TransformersTextEncoder(), TEXTS)):
        encoder.set_params(cache=tmp_path / "by torch", engine="torch")
        expected = encoder.transform(items)
        encoder.set_params(cache=tmp_path / engine, engine=engine, batch_size=3)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            features = encoder.transform(items)
        assert encoder._engine(len(items)).name == engine
        assert cosine_distances(features, expected).max() < 1e-5
        np.testing.assert_allclose(features, expected, atol=1e-4 * np.abs(expected).max())
    assert len(exports(tmp_path / engine)) == 2


@pytest.mark.parametrize("engine", OTHERS)
def test_network_is_exported_once(engine, tiny, paths, tmp_path, monkeypatch):
    """Another process and another encoder of the network use the export."""
    pytest.importorskip(_engine._PACKAGES[engine][0])
    encoder = TimmImageEncoder(tiny, engine=engine, cache=tmp_path)
    expected = encoder.transform(paths)
    weights._networks.clear()
    runtime = _engine_factory._RUNTIMES[engine][0]
    monkeypatch.setitem(_engine_factory._RUNTIMES, engine, (runtime, None))
    (tmp_path / "features.sqlite").unlink()
    np.testing.assert_array_equal(clone(encoder).transform(paths), expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", OTHERS)
def test_damaged_export_is_replaced(engine, tiny, paths, tmp_path):
    """A flipped bit and a missing file are detected."""
    pytest.importorskip(_engine._PACKAGES[engine][0])
    encoder = TimmImageEncoder(tiny, engine=engine, cache=tmp_path)
    expected = encoder.transform(paths)
    for damage in ("bit", "gone"):
        weights._networks.clear()
        (folder,) = exports(tmp_path)
        file = max(folder.iterdir(), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        if damage == "gone":
            file.unlink()
        else:
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        (tmp_path / "features.sqlite").unlink()
        with pytest.warns(RuntimeWarning, match=r"damaged .* exported again"):
            features = encoder.transform(paths)
        np.testing.assert_array_equal(features, expected)


def test_wrong_export_is_rejected(tiny, paths, tmp_path, monkeypatch):
    """An export with other features than torch is not used."""
    pytest.importorskip("openvino")
    runtime = _engine_factory._RUNTIMES["openvino"][0]
    call = runtime.__call__
    monkeypatch.setattr(runtime, "__call__", lambda self, inputs: call(self, inputs)[:, ::-1])
    expected = TimmImageEncoder(tiny, engine="torch", cache=None).transform(paths)
    encoder = TimmImageEncoder(tiny, engine="openvino", cache=tmp_path)
    with pytest.warns(
        RuntimeWarning, match=r"so torch computes it: its features differ from torch's by"
    ):
        features = encoder.transform(paths)
    np.testing.assert_allclose(features, expected, atol=1e-6)
    assert not exports(tmp_path)


@pytest.mark.parametrize("engine", OTHERS)
def test_failed_export_falls_back_to_torch(engine, tiny, paths, tmp_path, monkeypatch):
    """A named engine warns each time; "auto" is silent and tries once."""
    pytest.importorskip(_engine._PACKAGES[engine][0])
    tried = []

    def fails(workload, folder):
        tried.append(folder)
        raise _engine.EngineError("no such operation\nand a long report")

    runtime = _engine_factory._RUNTIMES[engine][0]
    monkeypatch.setitem(_engine_factory._RUNTIMES, engine, (runtime, fails))
    monkeypatch.setattr("sklearn_ape.encoders.base.choose_engine", lambda *_: engine)
    encoder = TimmImageEncoder(tiny, engine=engine, cache=tmp_path)
    with pytest.warns(RuntimeWarning, match=f"engine='{engine}' .* so torch computes it: no such"):
        encoder.transform(paths[:2])
    monkeypatch.setattr(TimmImageEncoder, "_min_items_to_export", 1)
    for _ in range(2):
        weights._networks.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encoder.set_params(engine="auto", cache=tmp_path).transform(paths[2:5])
    assert len(tried) == 1
    assert not exports(tmp_path)


def test_network_error_is_raised_unchanged(tmp_path, paths):
    """An error of the network itself is not attributed to the engine."""
    pytest.importorskip("openvino")
    encoder = TimmImageEncoder(pooling="cls", engine="openvino", cache=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="pooling='cls' needs a network with a class token"):
            encoder.transform(paths)


@pytest.mark.exhaustive
def test_unwritable_export_folder_is_tolerated(tiny, paths, tmp_path):
    """The export is used by this process only."""
    pytest.importorskip("openvino")
    (tmp_path / "engines").write_text("in the way")
    encoder = TimmImageEncoder(tiny, engine="openvino", cache=tmp_path)
    expected = TimmImageEncoder(tiny, engine="torch", cache=None).transform(paths)
    np.testing.assert_allclose(encoder.transform(paths), expected, atol=1e-4)
    assert encoder._engine(5).name == "openvino"


@pytest.mark.exhaustive
def test_auto_exports_only_for_many_items(tiny, paths, tmp_path, monkeypatch):
    """A few images are computed by torch without an export."""
    pytest.importorskip("openvino")
    encoder = TimmImageEncoder(tiny, cache=tmp_path, device="cpu")
    encoder.transform(paths)
    assert not (tmp_path / "engines").exists()
    monkeypatch.setattr(TimmImageEncoder, "_min_items_to_export", 5)
    (tmp_path / "features.sqlite").unlink()
    encoder.transform(paths)
    assert [path.name.partition("-")[0] for path in exports(tmp_path)] == ["openvino"]


class TestChoice:
    def test_missing_package_raises(self, tiny, paths, monkeypatch):
        """The message has the install command."""
        monkeypatch.setattr(_engine, "find_spec", lambda _: None)
        for engine in OTHERS:
            with pytest.raises(ImportError, match=rf"pip install 'sklearn-ape\[{engine}\]'"):
                TimmImageEncoder(tiny, engine=engine).fit(paths)
        assert TimmImageEncoder(tiny, device="cpu")._engine_name() == "torch"

    def test_unsupported_device_or_precision_raises(self, tiny, paths):
        pytest.importorskip("onnxruntime")
        with pytest.raises(ValueError, match=r"engine='onnx' does not compute in bfloat16"):
            TimmImageEncoder(tiny, engine="onnx", dtype="bfloat16").fit(paths)
        with pytest.raises(ValueError, match=r"computes on the CPU, but device is 'meta'"):
            TimmImageEncoder(tiny, engine="onnx", device="meta").fit(paths)
        with pytest.raises(ValueError, match="engine must be one of auto, torch, onnx, openvino"):
            TimmImageEncoder(tiny, engine="tensorrt").fit(paths)

    @pytest.mark.exhaustive
    def test_low_precision_and_engine_change_cache_key(self, tiny, paths, tmp_path):
        """Low-precision features have their own keys per engine; float32 features share one."""
        pytest.importorskip("openvino")
        exact = TimmImageEncoder(tiny, cache=tmp_path, engine="torch")
        low = clone(exact).set_params(dtype="bfloat16")
        assert exact._identity_digest() != low._identity_digest()
        assert clone(exact).set_params(engine="openvino")._identity_digest() == (
            exact._identity_digest()
        )
        if "bfloat16" in _engine._list_precisions("openvino"):
            other = clone(low).set_params(engine="openvino")
            assert other._identity_digest() != low._identity_digest()
            assert cosine_distances(other.transform(paths), exact.transform(paths)).max() < 0.05


class TestTorch:
    def test_batch_is_halved_when_gpu_memory_is_full(self, monkeypatch):
        """Simulates a GPU with memory for three items; later batches use the smaller size."""
        sizes = []

        class Module(torch.nn.Module):
            def forward(self, x):
                sizes.append(len(x))
                if len(x) > 3:
                    raise torch.OutOfMemoryError
                return 2 * x

        workload = _engine.Workload(
            Module(), list, "", torch.device("cpu"), "float32", 1, Path("unused")
        )
        engine = TorchEngine(workload)
        x = torch.arange(10.0)[:, None]
        for _ in range(2):
            np.testing.assert_array_equal(engine((x,)), 2 * x.numpy())
        assert sizes == [10, 5, 3, 3, 3, 1, 3, 3, 3, 1]

    def test_single_item_beyond_memory_raises(self):
        class Module(torch.nn.Module):
            def forward(self, x):
                raise torch.OutOfMemoryError("no room")

        workload = _engine.Workload(
            Module(), list, "", torch.device("cpu"), "float32", 1, Path("unused")
        )
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            TorchEngine(workload)((torch.ones(4, 1),))

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
    def test_large_allocations_are_reused(self):
        """The memory of a large tensor is reused instead of mapped again."""
        import resource

        _engine._keep_large_allocations()
        for _ in range(3):
            torch.ones(25_000_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(25_000_000)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        assert after - before < 5 * 25_000_000 * 4 / 4096 / 4
