"""Where torch runs."""

from __future__ import annotations

import torch

__all__ = ["resolve_device"]


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device that a ``device`` parameter names; "auto" takes a GPU when there is one.

    Parameters
    ----------
    device : {"auto"}, str, torch.device or None
        None is "auto".

    Returns
    -------
    device : torch.device
        A device that is there.

    Raises
    ------
    ValueError
        When the device is unknown or not there.

    Examples
    --------
    >>> from sklearn_ape.devices import resolve_device
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device in (None, "auto"):
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be 'auto', 'cpu', 'cuda', 'cuda:0', 'mps', ..., not {device!r}."
        ) from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}, but torch sees no CUDA device. Use device='auto'.")
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device={device!r}, but torch sees no MPS device. Use device='auto'.")
    return resolved
