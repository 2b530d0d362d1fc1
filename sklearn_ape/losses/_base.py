"""Base class of contrastive losses: logit scale, positive pairs and tiles."""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import product
from typing import NamedTuple

import torch
from torch import nn

from ..utils.validation import check_integer, check_number

# With tile_size="auto", up to this batch size all logits are computed at once, which is faster.
# The matrix takes 64 MiB. Larger batches are computed in tiles of 4 MiB.
MAX_DENSE_ROWS = 4096
AUTO_TILE = 1024


class ScaledLoss(nn.Module):
    """Base class of contrastive losses, with a logit scale learned as logarithm and clamped."""

    log_scale: torch.Tensor

    def __init__(
        self,
        logit_scale: float = 1 / 0.07,
        max_logit_scale: float = 100.0,
        learn_logit_scale: bool = True,
        tile_size: int | str | None = "auto",
    ) -> None:
        super().__init__()
        check_number(logit_scale, "logit_scale", 0, closed="neither")
        if max_logit_scale != math.inf:  # infinity means no bound
            check_number(max_logit_scale, "max_logit_scale", 0, closed="neither")
        check_integer(tile_size, "tile_size", 1, optional=True, auto=True)
        log_scale = torch.tensor(math.log(logit_scale))
        if learn_logit_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.max_log_scale = math.log(max_logit_scale)
        self.tile_size = tile_size

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor by which cosines are multiplied."""
        # A constant is subtracted, because `clamp` has no gradient beyond the bound and, since
        # torch 2.15, at the bound, so that the scale would stay there.
        excess = (self.log_scale.detach() - self.max_log_scale).clamp(min=0)
        return (self.log_scale - excess).exp()

    def clamp_(self) -> None:
        """Clamp the learned scale, so that it returns from its bound at once."""
        with torch.no_grad():
            self.log_scale.clamp_(max=self.max_log_scale)

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, positive: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of a batch.

        Parameters
        ----------
        image, text : torch.Tensor of shape (n_pairs, n_components)
            L2-normalized embeddings; row i of one belongs to row i of the other. Those of the less
            precise type, if types differ, are converted to the other type.
        positive : torch.Tensor or None, default=None
            Images and captions that belong together, including the diagonal: a bool matrix of
            shape (n_pairs, n_pairs) that is True at (i, j) for image i and caption j, or int64
            pairs (i, j) of shape (n_positive, 2), which take less memory. None is the diagonal
            only.

        Returns
        -------
        loss : torch.Tensor
            A scalar.

        Raises
        ------
        ValueError
            If shapes do not match, or `positive` contains an invalid row. `InfoNCELoss` also
            raises it if a row has no positive.
        TypeError
            If `positive` is neither bool nor int64.
        """
        image, text = check_embeddings(image, text)
        is_small = self.tile_size == "auto" and len(image) <= MAX_DENSE_ROWS
        if self.tile_size is None or is_small:
            return self._compute_densely(image, text, positive)
        return self.share(image, text, positive, slice(0, len(image)))

    def share(
        self, image: torch.Tensor, text: torch.Tensor, positive: torch.Tensor | None, rows: slice
    ) -> torch.Tensor:
        """Return the part of a batch's loss that is due to some rows; all parts sum to the loss.

        In distributed training, every rank has all embeddings and computes the part of its rows.

        Parameters
        ----------
        image, text : torch.Tensor of shape (n_pairs, n_components)
            Embeddings of the whole batch; see `forward`.
        positive : torch.Tensor or None
            Positives of the whole batch; see `forward`.
        rows : slice
            Rows of this part, with a start and a stop.

        Returns
        -------
        share : torch.Tensor
            A scalar. Logits are computed in tiles, or for all columns at once with
            ``tile_size=None``.
        """
        image, text = check_embeddings(image, text)
        pairs = as_pairs(positive, len(image), image.device)
        # Also tile small batches with "auto": ranks are used where memory is short.
        tile = AUTO_TILE if self.tile_size == "auto" else int(self.tile_size or len(image))
        return self._compute_share(image, text, pairs, rows, tile)

    @abstractmethod
    def _compute_densely(
        self, image: torch.Tensor, text: torch.Tensor, positive: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the result of `forward`, computed from all logits at once."""

    @abstractmethod
    def _compute_share(
        self, image: torch.Tensor, text: torch.Tensor, pairs: torch.Tensor, rows: slice, tile: int
    ) -> torch.Tensor:
        """Return the result of `share` for distinct positive pairs and a tile size."""


def check_embeddings(image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings of one type; raise ValueError if they have different or invalid shapes."""
    if image.shape != text.shape or image.ndim != 2 or not len(image):
        raise ValueError(
            "image and text need embeddings of one shape (n_pairs, n_components), not "
            f"{tuple(image.shape)} and {tuple(text.shape)}. Row i of one must belong to row i of "
            "the other."
        )
    dtype = torch.promote_types(image.dtype, text.dtype)
    return image.to(dtype), text.to(dtype)


def as_matrix(positive: torch.Tensor, n_pairs: int) -> torch.Tensor:
    """Return positives as a bool matrix of shape (n_pairs, n_pairs)."""
    positive = _validate_positive(positive, n_pairs)
    if positive.dtype == torch.bool:
        return positive
    matrix = torch.zeros(n_pairs, n_pairs, dtype=torch.bool, device=positive.device)
    matrix[positive[:, 0], positive[:, 1]] = True
    return matrix


def as_pairs(positive: torch.Tensor | None, n_pairs: int, device: torch.device) -> torch.Tensor:
    """Return positives as distinct pairs of rows, of shape (n_positive, 2)."""
    if positive is None:
        return torch.arange(n_pairs, device=device)[:, None].expand(-1, 2)
    positive = _validate_positive(positive, n_pairs)
    if positive.dtype == torch.bool:
        return positive.nonzero()
    # One number per pair: torch.unique is slower along a dimension.
    keys = torch.unique(positive[:, 0] * n_pairs + positive[:, 1])
    return torch.stack([keys // n_pairs, keys % n_pairs], dim=1)


def check_counts(image_counts: torch.Tensor, text_counts: torch.Tensor) -> None:
    """Raise an error if a row has no positive, because its target would be 0 / 0."""
    for name, counts in (("Image", image_counts), ("Caption", text_counts)):
        if not counts.all():
            raise ValueError(
                f"{name} {int((counts == 0).nonzero()[0])} of the batch has no positive. Row i of "
                "both sides belongs together, so (i, i) must be among the positives."
            )


def _validate_positive(positive: torch.Tensor, n_pairs: int) -> torch.Tensor:
    if positive.dtype == torch.bool:
        if positive.shape != (n_pairs, n_pairs):
            raise ValueError(
                f"A bool `positive` must have shape ({n_pairs}, {n_pairs}), with one row per "
                f"image and one column per caption, not {tuple(positive.shape)}."
            )
        return positive
    if positive.dtype != torch.int64:
        raise TypeError(
            "`positive` must be a bool matrix or int64 pairs of rows, not a tensor of "
            f"{positive.dtype}."
        )
    if positive.ndim != 2 or positive.shape[1] != 2:
        raise ValueError(
            "An int64 `positive` must have shape (n_positive, 2), with the rows of an image and a "
            f"caption, not {tuple(positive.shape)}. Pass a matrix as bool."
        )
    if len(positive) and not (positive.min() >= 0 and positive.max() < n_pairs):
        raise ValueError(
            f"`positive` contains rows {int(positive.min())} to {int(positive.max())}, but the "
            f"batch has rows 0 to {n_pairs - 1}."
        )
    return positive


class Tile(NamedTuple):
    """Rows and columns of a tile, and its positives relative to its first row and column."""

    rows: slice
    columns: slice
    positive: tuple[torch.Tensor, torch.Tensor]


def split_into_tiles(pairs: torch.Tensor, n_rows: int, n_columns: int, size: int) -> list[Tile]:
    """Return the tiles of a logit matrix, row by row, of at most `size` rows and columns.

    `pairs` are the distinct rows and columns of the positives.
    """
    # Not by gen_batches, which raises an error for a rank without rows.
    row_slices, column_slices = (
        [slice(start, min(start + size, n)) for start in range(0, n, size)]
        for n in (n_rows, n_columns)
    )
    tiles = list(product(row_slices, column_slices))
    tile_of_pair = pairs[:, 0] // size * len(column_slices) + pairs[:, 1] // size
    counts = torch.bincount(tile_of_pair, minlength=len(tiles)).tolist()
    parts = pairs[torch.argsort(tile_of_pair)].split(counts)
    return [
        Tile(rows, columns, (part[:, 0] - rows.start, part[:, 1] - columns.start))
        for (rows, columns), part in zip(tiles, parts, strict=True)
    ]


class Softmax:
    """Softmax cross-entropies of the rows or columns of logits that are computed tile by tile.

    The largest logit and the sum of exponentials relative to it are stored separately, as in flash
    attention. In a single number, small exponentials would be lost to rounding when the model is
    nearly certain. `side` is 0 for the rows of the logits, which are images, and 1 for their
    columns; `embeddings` are those of this side. Targets have equal weights on the positives.
    """

    def __init__(self, embeddings: torch.Tensor, pairs: torch.Tensor, side: int) -> None:
        n_items = len(embeddings)
        self.side = side
        self.weight = pairs[:, side].bincount(minlength=n_items).to(embeddings.dtype).reciprocal()
        self.largest = embeddings.new_full((n_items,), -torch.inf)
        self.total = embeddings.new_zeros(n_items)
        self.positive = embeddings.new_zeros(n_items)

    def update(self, tile: Tile, logits: torch.Tensor) -> None:
        """Add the logits of a tile."""
        items, index = tile[self.side], tile.positive[self.side]
        self.positive[items].index_add_(0, index, logits[tile.positive] * self.get_targets(tile))
        logits = logits.T if self.side else logits
        largest = torch.maximum(self.largest[items], logits.amax(dim=1))
        total = self.total[items] * (self.largest[items] - largest).exp()
        self.total[items] = total + (logits - largest[:, None]).exp_().sum(dim=1)
        self.largest[items] = largest

    def compute_losses(self) -> torch.Tensor:
        """Return the cross-entropy of every item: log-denominator minus mean positive logit."""
        return self.total.log() + (self.largest - self.positive)

    def compute_probabilities(self, tile: Tile, logits: torch.Tensor) -> torch.Tensor:
        """Return the softmax of the logits of a tile, after all tiles were added."""
        items, axis = tile[self.side], 1 - self.side
        largest, total = self.largest[items].unsqueeze(axis), self.total[items].unsqueeze(axis)
        return (logits - largest).exp_().div_(total)

    def get_targets(self, tile: Tile) -> torch.Tensor:
        """Return the target of each positive of a tile."""
        return self.weight[tile[self.side]][tile.positive[self.side]]


def refuse_second_gradients() -> None:
    """Raise an error if a tiled loss is differentiated twice; the result would be wrong."""
    if torch.is_grad_enabled():  # create_graph=True enables it in the backward pass
        raise RuntimeError(
            "A tiled loss cannot be differentiated twice (create_graph=True). Use tile_size=None."
        )


def select_pairs(pairs: torch.Tensor, rows: slice) -> torch.Tensor:
    """Return the positive pairs in a slice of rows, with rows counted from its start."""
    pairs = pairs[(pairs[:, 0] >= rows.start) & (pairs[:, 0] < rows.stop)]
    return pairs - pairs.new_tensor([rows.start, 0])
