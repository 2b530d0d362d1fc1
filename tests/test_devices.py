"""`resolve_device`: available devices, and errors for unavailable ones."""

import pytest
import torch

from sklearn_ape.devices import resolve_device


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


def test_missing_mps_raises_with_auto_as_remedy(monkeypatch):
    """Without a GPU of Apple, device="mps" raises in the same way."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"no MPS device\. Use device='auto'"):
        resolve_device("mps")


@pytest.mark.parametrize("device", ["gpu", "", 3.5, ["cpu"]])
def test_unknown_device_raises(device):
    """The error lists the valid names."""
    with pytest.raises(ValueError, match="device must be 'auto' or a device"):
        resolve_device(device)
