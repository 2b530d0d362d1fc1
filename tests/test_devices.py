"""resolve_device: a device that is not there is an error that names the remedy."""

import pytest
import torch

from sklearn_ape.devices import resolve_device


def test_auto_is_a_device_that_is_there():
    """ "auto" and None never fail, whatever the machine."""
    assert resolve_device("auto") == resolve_device(None)
    torch.zeros(1, device=resolve_device("auto"))


def test_named_devices():
    """Names and torch devices are taken as they are."""
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_no_cuda_names_auto(device, monkeypatch):
    """Without CUDA, device="cuda" says so before any work and names device="auto"."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"no CUDA device\. Use device='auto'"):
        resolve_device(device)


def test_no_mps_names_auto(monkeypatch):
    """The same for Apple's GPU."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"no MPS device\. Use device='auto'"):
        resolve_device("mps")


@pytest.mark.parametrize("device", ["gpu", "", 3.5, ["cpu"]])
def test_unknown_device(device):
    """A name that torch does not know is our error, which lists the names."""
    with pytest.raises(ValueError, match="device must be 'auto' or a device"):
        resolve_device(device)
