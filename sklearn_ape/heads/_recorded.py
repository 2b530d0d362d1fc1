"""Heads as plain data and arrays, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._caller_state import default_state
from ..persistence import State
from ._base import Head
from ._closed_form import BaseMap, ClosedFormHead, KernelMap, LinearMap, WhitenedMap
from ._linear import FrozenHead, LinearHead
from ._make import make_head

_MAPS: dict[str, type[BaseMap]] = {
    "kernel": KernelMap,
    "linear": LinearMap,
    "whitened": WhitenedMap,
}
_MATRICES = {"kernel": ("anchors", "coefficients"), "linear": ("weights",)}
_MATRICES["whitened"] = ("directions",)


def head_state(head: Head) -> dict[str, Any]:
    """Return a head as plain data and arrays, which `restored_head` takes.

    Parameters
    ----------
    head : Head
        What `make_head` returned, or a `ClosedFormHead`, on the CPU.

    Returns
    -------
    state : dict
        Of numbers, names and arrays.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import head_state, make_head, restored_head
    >>> from sklearn_ape.persistence import State
    >>> head = make_head("mlp", 4, 2, depth=2, width=8, dropout=0.0)
    >>> again = restored_head(State(head_state(head), "head"))
    >>> features = torch.randn(3, 4)
    >>> torch.equal(again(features), head(features))
    True
    """
    if isinstance(head, ClosedFormHead):
        kind = next(name for name, of in _MAPS.items() if type(head.base) is of)
        return {
            "kind": "closed_form",
            "base": {"kind": kind, **_arrays(head.base)},
            "residual": None if head.residual is None else head_state(head.residual),
            "scale": None if head.residual is None else float(head.scale),
        }
    made_of = head.made_of
    if made_of is None and isinstance(head, FrozenHead | LinearHead):
        is_linear = isinstance(head, LinearHead)
        made_of = {"kind": "linear" if is_linear else None, "depth": 1, "width": 1, "dropout": 0.0}
    if made_of is None:
        raise TypeError(f"A {type(head).__name__} that make_head did not make cannot be saved.")
    return {**made_of, "n_in": head.n_in, "n_out": head.n_out, "tensors": _arrays(head)}


@default_state()
def restored_head(state: State) -> Head:
    """Return the head that `head_state` described.

    Parameters
    ----------
    state : State
        As read from a file.

    Returns
    -------
    head : Head
        Equal to the bit.

    Raises
    ------
    ValueError
        When there is no such head; sizes are compared before memory is taken.
    """
    if state.peek("kind") == "closed_form":
        return _closed_form(state)
    head, tensors = _unfilled(state)
    fill(head, tensors)
    return head


def _unfilled(state: State) -> tuple[Head, State]:
    """Return a head without numbers, which takes no memory, and where they are."""
    tensors = state.part("tensors")
    shape: dict[str, Any] = {
        "kind": state.optional("kind"),
        "n_in": state.integer("n_in", 1, 2**31),
        "n_out": state.integer("n_out", 1, 2**31),
        # A layer has a tensor at least, so that no file asks for more layers than it fills.
        "depth": state.integer("depth", 1, most=1 + len(tensors)),
        "width": state.integer("width", 1, most=2**31),
        "dropout": state.number("dropout", above=-1e-9),
    }
    with torch.device("meta"):
        return make_head(**shape), tensors


def fill(module: nn.Module, tensors: State) -> None:
    """Give a module without numbers those of a file, once they are seen to fit."""
    found = {}
    for name, tensor in module.state_dict().items():
        kinds = "f" if tensor.dtype.is_floating_point else "i"
        found[name] = torch.tensor(tensors.array(name, tuple(tensor.shape), kinds))
        if found[name].dtype != tensor.dtype:
            raise ValueError(
                f"{tensors.where}.{name} must be of type {tensor.dtype}, not {found[name].dtype}."
            )
    module.load_state_dict(found, strict=True, assign=True)


def _closed_form(state: State) -> ClosedFormHead:
    state.value("kind")
    part = state.part("base")
    kind = part.text("kind")
    if kind not in _MAPS:
        raise ValueError(
            f"{part.where}.kind must be one of {', '.join(_MAPS)}, not {kind[:40]!r}."
        )
    buffers: dict[str, Any] = {
        name: _float32(part, name, (None, None)) for name in _MATRICES[kind]
    }
    if kind == "kernel":
        buffers["gamma"] = float(_float32(part, "gamma", ()))
    else:
        buffers["mean"] = _float32(part, "mean", (None,))
    base = _MAPS[kind](**buffers)
    if "residual" not in state:
        for nothing in ("residual", "scale"):
            state.optional(nothing)
        return ClosedFormHead(base)
    residual, tensors = _unfilled(state.part("residual"))
    head = ClosedFormHead(base, residual)  # which sets the residual to zero
    fill(residual, tensors)
    head.scale.fill_(state.number("scale", above=0))
    return head


def _float32(state: State, name: str, shape: tuple[int | None, ...]) -> Any:
    array = state.array(name, shape)
    if array.dtype.str != "<f4":
        raise ValueError(f"{state.where}.{name} must be of type float32, not {array.dtype}.")
    return array


def _arrays(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
