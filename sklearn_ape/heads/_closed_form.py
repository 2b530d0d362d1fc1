"""Closed-form maps, and a head that is initialized with one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..utils.linalg import l2_normalize
from ._base import Head, check_same_sizes, check_width

# Number of values per block of a kernel matrix, 64 MiB.
_BLOCK_VALUES = 2**24

# Number of rows from which the scale of a residual is estimated. A kernel of all rows takes
# seconds.
_ROWS_FOR_SCALE = 1024


class BaseMap(nn.Module):
    """Base class of closed-form maps from features to embeddings, which have no parameters.

    Parameters
    ----------
    n_in, n_out : int
        Number of features, and size of the embeddings.
    **buffers : torch.Tensor
        Tensors of the map, by the names of their attributes.
    """

    def __init__(self, n_in: int, n_out: int, **buffers: torch.Tensor) -> None:
        super().__init__()
        self.n_in = n_in
        self.n_out = n_out
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)


class KernelMap(BaseMap):
    """A kernel machine on the sphere: ``exp(gamma * (cos(t, anchors) - 1)) @ coefficients``.

    Parameters
    ----------
    anchors : array-like or torch.Tensor of shape (n_rows, n_in)
        L2-normalized features.
    coefficients : array-like or torch.Tensor of shape (n_rows, n_out)
        Weight of each anchor, computed by kernel ridge regression.
    gamma : float
        Width parameter of the kernel, above 0. The larger it is, the faster the influence of an
        anchor decreases with the angle.

    Raises
    ------
    ValueError
        If shapes do not match, values are not finite, or an anchor is not L2-normalized.

    See Also
    --------
    WhitenedMap : Map of the images, whose outputs are the targets of the regression.

    Notes
    -----
    Buffers are float32 copies. The kernel matrix is computed in blocks of at most 64 MiB.

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
        anchors = _as_finite_tensor("anchors", anchors, 2)
        coefficients = _as_finite_tensor("coefficients", coefficients, 2)
        _check_same_row_count(anchors=anchors, coefficients=coefficients)
        # The tolerance admits anchors that were rounded to half precision.
        invalid_rows = torch.nonzero((anchors.norm(dim=1) - 1).abs() > 1e-3)
        if len(invalid_rows):
            raise ValueError(
                f"anchors are not L2-normalized: row {invalid_rows[0].item()} has norm "
                f"{anchors[invalid_rows[0]].norm():.3g}. Divide each row by its norm."
            )
        gamma_tensor = _as_finite_tensor("gamma", gamma, 0)
        if not gamma_tensor > 0:  # a tiny gamma is 0 in single precision
            raise ValueError(f"gamma must be positive in single precision, not {gamma!r}.")
        buffers = {"anchors": anchors, "coefficients": coefficients, "gamma": gamma_tensor}
        super().__init__(anchors.shape[1], coefficients.shape[1], **buffers)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        n_rows = max(1, _BLOCK_VALUES // len(self.anchors))
        units = l2_normalize(features)
        if torch.compiler.is_compiling():  # an export would fix the number of blocks
            return self._map(units)
        return torch.cat([self._map(part) for part in units.split(n_rows)])

    def _map(self, units: torch.Tensor) -> torch.Tensor:
        cosines = units @ self.anchors.T
        return torch.exp(self.gamma * (cosines - 1)) @ self.coefficients


class _CenteredMap(BaseMap):
    """Base class of linear maps of L2-normalized features, of which a mean is subtracted."""

    mean: torch.Tensor
    _matrix_name: str

    def __init__(self, mean: Any, matrix: Any) -> None:
        name = self._matrix_name
        mean, matrix = _as_finite_tensor("mean", mean, 1), _as_finite_tensor(name, matrix, 2)
        buffers = {"mean": mean, name: matrix}
        _check_same_row_count(**buffers)
        super().__init__(*matrix.shape, **buffers)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        check_width(features, self.n_in)
        return (l2_normalize(features) - self.mean) @ getattr(self, self._matrix_name)


class WhitenedMap(_CenteredMap):
    """Whitening of L2-normalized features: ``(x / |x| - mean) @ directions``.

    Parameters
    ----------
    mean : array-like or torch.Tensor of shape (n_in,)
        Mean of the L2-normalized training features.
    directions : array-like or torch.Tensor of shape (n_in, n_out)
        Principal directions, each divided by its standard deviation.

    Raises
    ------
    ValueError
        If shapes do not match or values are not finite.

    See Also
    --------
    KernelMap : Map of the texts, a regression to the whitened images.

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

    directions: torch.Tensor
    _matrix_name = "directions"

    def __init__(self, mean: Any, directions: Any) -> None:
        super().__init__(mean, directions)


class LinearMap(_CenteredMap):
    """A linear map of L2-normalized features: ``(t / |t| - mean) @ weights``.

    Parameters
    ----------
    mean : array-like or torch.Tensor of shape (n_in,)
        Mean of the L2-normalized training features.
    weights : array-like or torch.Tensor of shape (n_in, n_out)
        Weights, computed by ridge regression.

    Raises
    ------
    ValueError
        If shapes do not match or values are not finite.

    See Also
    --------
    KernelMap : Nonlinear map of L2-normalized features.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import LinearMap
    >>> LinearMap(torch.zeros(2), 2 * torch.eye(2))(torch.tensor([[3.0, 4.0]]))
    tensor([[1.2000, 1.6000]])
    """

    weights: torch.Tensor
    _matrix_name = "weights"

    def __init__(self, mean: Any, weights: Any) -> None:
        super().__init__(mean, weights)


class ConSEMap(BaseMap):
    """Embeddings of classes, averaged by the probabilities of a linear classifier.

    This is ConSE [1]_: an image for which the classifier is certain of "dalmatian" gets the
    embedding of that word. The probability of class c is ``exp(x @ w_c) / (exp(threshold) +
    sum_k exp(x @ w_k))``, so that the output is nearly zero if all logits are far below the
    threshold.

    Parameters
    ----------
    weights : array-like or torch.Tensor of shape (n_classes, n_in)
        Weights of the classifier.
    embeddings : array-like or torch.Tensor of shape (n_classes, n_out)
        Embedding of each class.
    threshold : float
        Logit of an image that shows none of the classes.

    Raises
    ------
    ValueError
        If shapes do not match or values are not finite.

    See Also
    --------
    sklearn_ape.encoders.classifier_head_pairs : Weights and names of an encoder's classes.

    References
    ----------
    .. [1] M. Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings",
       ICLR 2014.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import ConSEMap
    >>> conse_map = ConSEMap(torch.eye(2), torch.eye(2), threshold=0.0)
    >>> conse_map(torch.tensor([[9.0, 0.0], [-9.0, -9.0]])).round(decimals=2)
    tensor([[1., 0.],
            [0., 0.]])
    """

    weights: torch.Tensor
    embeddings: torch.Tensor
    threshold: torch.Tensor

    def __init__(self, weights: Any, embeddings: Any, threshold: float) -> None:
        weights = _as_finite_tensor("weights", weights, 2)
        embeddings = _as_finite_tensor("embeddings", embeddings, 2)
        _check_same_row_count(weights=weights, embeddings=embeddings)
        buffers = {"weights": weights, "embeddings": embeddings}
        buffers["threshold"] = _as_finite_tensor("threshold", threshold, 0)
        super().__init__(weights.shape[1], embeddings.shape[1], **buffers)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        check_width(features, self.n_in)
        logits = features @ self.weights.T
        logits = torch.cat([logits, self.threshold.expand(len(logits), 1)], dim=1)
        return torch.softmax(logits, dim=1)[:, :-1] @ self.embeddings


class ClosedFormHead(Head):
    """A closed-form map plus a trained head whose output is initially zero.

    The output is ``base(x) + scale * residual(x)``, where ``scale`` is the root mean square of the
    base's output. Thus the effect of training does not depend on the scale of the base. Before the
    first training step the head returns exactly the output of the base, even with dropout.

    Parameters
    ----------
    base : BaseMap
        Closed-form map, such as `KernelMap` or `WhitenedMap`. It is not trained.
    residual : Head or None, default=None
        Head with the same sizes as the base, whose output layer is set to zero. With None the
        head returns the output of the base.

    Raises
    ------
    ValueError
        If the base has parameters, the residual has only buffers, or sizes differ.

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
                f"base, a {type(base).__name__}, has parameters. Pass a map that has buffers only."
            )
        super().__init__(base.n_in, base.n_out, standardize=False)
        self.base = base
        self.residual = residual
        if residual is not None:
            check_same_sizes(base=base, residual=residual)
            residual.start_at_zero()
            self.register_buffer("scale", torch.ones(()))

    def set_statistics(self, features: Any) -> None:
        """Compute the statistics of the residual, and the scale, from training features."""
        if self.residual is not None:
            self.residual.set_statistics(features)
            rows = torch.as_tensor(features[:: max(1, len(features) // _ROWS_FOR_SCALE)])
            rms = self.base(rows).double().square().mean().sqrt()
            self.scale.copy_(torch.where(rms > 0, rms, 1.0))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        output = self.base(features)
        return output if self.residual is None else output + self.scale * self.residual(features)


class ExtendedHead(Head):
    """The L2-normalized output of a head, plus a constant and a correction.

    Parameters
    ----------
    base : Head
        Head to extend.
    scale : float
        Factor of the normalized output of the base.
    shift : array-like or torch.Tensor of shape (n_out,)
        Constant that is added.
    correction : BaseMap or None, default=None
        Map with the sizes of the base, whose output is added.

    Raises
    ------
    ValueError
        If sizes differ, or values are not finite.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ape.heads import ClosedFormHead, ExtendedHead, LinearMap
    >>> base = ClosedFormHead(LinearMap(torch.zeros(2), torch.eye(2)))
    >>> ExtendedHead(base, 0.5, torch.tensor([0.0, 1.0]))(torch.tensor([[3.0, 0.0]]))
    tensor([[0.5000, 1.0000]])
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self, base: Head, scale: float, shift: Any, correction: BaseMap | None = None
    ) -> None:
        super().__init__(base.n_in, base.n_out, standardize=False)
        shift = _as_finite_tensor("shift", shift, 1)
        if len(shift) != base.n_out:
            raise ValueError(
                f"shift has {len(shift)} values, and base has {base.n_out} outputs. Pass one "
                "value per output."
            )
        if correction is not None:
            check_same_sizes(base=base, correction=correction)
        self.base = base
        self.register_buffer("scale", _as_finite_tensor("scale", scale, 0))
        self.register_buffer("shift", shift)
        self.correction = correction

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in) to (n, n_out)."""
        output = self.scale * l2_normalize(self.base(features)) + self.shift
        return output if self.correction is None else output + self.correction(features)


def _as_finite_tensor(name: str, values: Any, ndim: int) -> torch.Tensor:
    """Return a float32 copy; raise an error unless it is finite, not empty, and has ndim axes."""
    tensor = torch.as_tensor(values).detach().to(torch.float32, copy=True).contiguous()
    if tensor.ndim != ndim or not tensor.numel():
        raise ValueError(
            f"{name} must have {ndim} axes and not be empty, but has shape {tuple(tensor.shape)}."
        )
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} contains NaN or infinity, or values too large for float32.")
    return tensor


def _check_same_row_count(**tensors: torch.Tensor) -> None:
    """Raise ValueError, with the names, if two tensors differ in their numbers of rows."""
    (first, first_tensor), (second, second_tensor) = tensors.items()
    if len(first_tensor) != len(second_tensor):
        raise ValueError(
            f"{first} and {second} have different lengths, {len(first_tensor)} and "
            f"{len(second_tensor)}. Pass one row of {second} per row of {first}."
        )
