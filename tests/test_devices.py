"""Available devices, errors for unavailable ones, and instructions of the processor."""

from pathlib import Path

import pytest
import torch

from sklearn_ape.devices import has_fast_bfloat16, resolve_device


def test_auto_gives_available_device():
    """ "auto" and None do not raise on any machine."""
    assert resolve_device("auto") == resolve_device(None)
    torch.zeros(1, device=resolve_device("auto"))


def test_named_device_is_returned():
    """Names and `torch.device` objects are returned unchanged."""
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_missing_cuda_raises_with_auto_as_remedy(device, monkeypatch):
    """Without CUDA, device="cuda" raises before any work, and the error suggests "auto"."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"no CUDA device\. Use device='auto'"):
        resolve_device(device)


@pytest.mark.parametrize(("device", "backend"), [("mps", torch.backends.mps), ("xpu", torch.xpu)])
def test_missing_gpu_of_apple_or_intel_raises(device, backend, monkeypatch):
    monkeypatch.setattr(backend, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"no {device.upper()} device\. Use device='auto'"):
        resolve_device(device)


@pytest.mark.parametrize(("device", "backend"), [("cuda", torch.cuda), ("xpu", torch.xpu)])
def test_missing_gpu_of_several_raises(device, backend, monkeypatch):
    """The error of torch during the work names neither the parameter nor the valid devices."""
    monkeypatch.setattr(backend, "is_available", lambda: True)
    monkeypatch.setattr(backend, "device_count", lambda: 2)
    assert resolve_device(f"{device}:1").index == 1
    with pytest.raises(ValueError, match=rf"device='{device}:7' .* is '{device}:1'\. Use it, or"):
        resolve_device(f"{device}:7")


@pytest.mark.parametrize("device", ["gpu", "", 3.5, ["cpu"], "meta", torch.device("meta")])
def test_unknown_device_raises(device):
    """The error lists the valid names."""
    with pytest.raises(ValueError, match="device must be 'auto' or a device"):
        resolve_device(device)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu sse2 avx512f amx_bf16", True), ("avx512_bf16", False), ("avx2 avx512f", False)],
)
def test_processors_list_instructions_for_bfloat16(monkeypatch, flags, expected):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags : {flags}")
    assert has_fast_bfloat16.__wrapped__() is expected


def test_processor_without_list_of_flags_has_no_bfloat16(monkeypatch):
    """Other operating systems do not have the file."""

    def raises(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", raises)
    assert not has_fast_bfloat16.__wrapped__()
