"""Sparse embeddings that multiply like dense ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse


class SparseRows:
    """Sparse embeddings; their products are dense, as `retrieval_ranks` wants them, tile by tile.

    Parameters
    ----------
    rows : csr_array of shape (n, n_components)
        Of length 1.
    """

    def __init__(self, rows: csr_array) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows.shape[0]

    def __getitem__(self, index: Any) -> SparseRows:
        return SparseRows(self.rows[index])

    @property
    def T(self) -> Any:
        """The rows as columns."""
        return self.rows.T

    def __matmul__(self, columns: Any) -> np.ndarray:
        product = self.rows @ columns
        return product.toarray() if issparse(product) else product
