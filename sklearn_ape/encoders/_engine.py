"""Engines that compute a frozen network, with torch, ONNX Runtime or OpenVINO."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

import numpy as np
import torch

from ..devices import has_fast_bfloat16
from ..utils.concurrency import at_fork, never_destroy

ENGINES = ("auto", "torch", "onnx", "openvino")
# Packages that an engine needs, beginning with the one that computes.
PACKAGES = {"onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino",)}
# Names of the precisions in OpenVINO's options and in its list of capabilities.
_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_CAPABILITIES = {"BF16": "bfloat16", "FP16": "float16"}
Inputs = tuple[torch.Tensor, ...]


class EngineError(RuntimeError):
    """A network cannot be exported, or its export does not give the right features."""


class WrongFeaturesError(EngineError):
    """The features of an export differ from torch's."""


class Engine(Protocol):
    """Protocol of objects that compute features of batches.

    A `concurrent` engine uses one core per call and is called by several threads. Any other
    engine uses all cores for one call at a time.
    """

    name: str
    concurrent: bool

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """Return the features of a batch, (n_items, n_features) of float32."""


class Workload(NamedTuple):
    """A network and the options that an engine needs to compute it.

    The examples are inputs of several shapes, used to trace the network and to compare an export
    with torch. The key is a unique name of the network with its weights.
    """

    module: torch.nn.Module
    examples: Callable[[], list[Inputs]]
    key: str
    device: torch.device
    dtype: str
    n_threads: int
    folder: Path


def choose_engine(engine: str, device: torch.device, dtype: str) -> str:
    """Return "torch", "onnx" or "openvino" for a value of the parameter ``engine``.

    ``"auto"`` means the fastest installed engine on a CPU, and torch on a GPU. ImportError is
    raised if the package is not installed, ValueError for an unsupported device or precision.
    """
    if engine == "torch":
        return engine
    if engine == "auto":
        names = (name for name in ("openvino", "onnx") if not _find_obstacle(name, device, dtype))
        return next(names, "torch")
    obstacle = _find_obstacle(engine, device, dtype)
    if obstacle is not None:
        raise obstacle
    return engine


def choose_dtype(engine: str, device: torch.device) -> str:
    """Return the precision that ``dtype="auto"`` means.

    It is bfloat16 if OpenVINO computes on a processor that is fast in it, else float32.
    """
    is_fast = (
        engine in ("auto", "openvino")
        and has_fast_bfloat16()
        and _find_obstacle("openvino", device, "bfloat16") is None
    )
    return "bfloat16" if is_fast else "float32"


def _find_obstacle(engine: str, device: torch.device, dtype: str) -> Exception | None:
    """Return why an engine other than torch cannot be used, as an exception, or None."""
    if device.type != "cpu":
        return ValueError(
            f"engine={engine!r} computes on the CPU, but device is {str(device)!r}. Pass "
            "device='cpu' or engine='torch'."
        )
    # Every engine computes in float32. Asking OpenVINO for its precisions is slow.
    if dtype != "float32" and dtype not in _list_precisions(engine):
        return ValueError(
            f"engine={engine!r} does not compute in {dtype} on this machine. Pass "
            "dtype='float32' or engine='torch'."
        )
    missing = [package for package in PACKAGES[engine] if find_spec(package) is None]
    if missing:
        return ImportError(
            f"engine={engine!r} needs the package {' and '.join(missing)}. Run "
            f"pip install 'sklearn-ape[{engine}]', or pass engine='auto'."
        )
    return None


@lru_cache
def _list_precisions(engine: str) -> tuple[str, ...]:
    """Return the precisions in which an engine other than torch computes on this machine."""
    if engine == "onnx" or find_spec("openvino") is None:
        return ("float32",)
    capabilities = _get_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("float32", *(dtype for name, dtype in _CAPABILITIES.items() if name in capabilities))


# Numbers of the options in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Freed blocks of memory up to this size, in bytes, stay with the process.
_MAX_RETAINED = 2**30


class TorchEngine:
    """Engine that computes a network with torch, concurrently on a CPU.

    Batches are copied to a GPU asynchronously from pinned memory. A batch that does not fit into
    the GPU's memory is halved, and the smaller size is used for all later batches.
    """

    name = "torch"
    _max_items = sys.maxsize  # of a batch

    def __init__(self, workload: Workload) -> None:
        self.module = workload.module
        self.device = workload.device
        self.concurrent = self.device.type == "cpu"
        self.dtype = workload.dtype
        if self.concurrent:
            _keep_large_allocations()

    def __call__(self, inputs: Inputs) -> np.ndarray:
        n_items = len(inputs[0])
        size = min(n_items, self._max_items)
        while True:
            try:
                starts = range(0, n_items, size)
                parts = [self._compute(tuple(x[s : s + size] for x in inputs)) for s in starts]
                return np.concatenate(parts) if len(parts) > 1 else parts[0]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = self._max_items = (size + 1) // 2
                torch.cuda.empty_cache()

    def _compute(self, inputs: Inputs) -> np.ndarray:
        with torch.inference_mode(), self._autocast():
            return self.module(*(self._to_device(x) for x in inputs)).float().cpu().numpy()

    def _autocast(self) -> Any:
        """Return the context in which the network computes in `dtype`."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.dtype))

    def _to_device(self, x: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            x = x.pin_memory()
        return x.to(self.device, non_blocking=True)


@lru_cache(maxsize=1)
def _keep_large_allocations() -> None:
    """Configure glibc to reuse the memory of large tensors instead of mapping it for each one.

    The kernel sets mapped memory to zero page by page. For batches of 32 images that takes longer
    than the network itself.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl does not have it
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAX_RETAINED)
        mallopt(_M_TRIM_THRESHOLD, _MAX_RETAINED)


# Activations that oneDNN can compute together with a convolution: name and parameters.
JOINT_ACTIVATIONS: dict[type[torch.nn.Module], tuple[str, list[float]]] = {
    torch.nn.Identity: ("none", []),
    torch.nn.ReLU: ("relu", []),
    torch.nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    torch.nn.SiLU: ("swish", []),
    torch.nn.Hardswish: ("hardswish", []),
}


class FusedConv(torch.nn.Module):
    """A convolution and an activation that a CPU computes in one pass.

    On x86 processors, oneDNN computes them, without gradients, with the operator that compiled
    models of torch use. The other operators copy the input of 1x1 convolutions in small batches,
    and read the output again for the activation.

    The padding "same" of TensorFlow may need one more row at the bottom, or column at the right,
    than at the other end, for which `Conv2dSame` of timm copies the input. With a row of zeros at
    the top of the kernel, both ends get the same padding, for inputs of one size.
    """

    kernel: torch.Tensor

    def __init__(self, conv: Any, activation: torch.nn.Module, size: torch.Size) -> None:
        super().__init__()
        self.conv, self.activation = conv, activation
        self.size: torch.Size | None = None
        self.padding, kernel = conv.padding, conv.weight.detach()
        if type(conv) is not torch.nn.Conv2d:
            from timm.layers import get_same_padding

            self.size = size
            parts = zip(size, conv.kernel_size, conv.stride, conv.dilation, strict=True)
            pads = [get_same_padding(*part) for part in parts]
            self.padding = tuple((n + 1) // 2 for n in pads)
            kernel = torch.nn.functional.pad(kernel, (pads[1] % 2, 0, pads[0] % 2, 0))
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Exported networks do not need it.
        is_exported = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if is_exported or (self.size is not None and x.shape[2:] != self.size):
            return self.activation(self.conv(x))
        conv, is_cast = self.conv, torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if is_cast else x.dtype
        if torch.is_grad_enabled() or not _has_joint_operator(dtype):
            options = (conv.bias, conv.stride, self.padding, conv.dilation, conv.groups)
            return self.activation(torch.nn.functional.conv2d(x, self.kernel, *options))
        kernel = self.kernel if dtype == torch.float32 else self.bfloat16_kernel
        options = (conv.bias, self.padding, conv.stride, conv.dilation, conv.groups)
        activation = (*JOINT_ACTIVATIONS[type(self.activation)], "")
        convolve = torch.ops.mkldnn._convolution_pointwise
        return convolve(x.to(dtype), kernel, *options, *activation)

    @cached_property
    def bfloat16_kernel(self) -> torch.Tensor:
        rounded = torch.from_numpy(_round_kernels(self.kernel.float().numpy()))
        return rounded.to(torch.bfloat16, memory_format=torch.channels_last)


@lru_cache
def _has_joint_operator(dtype: torch.dtype) -> bool:
    """Return whether oneDNN computes convolutions in a precision on this processor."""
    is_x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if dtype == torch.float32:
        return is_x86 and torch.backends.mkldnn.is_available()
    return is_x86 and dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


ONNX_FILE = "model.onnx"


class OnnxEngine:
    """Engine of the export in a folder with ONNX Runtime, in float32 on the CPU."""

    name = "onnx"
    concurrent = True

    def __init__(self, workload: Workload, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # one core per calling thread
        options.log_severity_level = 3  # errors only
        try:
            self._session = onnxruntime.InferenceSession(
                folder / ONNX_FILE, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common base class
            raise EngineError(f"ONNX Runtime cannot load the network: {error}") from error
        self._names = [node.name for node in self._session.get_inputs()]

    def __call__(self, inputs: Inputs) -> np.ndarray:
        named = zip(self._names, (x.numpy() for x in inputs), strict=True)
        return self._session.run(None, dict(named))[0]


OPENVINO_FILE = "model.xml"
# All engines of the process, which a forked child must not destroy.
_engines: WeakSet[OpenVINOEngine] = WeakSet()


class OpenVINOEngine:
    """Engine of the export in a folder with OpenVINO on the CPU, one stream per core."""

    name = "openvino"
    concurrent = True

    def __init__(self, workload: Workload, folder: Path) -> None:
        try:
            model = _get_core().read_model(folder / OPENVINO_FILE)
            if workload.dtype == "bfloat16":
                _round_depthwise_weights(model)
            compiled = _get_core().compile_model(
                model,
                "CPU",
                {
                    # Streams do not share threads, so threads that decode images do not wait
                    # for them.
                    "NUM_STREAMS": str(workload.n_threads),
                    "INFERENCE_NUM_THREADS": workload.n_threads,
                    "ENABLE_CPU_PINNING": False,
                    "INFERENCE_PRECISION_HINT": _HINTS[workload.dtype],
                },
            )
            self._requests: SimpleQueue[Any] = SimpleQueue()
            for _ in range(workload.n_threads):
                self._requests.put(compiled.create_infer_request())
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot load the network: {error}") from error
        _engines.add(self)

    def __call__(self, inputs: Inputs) -> np.ndarray:
        request = self._requests.get()
        try:
            arrays = [np.ascontiguousarray(x.numpy()) for x in inputs]
            return np.array(request.infer(arrays, share_inputs=True)[0], dtype=np.float32)
        finally:
            self._requests.put(request)


def _round_depthwise_weights(model: Any) -> None:
    """Round the kernels of grouped convolutions to bfloat16 without changing their sums.

    The few weights of a depthwise kernel multiply similar, mostly positive values. If each weight
    is rounded to the nearest number, the sum of a kernel changes, and this error of whole channels
    is most of the error of a network in bfloat16.
    """
    from openvino import op

    for node in model.get_ops():
        if node.get_type_name() == "GroupConvolution":
            constant = node.input_value(1).get_node()
            if constant.get_type_name() == "Constant":
                rounded = op.Constant(_round_kernels(constant.data))
                node.input(1).replace_source_output(rounded.output(0))


def _round_kernels(weights: np.ndarray) -> np.ndarray:
    """Round weights, (..., height, width), to bfloat16 and keep the sum of each kernel.

    The error of each weight is added to the next smaller one of its kernel, so that only the
    error of the smallest one remains.
    """
    kernels = weights.reshape(-1, weights.shape[-2] * weights.shape[-1]).astype(np.float64)
    order = np.argsort(-np.abs(kernels), axis=1)
    descending = np.take_along_axis(kernels, order, axis=1)
    error = np.zeros(len(kernels))
    for column in descending.T:
        exact = column + error
        column[:] = torch.from_numpy(exact).to(torch.bfloat16).double().numpy()
        error = exact - column
    np.put_along_axis(kernels, order, descending, axis=1)
    return kernels.reshape(weights.shape).astype(np.float32)


def import_openvino() -> Any:
    """Import OpenVINO without `openvino_telemetry`, whose absence it supports.

    It would send usage data when it is imported and at each conversion, each time from a fork of
    this process, for which all engines stop. If other code has imported either before, it does.
    """
    if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # import raises
        try:
            import openvino
        finally:
            sys.modules.pop("openvino_telemetry", None)  # another thread may be first
    import openvino

    return openvino


@lru_cache(maxsize=1)
def _get_core() -> Any:
    core = import_openvino().Core()
    # Reading a truncated file that is mapped into memory would crash the process.
    core.set_property({"ENABLE_MMAP": False})
    return core


def _abandon_engines() -> None:
    # The threads of engines and core do not exist in a child process, and their destructors would
    # wait for them forever. The child compiles its own engines.
    for engine in list(_engines):
        never_destroy(engine)
    _engines.clear()
    if _get_core.cache_info().currsize:
        never_destroy(_get_core())
        _get_core.cache_clear()


at_fork(after_in_child=_abandon_engines)
