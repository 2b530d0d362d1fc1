"""Make heads from parameters, and from the state of a file."""

from __future__ import annotations

import re
from numbers import Integral
from typing import Any

import torch
from torch import nn

from ..persistence import FittedState
from ..utils.torch_state import default_state
from ._base import FrozenHead, Head, LinearHead
from ._closed_form import BaseMap, ClosedFormHead, KernelMap, LinearMap, WhitenedMap
from ._mlp import BatchNormMLPHead, GLUHead, MLPHead, ResidualHead, SkipMLPHead, StarHead

_DEEP: dict[str, type[MLPHead | ResidualHead | SkipMLPHead]] = {
    "mlp": MLPHead,
    "batchnorm_mlp": BatchNormMLPHead,
    "residual": ResidualHead,
    "glu": GLUHead,
    "skip_mlp": SkipMLPHead,
}


HEAD_KINDS = ("linear", *_DEEP, "star")


def hidden_width(width: int | str, n_in: int) -> int:
    """Return the units of a hidden layer.

    Parameters
    ----------
    width : int or str
        A number of units, or a multiple of the features' width such as ``"4x"`` or ``"0.5x"``:
        the two sides' features differ in width, and so then do their heads.
    n_in : int
        Width of the features.

    Returns
    -------
    width : int
        At least 1.

    Raises
    ------
    ValueError
        When it is neither.

    Examples
    --------
    >>> from sklearn_ape.heads import hidden_width
    >>> hidden_width(2048, 384), hidden_width("4x", 384)
    (2048, 1536)
    """
    if isinstance(width, str):
        multiple = re.fullmatch(r"(\d+(?:\.\d+)?)x", width)
        if multiple and float(multiple[1]) > 0:
            return max(1, round(float(multiple[1]) * n_in))
    elif isinstance(width, Integral) and not isinstance(width, bool) and width >= 1:
        return int(width)
    raise ValueError(
        f"width must be an integer >= 1, or a multiple of the features' width such as '4x', not "
        f"{width!r}."
    )


def make_head(
    kind: str | None, n_in: int, n_out: int, *, depth: int, width: int | str, dropout: float
) -> Head:
    """Return a head by name; None trains nothing.

    Parameters
    ----------
    kind : str or None
        One of `HEAD_KINDS`:

        - ``"linear"``: `LinearHead`; it has no use for depth, width and dropout.
        - ``"mlp"``: `MLPHead`, of `depth` linear layers.
        - ``"batchnorm_mlp"``: `BatchNormMLPHead`, of `depth` linear layers (ShareLock).
        - ``"residual"``: `ResidualHead`, of ``depth // 2`` blocks and a projection, so that an
          even depth is the same as the next odd one; depth 1 has no block (FuseMix).
        - ``"glu"``: `GLUHead`, of ``depth // 2`` blocks and a projection.
        - ``"skip_mlp"``: `SkipMLPHead`, of one projector and, from depth 4,
          ``depth // 2 - 1`` residual MLPs (Freeze-Align).
        - ``"star"``: `StarHead`; it has no use for depth (SAIL).
        - None: `FrozenHead`; it has no use for depth, width and dropout.

        ``"star"`` and ``"skip_mlp"`` begin with their own layer norm, all others by standardising
        the features.
    n_in, n_out : int
        Widths of features and embeddings.
    depth : int
        Linear layers.
    width : int or str
        Units of a hidden layer, or a multiple of `n_in` such as ``"4x"``.
    dropout : float
        Share of hidden units dropped in training.

    Returns
    -------
    head : Head
        Its ``set_statistics`` is to be given the training features.

    Raises
    ------
    ValueError
        When the kind or width is unknown, or None with more numbers out than in.

    Examples
    --------
    >>> from sklearn_ape.heads import make_head
    >>> head = make_head("linear", 4, 2, depth=1, width=8, dropout=0.0)
    >>> sum(p.numel() for p in head.parameters())
    10
    """
    if kind is not None and kind not in HEAD_KINDS:
        raise ValueError(f"head must be one of {', '.join(HEAD_KINDS)}, not {kind!r}.")
    units = 1 if kind in (None, "linear") else hidden_width(width, n_in)
    head: Head
    if kind is None:
        head = FrozenHead(n_in, n_out)
    elif kind == "linear":
        head = LinearHead(n_in, n_out)
    elif kind == "star":
        head = StarHead(n_in, n_out, units, dropout)
    else:
        head = _DEEP[kind](n_in, n_out, depth, units, dropout)
    layers = int(depth) if kind in _DEEP else 1
    head.made_of = {"kind": kind, "depth": layers, "width": units, "dropout": float(dropout)}
    return head


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
def restored_head(state: FittedState) -> Head:
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


def _unfilled(state: FittedState) -> tuple[Head, FittedState]:
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


def fill(module: nn.Module, tensors: FittedState) -> None:
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


def _closed_form(state: FittedState) -> ClosedFormHead:
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


def _float32(state: FittedState, name: str, shape: tuple[int | None, ...]) -> Any:
    array = state.array(name, shape)
    if array.dtype.str != "<f4":
        raise ValueError(f"{state.where}.{name} must be of type float32, not {array.dtype}.")
    return array


def _arrays(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
