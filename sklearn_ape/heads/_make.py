"""Heads by name."""

from __future__ import annotations

import re
from numbers import Integral

from ._base import Head
from ._linear import FrozenHead, LinearHead
from ._mlp import BatchNormMLPHead, MLPHead
from ._residual import GLUHead, ResidualHead
from ._skip import SkipMLPHead
from ._star import StarHead

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
