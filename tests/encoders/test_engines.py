"""Engines: agreement with torch, precision, exports on disk and fallback to torch."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_sample_images

from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import (
    TimmImageEncoder,
    TransformersTextEncoder,
    _engine,
    _engine_factory,
    base,
    list_encoders,
    weights,
)
from sklearn_ape.encoders._engine import TorchEngine

OTHERS = ("openvino", "onnx")  # the first one is exported faster
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
        model = timm.create_model("test_resnet", pretrained=False, num_classes=3)
        timm.models.save_for_hf(model.eval(), str(folder), safe_serialization=True)
    return str(folder)


@pytest.fixture(autouse=True)
def _no_shared_engines():
    """Remove engines that other tests created."""
    weights.shared_networks.clear()


def exports(folder):
    return sorted(path for path in (Path(folder) / "engines").iterdir() if path.is_dir())


def cosine_distances(a, b):
    return 1 - (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.usefixtures("shared_exports")
def test_engine_features_equal_torch(engine, paths):
    """Features of images and texts, in batches of different sizes, equal torch's."""
    pytest.importorskip(_engine.PACKAGES[engine][0])
    for cls, items in ((TimmImageEncoder, paths), (TransformersTextEncoder, TEXTS)):
        encoder = cls(cache=None, engine="torch")
        expected = encoder.transform(items)
        encoder.set_params(engine=engine, batch_size=3)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            features = encoder.transform(items)
        assert encoder._get_engine(len(items)).name == engine
        assert cosine_distances(features, expected).max() < 1e-5
        np.testing.assert_allclose(features, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("engine", OTHERS)
def test_network_is_exported_once(engine, tiny, paths, tmp_path, monkeypatch):
    """Another process and another encoder of the network use the export."""
    pytest.importorskip(_engine.PACKAGES[engine][0])
    encoder = TimmImageEncoder(tiny, engine=engine, cache=tmp_path)
    expected = encoder.transform(paths)
    weights.shared_networks.clear()
    runtime = _engine_factory._RUNTIMES[engine][0]
    monkeypatch.setitem(_engine_factory._RUNTIMES, engine, (runtime, None))
    (tmp_path / "features.sqlite").unlink()
    np.testing.assert_array_equal(clone(encoder).transform(paths), expected)


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", OTHERS)
def test_damaged_export_is_replaced(engine, tiny, paths, tmp_path):
    """A flipped bit and a missing file are detected."""
    pytest.importorskip(_engine.PACKAGES[engine][0])
    encoder = TimmImageEncoder(tiny, engine=engine, cache=tmp_path)
    expected = encoder.transform(paths)
    for damage in ("bit", "gone"):
        weights.shared_networks.clear()
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
    pytest.importorskip(_engine.PACKAGES[engine][0])
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
        weights.shared_networks.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encoder.set_params(engine="auto", cache=tmp_path).transform(paths[2:5])
    assert len(tried) == 1
    assert not exports(tmp_path)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("engine", OTHERS)
def test_export_is_repeated_after_a_full_disk(engine, tiny, tmp_path, monkeypatch):
    """A full disk does not mean that the network cannot be exported."""
    pytest.importorskip(_engine.PACKAGES[engine][0])
    resource = pytest.importorskip("resource")
    # Python would cut the compiled modules of exporters off at the limit, without an error.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    encoder = TimmImageEncoder(tiny, cache=tmp_path, engine=engine, device="cpu")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.warns(RuntimeWarning, match="so torch computes it"):
            assert encoder._get_engine(300).name == "torch"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.rglob("*.failure.txt")) == []
    weights.shared_networks.clear()
    assert encoder._get_engine(300).name == engine


def test_error_without_a_full_disk_is_not_repeated(tiny, tmp_path, monkeypatch):
    """Exporters also raise OSError for networks whose source code is not available."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")

    def fails(*_, **__):
        raise OSError("could not get source code")

    monkeypatch.setattr(torch.onnx, "export", fails)
    encoder = TimmImageEncoder(tiny, cache=tmp_path, engine="onnx", device="cpu")
    with pytest.warns(RuntimeWarning, match="so torch computes it: .* could not get source"):
        assert encoder._get_engine(300).name == "torch"
    assert len(list(tmp_path.rglob("*.failure.txt"))) == 1


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
    assert encoder._get_engine(5).name == "openvino"


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_inaccessible_data_folder_is_tolerated(engine, tiny, paths, tmp_path, monkeypatch):
    """It is as the home of another user, but also for root: the system refuses its name."""
    pytest.importorskip("openvino")
    monkeypatch.setenv("SKLEARN_APE_DATA", str(tmp_path / ("x" * 300)))
    encoder = TimmImageEncoder(tiny, device="cpu", cache=None)
    expected = clone(encoder).set_params(engine="torch").transform(paths)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        features = encoder.set_params(engine=engine).transform(paths)
    np.testing.assert_allclose(features, expected, atol=1e-4)


@pytest.mark.parametrize("raises", [True, False])
def test_user_without_home_can_encode(raises, tiny, paths, tmp_path, monkeypatch):
    """Earlier versions of platformdirs return the ~ of a path that cannot be expanded."""

    def find_folder(name):
        if raises:
            raise RuntimeError("could not determine the home directory")
        return Path("~/.cache", name)

    encoder = TimmImageEncoder(tiny, cache=None)
    expected = encoder.transform(paths)
    monkeypatch.delenv("SKLEARN_APE_DATA", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_path", find_folder)
    monkeypatch.setattr("os.path.expanduser", os.fspath)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(encoder.transform(paths), expected)
    with pytest.raises(OSError, match="or set the environment variable SKLEARN_APE_DATA"):
        load_openmoji()
    assert list(tmp_path.iterdir()) == []


def test_openvino_is_imported_without_telemetry(tmp_path, monkeypatch):
    (tmp_path / "openvino_telemetry.py").touch()
    (tmp_path / "openvino.py").write_text(
        "try:\n    import openvino_telemetry\nexcept ImportError:\n    openvino_telemetry = None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("openvino", "openvino_telemetry"):
        monkeypatch.setitem(sys.modules, name, None)  # is restored at the end
        del sys.modules[name]
    assert _engine.import_openvino().openvino_telemetry is None
    import openvino_telemetry  # can be used by other packages

    assert Path(openvino_telemetry.__file__).parent == tmp_path


@pytest.mark.exhaustive
def test_export_of_a_text_network_prints_nothing(tmp_path, capfd):
    """transformers would report once per process that the loss of the network is not set."""
    pytest.importorskip("openvino")
    program = (
        "import sys; from sklearn_ape.encoders import TransformersTextEncoder as Encoder; "
        "encoder = Encoder(engine='openvino', cache=sys.argv[1], verbose=0); "
        "encoder.transform(['a cat']); print(encoder._get_engine(1).name)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)
    assert capfd.readouterr() == ("openvino\n", "")


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


@pytest.fixture
def bfloat16():
    """Skip a test on machines where OpenVINO does not compute in bfloat16."""
    pytest.importorskip("openvino")
    if "bfloat16" not in _engine._list_precisions("openvino"):
        pytest.skip("OpenVINO does not support bfloat16 on this processor")


class TestPrecision:
    @pytest.mark.parametrize(
        ("name", "pooling"),
        [
            ("efficientnet_lite0", "auto"),
            pytest.param("efficientnet_lite0", "gem", marks=pytest.mark.exhaustive),
            pytest.param("efficientnet_lite2", "gem", marks=pytest.mark.exhaustive),
        ],
    )
    def test_bfloat16_error_of_images_is_small(self, name, pooling, tmp_path, bfloat16):
        """Features are accepted without a warning, and kernels are rounded as intended.

        If all weights are rounded to the nearest number, the mean error is 7e-4 to 1.4e-3.
        """
        if not any(info.name == name and info.installed for info in list_encoders()):
            pytest.skip(f"{name} is not installed")
        items = load_openmoji().images[::40] + load_sample_images().images
        encoder = TimmImageEncoder(name, pooling=pooling, cache=None, engine="torch")
        expected = encoder.transform(items)
        encoder.set_params(cache=tmp_path, engine="openvino", dtype="bfloat16")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            errors = cosine_distances(encoder.transform(items), expected)
        assert 0 < errors.mean() < 6e-4
        assert errors.max() < 3e-3

    def test_bfloat16_error_of_texts_is_small(self, tmp_path, bfloat16):
        items = load_openmoji().captions[::10]
        encoder = TransformersTextEncoder(cache=None, engine="torch")
        expected = encoder.transform(items)
        encoder.set_params(cache=tmp_path, engine="openvino", dtype="bfloat16")
        errors = cosine_distances(encoder.transform(items), expected)
        assert 0 < errors.mean() < errors.max() < 1e-4

    def test_kernels_are_rounded_without_a_change_of_their_sums(self):
        """All weights are bfloat16, and the sums differ by less than with nearest rounding."""
        exact = np.random.default_rng(0).normal(size=(64, 1, 1, 5, 5)).astype(np.float32)
        rounded = _engine._round_kernels(exact)
        nearest = torch.from_numpy(exact).bfloat16().float().numpy()
        np.testing.assert_array_equal(torch.from_numpy(rounded).bfloat16().float(), rounded)
        error, nearest_error = (
            np.abs((x.astype(float) - exact).sum(axis=(-2, -1))).mean() for x in (rounded, nearest)
        )
        assert error < nearest_error / 20
        # A weight is at most as wrong as with nearest rounding of a number of the next power of 2.
        assert (np.abs(rounded - exact) <= 2.0**-7 * np.abs(exact).max()).all()

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("engine", ["openvino", "auto"])
    def test_refused_precision_falls_back_to_float32(
        self, engine, tiny, paths, tmp_path, monkeypatch
    ):
        """The same engine computes in float32, in this process and in later ones."""
        pytest.importorskip("openvino")
        monkeypatch.setattr(_engine, "_list_precisions", lambda _: ("float32", "bfloat16"))
        exact = TimmImageEncoder(tiny, engine="openvino", cache=None)
        expected = exact.transform(paths)
        monkeypatch.setitem(_engine_factory._TOLERANCE, "bfloat16", -1)
        encoder = clone(exact).set_params(dtype="bfloat16", engine=engine, cache=tmp_path)
        encoder.set_params(device="cpu")
        for _ in range(2):  # the second engine is that of a later process
            weights.shared_networks.clear()
            (tmp_path / "features.sqlite").unlink(missing_ok=True)
            with pytest.warns(
                RuntimeWarning, match=r"engine='openvino', which .* in float32: its"
            ):
                features = encoder.transform(paths)
            assert encoder._get_engine(len(paths)).name == "openvino"
            np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)

    def test_auto_is_bfloat16_where_it_is_fast(self, tiny, monkeypatch):
        """The cache key is that of the precision that is chosen."""
        pytest.importorskip("openvino")
        monkeypatch.setattr(_engine, "_list_precisions", lambda _: ("float32", "bfloat16"))
        for cls in (TimmImageEncoder, TransformersTextEncoder):
            encoder = cls(dtype="auto", device="cpu", engine="openvino")
            for is_fast, dtype in ((True, "bfloat16"), (False, "float32")):
                monkeypatch.setattr(_engine, "has_fast_bfloat16", lambda x=is_fast: x)
                assert encoder.dtype_ == dtype
                chosen = clone(encoder).set_params(dtype=dtype)
                assert encoder._digest_identity() == chosen._digest_identity()
                assert encoder._get_parts_of_digest() == chosen._get_parts_of_digest()
            monkeypatch.setattr(_engine, "has_fast_bfloat16", lambda: True)
            for other in ("torch", "onnx"):
                assert clone(encoder).set_params(engine=other).dtype_ == "float32"

    def test_version_changes_key_of_low_precision_only(self, tiny, monkeypatch):
        """Features that earlier versions cached in bfloat16 are not used."""
        exact = TimmImageEncoder(tiny, engine="torch")
        low = clone(exact).set_params(dtype="bfloat16")
        digests = [encoder._digest_identity() for encoder in (exact, low)]
        monkeypatch.setattr(base, "_LOW_PRECISION_VERSION", 1)
        assert exact._digest_identity() == digests[0]
        assert low._digest_identity() != digests[1]

    @pytest.mark.parametrize("pooling", ["auto", "mean", "gem"])
    def test_torch_pools_in_float32(self, tiny, paths, pooling):
        """Pooled features of a network in bfloat16 are not rounded to bfloat16."""
        encoder = TimmImageEncoder(
            tiny, pooling=pooling, engine="torch", dtype="bfloat16", cache=None
        )
        features = torch.from_numpy(encoder.transform(paths))
        assert (features.bfloat16().float() != features).double().mean() > 0.5


class TestChoice:
    def test_missing_package_raises(self, tiny, paths, monkeypatch):
        monkeypatch.setattr(_engine, "find_spec", lambda _: None)
        for engine in OTHERS:
            with pytest.raises(ImportError, match=rf"pip install 'sklearn-ape\[{engine}\]'"):
                TimmImageEncoder(tiny, engine=engine).fit(paths)
        assert TimmImageEncoder(tiny, device="cpu")._resolve_engine_name() == "torch"

    def test_unsupported_device_or_precision_raises(self, tiny, paths, monkeypatch):
        pytest.importorskip("onnxruntime")
        with pytest.raises(ValueError, match=r"engine='onnx' does not compute in bfloat16"):
            TimmImageEncoder(tiny, engine="onnx", dtype="bfloat16").fit(paths)
        monkeypatch.setattr(base, "resolve_device", torch.device)  # without a GPU
        with pytest.raises(ValueError, match=r"computes on the CPU, but device is 'cuda'"):
            TimmImageEncoder(tiny, engine="onnx", device="cuda").fit(paths)
        monkeypatch.undo()
        with pytest.raises(ValueError, match="engine must be one of auto, torch, onnx, openvino"):
            TimmImageEncoder(tiny, engine="tensorrt").fit(paths)

    @pytest.mark.exhaustive
    def test_low_precision_and_engine_change_cache_key(self, tiny, paths, tmp_path):
        """Low-precision features have their own keys per engine; float32 features share one."""
        pytest.importorskip("openvino")
        exact = TimmImageEncoder(tiny, cache=tmp_path, engine="torch")
        low = clone(exact).set_params(dtype="bfloat16")
        assert exact._digest_identity() != low._digest_identity()
        assert clone(exact).set_params(engine="openvino")._digest_identity() == (
            exact._digest_identity()
        )
        if "bfloat16" in _engine._list_precisions("openvino"):
            other = clone(low).set_params(engine="openvino")
            assert other._digest_identity() != low._digest_identity()
            assert cosine_distances(other.transform(paths), exact.transform(paths)).max() < 0.05


class TestTorch:
    def test_each_core_computes_a_batch(self, paths, monkeypatch):
        threads = []
        call = TorchEngine.__call__

        def compute(engine, inputs):
            threads.append((threading.current_thread(), torch.get_num_threads()))
            return call(engine, inputs)

        monkeypatch.setattr(TorchEngine, "__call__", compute)
        TimmImageEncoder(engine="torch", device="cpu", n_jobs=3, cache=None).transform(paths)
        assert len(threads) == len(paths)
        assert 1 < len({thread for thread, _ in threads}) <= 3
        assert {n_threads for _, n_threads in threads} == {1}

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
