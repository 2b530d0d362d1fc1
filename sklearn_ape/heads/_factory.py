"""Factory of heads, and conversion between heads and saved state."""

from __future__ import annotations

import re
from numbers import Integral
from typing import Any

import torch
from torch import nn

from ..devices import default_state
from ..persistence.mixins import FittedState
from ..utils.validation import check_choice, check_integer
from ._base import BlendedHead, ConcatenatedHead, FrozenHead, Head, LinearHead
from ._closed_form import (
    BaseMap,
    ClosedFormHead,
    ConSEMap,
    ExtendedHead,
    KernelMap,
    LinearMap,
    WhitenedMap,
)
from ._mlp import BatchNormMLPHead, GLUHead, MLPHead, ResidualHead, SkipMLPHead, StarHead

_DEEP_HEADS: dict[str, type[MLPHead | ResidualHead | SkipMLPHead]] = {
    "mlp": MLPHead,
    "batchnorm_mlp": BatchNormMLPHead,
    "residual": ResidualHead,
    "glu": GLUHead,
    "skip_mlp": SkipMLPHead,
}

HEAD_KINDS = ("linear", *_DEEP_HEADS, "star")


def hidden_width(width: int | str, n_in: int) -> int:
    """Return the number of units of a hidden layer.

    Parameters
    ----------
    width : int or str
        Number of units, or a multiple of the number of features such as ``"4x"`` or ``"0.5x"``.
    n_in : int
        Number of features.

    Returns
    -------
    width : int
        Number of units, at least 1.

    Raises
    ------
    ValueError
        If `width` is invalid.

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
        f"width must be an integer >= 1, or a multiple of the number of features such as '4x', "
        f"not {width!r}."
    )


def make_head(
    kind: str | None, n_in: int, n_out: int, *, depth: int, width: int | str, dropout: float
) -> Head:
    """Make a head of a kind.

    Parameters
    ----------
    kind : str or None
        One of `HEAD_KINDS`:

        - ``"linear"``: `LinearHead`; depth, width and dropout are not used.
        - ``"mlp"``: `MLPHead` with `depth` linear layers.
        - ``"batchnorm_mlp"``: `BatchNormMLPHead` with `depth` linear layers (ShareLock).
        - ``"residual"``: `ResidualHead` with ``depth // 2`` blocks and a projection. An even depth
          is the same as the next odd one, and depth 1 has no block (FuseMix).
        - ``"glu"``: `GLUHead` with ``depth // 2`` blocks and a projection.
        - ``"skip_mlp"``: `SkipMLPHead` with one projector and, from depth 4,
          ``depth // 2 - 1`` residual MLPs (Freeze-Align).
        - ``"star"``: `StarHead`; depth is not used (SAIL).
        - None: `FrozenHead`, which is not trained; depth, width and dropout are not used.

        ``"star"`` and ``"skip_mlp"`` begin with a layer norm. The other heads standardize
        features.
    n_in, n_out : int
        Number of features, and size of the embeddings.
    depth : int
        Number of linear layers.
    width : int or str
        Number of units of a hidden layer, or a multiple of `n_in` such as ``"4x"``.
    dropout : float
        Fraction of the hidden units dropped during training.

    Returns
    -------
    head : Head
        Head whose ``set_statistics`` must be called with the training features.

    Raises
    ------
    ValueError
        If `kind`, `depth` or `width` is invalid, or `kind` is None and `n_out` is greater than
        `n_in`.

    Examples
    --------
    >>> from sklearn_ape.heads import make_head
    >>> head = make_head("linear", 4, 2, depth=1, width=8, dropout=0.0)
    >>> sum(p.numel() for p in head.parameters())
    10
    """
    if kind is not None:
        check_choice(kind, "head", HEAD_KINDS)
    check_integer(depth, "depth", 1)
    units = 1 if kind in (None, "linear") else hidden_width(width, n_in)
    head: Head
    if kind is None:
        head = FrozenHead(n_in, n_out)
    elif kind == "linear":
        head = LinearHead(n_in, n_out)
    elif kind == "star":
        head = StarHead(n_in, n_out, units, dropout)
    else:
        head = _DEEP_HEADS[kind](n_in, n_out, depth, units, dropout)
    n_layers = int(depth) if kind in _DEEP_HEADS else 1
    head.spec = {"kind": kind, "depth": n_layers, "width": units, "dropout": float(dropout)}
    return head


# Class of each kind of map, and the numbers of axes of its buffers.
_MAPS: dict[str, tuple[type[BaseMap], dict[str, int]]] = {
    "kernel": (KernelMap, {"anchors": 2, "coefficients": 2, "gamma": 0}),
    "linear": (LinearMap, {"mean": 1, "weights": 2}),
    "whitened": (WhitenedMap, {"mean": 1, "directions": 2}),
    "conse": (ConSEMap, {"weights": 2, "embeddings": 2, "threshold": 0}),
}

# Class of each kind of head that combines two heads.
_PAIRS: dict[str, type[BlendedHead | ConcatenatedHead]] = {
    "blend": BlendedHead,
    "concatenation": ConcatenatedHead,
}


def get_head_state(head: Head) -> dict[str, Any]:
    """Return the state of a head on the CPU for `restore_head`, as plain data and arrays.

    >>> from sklearn_ape.persistence import FittedState
    >>> head = make_head("mlp", 4, 2, depth=2, width=8, dropout=0.0)
    >>> copy = restore_head(FittedState(get_head_state(head), "head"))
    >>> features = torch.randn(3, 4)
    >>> torch.equal(copy(features), head(features))
    True
    """
    if isinstance(head, ClosedFormHead):
        return {
            "kind": "closed_form",
            "base": _get_map(head.base),
            "residual": None if head.residual is None else get_head_state(head.residual),
            "scale": None if head.residual is None else float(head.scale),
        }
    if isinstance(head, BlendedHead | ConcatenatedHead):
        return {
            "kind": next(kind for kind, cls in _PAIRS.items() if type(head) is cls),
            "first": get_head_state(head.first),
            "second": get_head_state(head.second),
            "weight": float(head.weight),
        }
    if isinstance(head, ExtendedHead):
        return {
            "kind": "extended",
            "base": get_head_state(head.base),
            "scale": float(head.scale),
            "shift": head.shift.numpy(),
            "correction": None if head.correction is None else _get_map(head.correction),
        }
    if head.spec is None:
        raise TypeError(
            f"head is a {type(head).__name__} that was not made by make_head, and cannot be "
            "saved. Make it with make_head."
        )
    return {**head.spec, "n_in": head.n_in, "n_out": head.n_out, "tensors": _get_arrays(head)}


@default_state()
def restore_head(state: FittedState) -> Head:
    """Return the head whose state `get_head_state` returned, with bitwise identical weights.

    Sizes are checked before memory is allocated.
    """
    try:
        return _restore_head(state)
    except RecursionError:
        raise ValueError(f"{state.where} has too many heads within heads.") from None


def _restore_head(state: FittedState) -> Head:
    kind = state.optional("kind")
    if kind == "closed_form":
        return _restore_closed_form(state)
    if isinstance(kind, str) and kind in _PAIRS:
        first, second = (_restore_head(state.part(name)) for name in ("first", "second"))
        return _PAIRS[kind](first, second, state.number("weight", least=0))
    if kind == "extended":
        base = _restore_head(state.part("base"))
        correction = _restore_map(state.part("correction")) if "correction" in state else None
        scale = state.number("scale", least=0)
        return ExtendedHead(base, scale, _read_float32(state, "shift", (None,)), correction)
    head, tensors = _make_empty_head(state, kind)
    _assign_weights(head, tensors)
    return head


def _make_empty_head(state: FittedState, kind: Any) -> tuple[Head, FittedState]:
    """Return a head without weights, which takes no memory, and the state of its weights."""
    tensors = state.part("tensors")
    shape: dict[str, Any] = {
        "kind": kind,
        "n_in": state.integer("n_in", 1, 2**31),
        "n_out": state.integer("n_out", 1, 2**31),
        # Every layer has a tensor. The limit prevents a file from requesting many empty layers.
        "depth": state.integer("depth", 1, most=1 + len(tensors)),
        "width": state.integer("width", 1, most=2**31),
        "dropout": state.number("dropout", least=0),
    }
    with torch.device("meta"):
        return make_head(**shape), tensors


def _assign_weights(module: nn.Module, tensors: FittedState) -> None:
    """Set the weights of a module without memory, after checking shapes and types."""
    weights = {}
    for name, tensor in module.state_dict().items():
        kinds = "f" if tensor.dtype.is_floating_point else "i"
        weight = torch.tensor(tensors.array(name, tuple(tensor.shape), kinds))
        if weight.dtype != tensor.dtype:
            raise ValueError(
                f"{tensors.where}.{name} must be of type {tensor.dtype}, not {weight.dtype}."
            )
        weights[name] = weight
    module.load_state_dict(weights, strict=True, assign=True)


def _restore_closed_form(state: FittedState) -> ClosedFormHead:
    base = _restore_map(state.part("base"))
    if "residual" not in state:
        return ClosedFormHead(base)
    part = state.part("residual")
    residual, tensors = _make_empty_head(part, part.optional("kind"))
    head = ClosedFormHead(base, residual)  # sets the residual's output layer to zero
    _assign_weights(residual, tensors)
    head.scale.fill_(state.number("scale", above=0))
    return head


def _restore_map(state: FittedState) -> BaseMap:
    kind = state.text("kind")
    if kind not in _MAPS:
        raise ValueError(
            f"{state.where}.kind must be one of {', '.join(_MAPS)}, not {kind[:40]!r}."
        )
    cls, axes = _MAPS[kind]
    return cls(**{name: _read_float32(state, name, (None,) * n) for name, n in axes.items()})


def _read_float32(state: FittedState, name: str, shape: tuple[int | None, ...]) -> Any:
    array = state.array(name, shape)
    if array.dtype.str != "<f4":
        raise ValueError(f"{state.where}.{name} must be of type float32, not {array.dtype}.")
    return array


def _get_map(base_map: BaseMap) -> dict[str, Any]:
    kind = next(name for name, (cls, _) in _MAPS.items() if type(base_map) is cls)
    return {"kind": kind, **_get_arrays(base_map)}


def _get_arrays(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
