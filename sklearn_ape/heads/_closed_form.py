"""Maps that are solved for, and a head that starts at one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..utils.linalg import l2_normalize
from ._base import Head

_KERNEL_VALUES_AT_ONCE = 2**24  # 64 MiB
_ROWS_FOR_SCALE = 1024


class BaseMap(nn.Module):
    """A map from features to embeddings that has buffers and nothing to train.

    Parameters
    ----------
    n_in, n_out : int
        Widths of features and embeddings.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.n_in = n_in
        self.n_out = n_out


class KernelMap(BaseMap):
    """A kernel machine on the sphere: ``exp(gamma * (cos(t, anchors) - 1)) @ coefficients``.

    Parameters
    ----------
    anchors : array-like or torch.Tensor of shape (n_rows, n_in)
        Features of length 1.
    coefficients : array-like or torch.Tensor of shape (n_rows, n_out)
        What each anchor adds, as kernel ridge regression solves it.
    gamma : float
        How fast an anchor's influence falls with the angle; above 0.

    Raises
    ------
    ValueError
        When shapes do not match, numbers are not finite, or an anchor is not of length 1.

    See Also
    --------
    WhitenedMap : The counterpart on the side whose features are the targets.

    Notes
    -----
    Buffers are float32 copies. Rows are mapped a bounded number at a time, so that no kernel
    matrix takes more than 64 MiB.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import KernelMap
    >>> kernel_map = KernelMap(torch.eye(2), torch.eye(2), gamma=1.0)
    >>> kernel_map(torch.tensor([[3.0, 0.0]]))
    tensor([[1.0000, 0.3679]])
    """

    anchors: torch.Tensor
    coefficients: torch.Tensor
    gamma: torch.Tensor

    def __init__(self, anchors: Any, coefficients: Any, gamma: float) -> None:
        anchors = _finite("anchors", anchors, 2)
        coefficients = _finite("coefficients", coefficients, 2)
        if len(anchors) != len(coefficients):
            raise ValueError(
                f"There are {len(anchors)} anchors and {len(coefficients)} rows of coefficients: "
                "expected a row of coefficients an anchor."
            )
        bad = torch.nonzero((anchors.norm(dim=1) - 1).abs() > 1e-3)
        if len(bad):
            raise ValueError(
                f"Anchor {bad[0].item()} has length {anchors[bad[0]].norm():.3g}: expected length "
                "1. Divide anchors by their lengths."
            )
        if not float(gamma) > 0:
            raise ValueError(f"gamma must be above 0, not {gamma!r}.")
        super().__init__(anchors.shape[1], coefficients.shape[1])
        self.register_buffer("anchors", anchors)
        self.register_buffer("coefficients", coefficients)
        self.register_buffer("gamma", _finite("gamma", gamma, 0))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        rows = max(1, _KERNEL_VALUES_AT_ONCE // len(self.anchors))
        units = l2_normalize(features)
        if torch.compiler.is_compiling():  # an export is for any number of rows
            return self._map(units)
        return torch.cat([self._map(part) for part in units.split(rows)])

    def _map(self, units: torch.Tensor) -> torch.Tensor:
        cosines = units @ self.anchors.T
        return torch.exp(self.gamma * (cosines - 1)) @ self.coefficients


class WhitenedMap(BaseMap):
    """Whitened directions of features of length 1: ``(x / |x| - mean) @ directions``.

    Parameters
    ----------
    mean : array-like or torch.Tensor of shape (n_in,)
        Mean of the training features, scaled to length 1 each.
    directions : array-like or torch.Tensor of shape (n_in, n_out)
        Principal directions, each divided by its spread.

    Raises
    ------
    ValueError
        When shapes do not match or numbers are not finite.

    See Also
    --------
    KernelMap : The counterpart on the other side.

    Notes
    -----
    Buffers are float32 copies.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import WhitenedMap
    >>> WhitenedMap(torch.zeros(2), 2 * torch.eye(2))(torch.tensor([[3.0, 4.0]]))
    tensor([[1.2000, 1.6000]])
    """

    mean: torch.Tensor
    directions: torch.Tensor

    def __init__(self, mean: Any, directions: Any) -> None:
        mean = _finite("mean", mean, 1)
        directions = _finite("directions", directions, 2)
        if len(mean) != len(directions):
            raise ValueError(
                f"mean has {len(mean)} numbers and directions has {len(directions)} rows: "
                "expected as many."
            )
        super().__init__(*directions.shape)
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return (l2_normalize(features) - self.mean) @ self.directions


class LinearMap(BaseMap):
    """A linear regression on the sphere: ``(t / |t| - mean) @ weights``.

    Parameters
    ----------
    mean : array-like or torch.Tensor of shape (n_in,)
        Mean of the training features, scaled to length 1 each.
    weights : array-like or torch.Tensor of shape (n_in, n_out)
        As ridge regression solves them.

    Raises
    ------
    ValueError
        When shapes do not match or numbers are not finite.

    See Also
    --------
    KernelMap : Bends.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import LinearMap
    >>> LinearMap(torch.zeros(2), 2 * torch.eye(2))(torch.tensor([[3.0, 4.0]]))
    tensor([[1.2000, 1.6000]])
    """

    mean: torch.Tensor
    weights: torch.Tensor

    def __init__(self, mean: Any, weights: Any) -> None:
        mean, weights = _finite("mean", mean, 1), _finite("weights", weights, 2)
        if len(mean) != len(weights):
            raise ValueError(
                f"mean has {len(mean)} numbers and weights has {len(weights)} rows: expected as "
                "many."
            )
        super().__init__(*weights.shape)
        self.register_buffer("mean", mean)
        self.register_buffer("weights", weights)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return (l2_normalize(features) - self.mean) @ self.weights


class ClosedFormHead(Head):
    """A map that was solved for, plus a trained head that begins at zero.

    ``base(x) + scale * residual(x)``, where ``scale`` is the typical size of a number of the
    base's output, so that what training does to directions does not depend on the units of the
    base. Before the first step the output is the base's to the bit, dropout or not.

    Parameters
    ----------
    base : BaseMap
        Such as `KernelMap` or `WhitenedMap`; nothing of it is trained.
    residual : Head or None, default=None
        What `make_head` returns, with the base's widths; its output layer is set to zero here.
        None leaves the base as it is, for a side that has no head.

    Raises
    ------
    ValueError
        When the base has something to train, the residual has nothing, or widths differ.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import ClosedFormHead, WhitenedMap, make_head
    >>> base = WhitenedMap(torch.zeros(4), torch.eye(4)[:, :2])
    >>> residual = make_head("mlp", 4, 2, depth=2, width=8, dropout=0.5)
    >>> head = ClosedFormHead(base, residual)
    >>> features = torch.randn(3, 4)
    >>> head.set_statistics(features)
    >>> torch.equal(head(features), base(features))
    True
    """

    scale: torch.Tensor

    def __init__(self, base: BaseMap, residual: Head | None = None) -> None:
        if any(True for _ in base.parameters()):
            raise ValueError(
                f"The base, {type(base).__name__}, has parameters to train: expected buffers only."
            )
        widths = (base.n_in, base.n_out)
        if residual is not None and (residual.n_in, residual.n_out) != widths:
            raise ValueError(
                f"The base maps {base.n_in} features to {base.n_out} numbers, the residual "
                f"{residual.n_in} to {residual.n_out}: expected the same."
            )
        super().__init__(*widths, standardize=False)
        self.base = base
        self.residual = residual
        if residual is not None:
            residual.start_at_zero()
            self.register_buffer("scale", torch.ones(()))

    def set_statistics(self, features: Any) -> None:
        """Take the residual's statistics and the size of the base's output from training rows."""
        if self.residual is not None:
            self.residual.set_statistics(features)
            # Evenly spaced rows tell the size as well as all, for which a kernel takes seconds.
            some = torch.as_tensor(features[:: max(1, len(features) // _ROWS_FOR_SCALE)])
            size = self.base(some).double().square().mean().sqrt()
            self.scale.copy_(torch.where(size > 0, size, 1.0))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        output = self.base(features)
        return output if self.residual is None else output + self.scale * self.residual(features)


def _finite(name: str, values: Any, ndim: int) -> torch.Tensor:
    """Return a float32 copy, or raise if it is not a filled, finite array of that many axes."""
    tensor = torch.as_tensor(values).detach().to(torch.float32, copy=True).contiguous()
    if tensor.ndim != ndim or not tensor.numel():
        raise ValueError(
            f"{name} must have {ndim} axes and hold numbers, not shape {tuple(tensor.shape)}."
        )
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds numbers that are not finite (in float32).")
    return tensor
