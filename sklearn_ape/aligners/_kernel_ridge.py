"""Solvers of kernel ridge regression with tens of thousands of anchors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import psutil
import torch
from sklearn.utils import gen_batches

from ..utils.messages import make_progress_bar

# Shares of the available memory that a kernel matrix may take: of a number of anchors chosen from
# the memory, and of one that the user has chosen. The first is smaller, since the time grows with
# the cube of the number.
_AUTO_SHARE = 0.3
_MAX_SHARE = 0.8

# A matrix of up to this many rows is one block of 17 MB, whose memory need not be checked.
_MIN_ANCHORS = 2048

# Number of rows of a block. The lower triangle of a matrix is stored as blocks, which take half of
# its memory. LAPACK counts elements in 32 bits and crashes beyond some 46,000 rows, so that it is
# called for single blocks only.
_BLOCK_SIZE = 2048

# Number of elements of a block of rows, 256 MiB in single precision.
_BLOCK_ELEMENTS = 2**26

# Conjugate gradients: least size of the preconditioner, and bounds of the iteration.
_N_LANDMARKS = 3000
_TOLERANCE = 1e-4
_MAX_ITERATIONS = 200

# Shares of the largest diagonal element that are added if the matrix is singular in float32.
_JITTERS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)


class Solution(NamedTuple):
    """Solution of a kernel ridge regression.

    `residuals` are the targets of the last `n_held_out` rows minus their predictions by the
    solution of the other rows. They follow from the decomposition, and are None without one.
    """

    coefficients: np.ndarray
    residuals: np.ndarray | None


def kernel(left: torch.Tensor, right: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return ``exp(gamma * (cosine - 1))`` of L2-normalized rows."""
    return (left @ right.T).sub_(1).mul_(gamma).exp_()


def measure_available_memory(device: torch.device) -> int:
    """Return the number of bytes that can be allocated on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return psutil.virtual_memory().available


def count_fitting_anchors(device: torch.device, share: float = _AUTO_SHARE) -> int:
    """Return the number of anchors whose kernel matrix takes a share of the available memory."""
    n_elements = share * measure_available_memory(device) / 4
    return max(_MIN_ANCHORS, int((2 * n_elements) ** 0.5))


def solve_kernel_ridge(
    anchors: np.ndarray,
    ridge: np.ndarray,
    targets: np.ndarray,
    gamma: float,
    device: torch.device,
    verbose: int | None = 0,
    n_held_out: int = 0,
) -> Solution:
    """Solve ``(K + diag(ridge)) @ coefficients = targets``, where K is the kernel of the anchors.

    The anchors are L2-normalized. The matrix is decomposed if it fits in memory. Otherwise
    conjugate gradients are used, which compute its rows in every iteration.
    """
    arrays = (anchors, ridge, targets)
    rows, diagonal, right = (torch.as_tensor(a, dtype=torch.float32).to(device) for a in arrays)
    if len(anchors) > count_fitting_anchors(device, _MAX_SHARE):
        solution = _solve_iteratively(rows, diagonal, right, gamma, verbose)
        return Solution(solution.cpu().numpy(), None)
    return solve_positive_definite(
        lambda: _make_rows(rows, diagonal, gamma), right, verbose, n_held_out
    )


def solve_positive_definite(
    make_rows: Callable[[], list[torch.Tensor]],
    right: torch.Tensor,
    verbose: int | None = 0,
    n_held_out: int = 0,
) -> Solution:
    """Solve a system whose matrix is positive definite up to rounding in single precision.

    `make_rows` returns the lower triangle of the matrix like `get_lower_rows`. It is replaced by
    its factor, so the function is called again if the decomposition fails.
    """
    for jitter in _JITTERS:
        rows = make_rows()
        _increase_diagonal(rows, jitter)
        try:
            _decompose(rows, verbose)
        except torch.linalg.LinAlgError:
            del rows  # two matrices may not fit in memory
            continue
        coefficients = _substitute(rows, right.clone())
        # With M = L L' and the held-out rows H at the end, the solution of the other rows misses
        # the targets of H by inv(inv(M)[H, H]) @ coefficients[H], and inv(M)[H, H] is
        # inv(L[H, H] L[H, H]').
        start = len(right) - n_held_out
        corner = _take_corner(rows, start)
        residuals = corner @ (corner.T @ coefficients[start:])
        return Solution(coefficients.cpu().numpy(), residuals.cpu().numpy())
    raise ValueError(
        "The kernel matrix of the captions cannot be decomposed in single precision. Raise ridge, "
        "or lower gamma if you set it."
    )


def get_lower_rows(matrix: torch.Tensor) -> list[torch.Tensor]:
    """Return views of blocks of rows, each up to its last column on the diagonal."""
    return [matrix[block, : block.stop] for block in gen_batches(len(matrix), _BLOCK_SIZE)]


def choose_anchors(counts: np.ndarray, n_anchors: int, rng: np.random.RandomState) -> np.ndarray:
    """Return the sorted indices of the texts with most images; ties are broken at random.

    On 16,000 pairs of icons, 1,000 anchors had a recall@1 of 10.1 %, and 7.1 to 7.7 % if they were
    drawn at random or by ridge leverage scores, which prefer texts unlike all others.
    """
    order = np.lexsort((rng.permutation(len(counts)), -counts))
    return np.sort(order[:n_anchors])


def _make_rows(anchors: torch.Tensor, diagonal: torch.Tensor, gamma: float) -> list[torch.Tensor]:
    """Return the rows of `get_lower_rows` for the kernel matrix plus a diagonal."""
    rows = []
    for block in gen_batches(len(anchors), _BLOCK_SIZE):
        rows.append(kernel(anchors[block], anchors[: block.stop], gamma))
        rows[-1][:, block].diagonal().add_(diagonal[block])
    return rows


def _increase_diagonal(rows: list[torch.Tensor], share: float) -> None:
    """Add a share of the largest element of the diagonal to the diagonal."""
    diagonals = [block[:, -len(block) :].diagonal() for block in rows]
    increase = share * max(float(diagonal.max()) for diagonal in diagonals)
    for diagonal in diagonals:
        diagonal.add_(increase)


def _decompose(rows: list[torch.Tensor], verbose: int | None) -> None:
    """Replace the lower triangle of a matrix by its Cholesky factor."""
    n_rows = rows[-1].shape[1]
    with make_progress_bar(n_rows, verbose, desc="Solving", unit="anchor") as bar:
        for i, block in enumerate(gen_batches(n_rows, _BLOCK_SIZE)):
            head = rows[i][:, : block.start]
            for part in rows[i:]:
                if block.start:
                    part[:, block].addmm_(part[:, : block.start], head.T, alpha=-1)
            factor = torch.linalg.cholesky(rows[i][:, block])
            rows[i][:, block] = factor
            for part in rows[i + 1 :]:
                below = part[:, block]
                below.copy_(
                    torch.linalg.solve_triangular(factor.mT, below, upper=True, left=False)
                )
            bar.update(block.stop - block.start)


def _substitute(rows: list[torch.Tensor], right: torch.Tensor) -> torch.Tensor:
    """Solve by forward and backward substitution, in place."""
    blocks = list(gen_batches(len(right), _BLOCK_SIZE))
    for row, block in zip(rows, blocks, strict=True):
        right[block] -= row[:, : block.start] @ right[: block.start]
        right[block] = torch.linalg.solve_triangular(
            row[:, block].tril(), right[block], upper=False
        )
    for row, block in reversed(list(zip(rows, blocks, strict=True))):
        right[block] = torch.linalg.solve_triangular(
            row[:, block].tril().mT, right[block], upper=True
        )
        right[: block.start] -= row[:, : block.start].T @ right[block]
    return right


def _take_corner(rows: list[torch.Tensor], start: int) -> torch.Tensor:
    """Return the lower triangle of the rows and columns from `start` on."""
    n_rows = rows[-1].shape[1]
    corner = rows[-1].new_zeros(n_rows - start, n_rows - start)
    for row, block in zip(rows, gen_batches(n_rows, _BLOCK_SIZE), strict=True):
        first = max(start, block.start)
        if first < block.stop:
            part = slice(first - start, block.stop - start)
            corner[part, : part.stop] = row[first - block.start :, start:]
    return corner.tril_()


def _solve_iteratively(
    rows: torch.Tensor,
    diagonal: torch.Tensor,
    right: torch.Tensor,
    gamma: float,
    verbose: int | None,
) -> torch.Tensor:
    """Solve by preconditioned conjugate gradients, for all right sides at once."""
    precondition = _make_preconditioner(rows, diagonal, gamma)
    solution = torch.zeros_like(right)
    residual = right.clone()
    norms = right.norm(dim=0).clamp_min_(torch.finfo(right.dtype).tiny)
    direction = preconditioned = precondition(residual)
    product = (residual * preconditioned).sum(dim=0)
    with make_progress_bar(
        None, verbose, desc="Solving by conjugate gradients", unit="iteration"
    ) as bar:
        for _ in range(_MAX_ITERATIONS):
            image = _multiply(rows, direction, gamma)
            image += diagonal[:, None] * direction
            # Columns that are solved exactly have a direction of zeros. The bounds avoid 0 / 0.
            step = product / (direction * image).sum(dim=0).clamp_min_(1e-30)
            solution += step * direction
            residual -= step * image
            error = float((residual.norm(dim=0) / norms).max())
            bar.set_postfix(error=f"{error:.1e}", refresh=False)
            bar.update()
            if error < _TOLERANCE:
                return solution
            preconditioned = precondition(residual)
            previous, product = product, (residual * preconditioned).sum(dim=0)
            direction = preconditioned + (product / previous.clamp_min_(1e-30)) * direction
    raise ValueError(
        f"ridge is too small: conjugate gradients have a relative error of {error:.1g} after "
        f"{_MAX_ITERATIONS} iterations. Raise ridge, or lower max_anchors."
    )


def _make_preconditioner(
    rows: torch.Tensor, diagonal: torch.Tensor, gamma: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the inverse of a Nyström approximation of the matrix, as a function.

    With the kernel C of all rows and landmarks, and W of the landmarks, the approximation is
    ``D + C W^-1 C'``, where D is the diagonal. Its inverse follows by Woodbury's identity.
    """
    landmarks = rows[:: max(1, len(rows) // _N_LANDMARKS)]
    columns = kernel(rows, landmarks, gamma)
    inner = kernel(landmarks, landmarks, gamma).double()
    inner.diagonal().add_(1e-6 * len(landmarks))  # regular, even if landmarks are nearly equal
    for block in gen_batches(len(rows), _BLOCK_SIZE):
        part = columns[block].double()
        inner += part.T @ (part / diagonal[block, None])
    factor = torch.linalg.cholesky(inner)

    def precondition(vectors: torch.Tensor) -> torch.Tensor:
        scaled = vectors / diagonal[:, None]
        weights = torch.cholesky_solve((columns.T @ scaled).double(), factor)
        return scaled - (columns @ weights.float()) / diagonal[:, None]

    return precondition


def _multiply(rows: torch.Tensor, vectors: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return the product of the kernel matrix and vectors, without storing the matrix."""
    size = max(1, _BLOCK_ELEMENTS // len(rows))
    return torch.cat([kernel(part, rows, gamma) @ vectors for part in rows.split(size)])
