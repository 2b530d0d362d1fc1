"""What a search gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


class SearchResult(NamedTuple):
    """The images found for every query, the nearest first.

    Parameters
    ----------
    scores : ndarray of shape (n_queries, k)
        Cosines, or standardised ones. NaN for a query that could not be read.
    indices : ndarray of int, shape (n_queries, k)
        Rows of the collection; -1 for a query that could not be read.
    items : list of n_queries lists
        What stands for these rows: paths, or the entries of y. Empty for a query that could not
        be read.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.retrieval import SearchResult
    >>> found = SearchResult(np.array([[0.9, 0.2]]), np.array([[4, 1]]), [["a.jpg", "b.jpg"]])
    >>> found.items[0][0]
    'a.jpg'
    >>> found.to_frame(["a red fruit"])
             query  rank  score  index   item
    0  a red fruit     1    0.9      4  a.jpg
    1  a red fruit     2    0.2      1  b.jpg
    """

    scores: np.ndarray
    indices: np.ndarray
    items: list[list[Any]]

    def to_frame(self, queries: Sequence[Any] | None = None) -> pd.DataFrame:
        """Return a table with one row for each image found.

        Parameters
        ----------
        queries : sequence of length n_queries or None, default=None
            What to call the queries; None numbers them.

        Returns
        -------
        table : pandas.DataFrame
            With the columns query, rank (from 1), score, index and item. Queries that could not
            be read have no row.

        Raises
        ------
        ValueError
            When there are not as many queries.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                'A table needs pandas: pip install "sklearn-ape[tables]".'
            ) from error
        names = range(len(self.items)) if queries is None else queries
        if len(names) != len(self.items):
            raise ValueError(
                f"queries has {len(names)} entries, and this is the result of {len(self.items)}."
            )
        rows = [
            (name, rank + 1, self.scores[row, rank], self.indices[row, rank], item)
            for row, name in enumerate(names)
            for rank, item in enumerate(self.items[row])
        ]
        return pd.DataFrame(rows, columns=["query", "rank", "score", "index", "item"])
