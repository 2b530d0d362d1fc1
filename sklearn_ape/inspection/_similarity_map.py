"""Map of the similarity of the parts of an image with texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ..aligners.wrapper import resolve_aligner, unwrap
from ..heads import TwoTower
from ..utils.validation import check_sequence
from ._plotting import format_text, get_axes

# Largest relative difference of a nonlinear head's output that is rounding.
_TOLERANCE = 1e-3

# Standard deviation of the blur, as a share of the image's side. Single cells are noisy: without
# the blur, the peak was in the right quadrant for 75 instead of 83 % of 400 collages.
_BLUR = 1 / 7


@dataclass(eq=False, repr=False)
class SimilarityMapDisplay:
    """Where an image is similar to texts.

    The image is divided into the cells of the grid on which its encoder computes features. The
    cosine of the image with a text is the mean of the values of its cells, so that the map shows
    which parts of the image contribute to it. Create it with `from_estimator`.

    Parameters
    ----------
    maps : ndarray of shape (n_texts, n_rows, n_columns)
        Value of each cell.
    image : ndarray of shape (height, width, 3) and dtype uint8
        The part of the image that the encoder sees.
    texts : sequence of str of length n_texts
        Texts.

    Attributes
    ----------
    ims_ : list of matplotlib.image.AxesImage
        Artists of the maps.
    axes_ : ndarray of matplotlib.axes.Axes of shape (n_texts + 1,)
        Axes of the image and of each map.
    figure_ : matplotlib.figure.Figure
        Figure of the display.

    See Also
    --------
    SimilarityMatrixDisplay : Similarities of whole images with texts.

    Notes
    -----
    Encoders compute each cell from a part of the image that is larger than the cell, and the maps
    are blurred, because single cells are noisy. The colors of all maps have the same scale, which
    is symmetric around zero.

    References
    ----------
    .. [1] B. Zhou, A. Khosla, A. Lapedriza, A. Oliva and A. Torralba, "Learning Deep Features for
       Discriminative Localization", CVPR 2016.

    Examples
    --------
    >>> from skimage import data
    >>> from sklearn_ape.inspection import SimilarityMapDisplay
    >>> display = SimilarityMapDisplay.from_estimator(None, data.coffee(), ["a cup of coffee"])
    >>> display.maps.shape
    (1, 7, 7)
    """

    maps: np.ndarray
    image: np.ndarray
    texts: Sequence[str]
    _: KW_ONLY

    @classmethod
    def from_estimator(
        cls, estimator: Any, image: Any, texts: Sequence[str], **plot_options: Any
    ) -> Self:
        """Compute the maps of an image with an aligner, and draw them.

        Parameters
        ----------
        estimator : estimator, str or None
            Fitted aligner with a `TimmImageEncoder`, or a Pipeline of these. None stands for the
            starter model.
        image : image
            A path, `PIL.Image`, array of shape (height, width, 3) or bytes.
        texts : sequence of str
            Texts, which are embedded without prompt templates.
        **plot_options : object
            Options of `plot`.

        Returns
        -------
        display : SimilarityMapDisplay

        Raises
        ------
        TypeError
            If the image encoder has no grid of features.
        ValueError
            If the aligner's map of images is not linear, such as an MLP on the image side, or the
            encoder does not pool by a mean.
        """
        maps, pixels = compute_similarity_maps(estimator, [image], texts)
        return cls(maps[0], pixels[0], list(texts)).plot(**plot_options)

    def plot(self, *, cmap: str = "RdBu_r", alpha: float = 0.6) -> Self:
        """Draw the image, and the map of each text on the image.

        Parameters
        ----------
        cmap : str, default="RdBu_r"
            Name of a matplotlib colormap.
        alpha : float, default=0.6
            Opacity of the maps.

        Returns
        -------
        display : SimilarityMapDisplay
            This display.
        """
        n_panels = len(self.texts) + 1
        figure = get_axes(None, 3 * n_panels, 3.4).figure
        figure.clear()
        self.axes_ = figure.subplots(1, n_panels, squeeze=False)[0]
        height, width = self.image.shape[:2]
        limit = float(np.abs(self.maps).max()) or 1.0
        self.ims_ = []
        for ax, text, values in zip(
            self.axes_, ["", *self.texts], [None, *self.maps], strict=True
        ):
            ax.set_axis_off()
            if values is None:
                ax.imshow(self.image)
                ax.set_title("image")
                continue
            # Without its own colors, the image does not hide those of the map.
            ax.imshow(self.image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
            ax.set_title(f"{format_text(text, lines=2)}\n{values.mean():.2f}")
            options = {"interpolation": "bilinear", "extent": (0, width, height, 0)}
            im = ax.imshow(values, cmap=cmap, alpha=alpha, vmin=-limit, vmax=limit, **options)
            self.ims_.append(im)
        figure.colorbar(self.ims_[-1], ax=self.axes_.tolist(), label="contribution to the cosine")
        self.figure_ = figure
        return self


def compute_similarity_maps(
    estimator: Any, images: Sequence[Any], texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the contribution of each cell of images to their cosines with texts.

    Parameters
    ----------
    estimator : estimator, str or None
        Fitted aligner with a `TimmImageEncoder`; see `SimilarityMapDisplay.from_estimator`.
    images : sequence of length n_images
        Images.
    texts : sequence of str of length n_texts
        Texts.

    Returns
    -------
    maps : ndarray of shape (n_images, n_texts, n_rows, n_columns)
        Contributions, blurred by a seventh of the image's side. Their mean over the cells is the
        cosine.
    pixels : ndarray of shape (n_images, height, width, 3) and dtype uint8
        The part of the images that the encoder sees.

    Examples
    --------
    >>> from skimage import data
    >>> from sklearn_ape.inspection import compute_similarity_maps
    >>> maps, _ = compute_similarity_maps(None, [data.coffee()], ["coffee", "a cat"])
    >>> maps.mean(axis=(2, 3)).shape
    (1, 2)
    """
    check_sequence(texts, "texts", "text")
    preprocessing, aligner = unwrap(resolve_aligner(estimator))
    encoder: Any = preprocessing or getattr(aligner, "image_encoder_", None)
    if not hasattr(encoder, "transform_grid"):
        raise TypeError(
            f"estimator has the image encoder {type(encoder).__name__}, which has no grid of "
            "features. Use an aligner with a TimmImageEncoder."
        )
    module = getattr(aligner, "module_", None)
    if not isinstance(module, TwoTower):
        raise TypeError(
            f"estimator has the aligner {type(aligner).__name__}, whose map of images is not a "
            "head. Use APEAligner or KernelAligner."
        )
    grid, pixels = encoder.transform_grid(images)
    embeddings = torch.from_numpy(np.asarray(aligner.transform_text(list(texts)), np.float32))
    cells, whole = _map_cells(module.image_head, torch.from_numpy(grid).flatten(1, 2))
    norm = whole.norm(dim=1)
    if ((cells.mean(dim=1) - whole).norm(dim=1) > _TOLERANCE * norm).any():
        raise ValueError(
            "estimator maps images by a nonlinear head, so that the cosine is not a mean over the "
            "image. Use APEAligner(side='text'), APEAligner() or KernelAligner."
        )
    maps = (cells / norm[:, None, None]) @ embeddings.T
    shape = (len(grid), *grid.shape[1:3], len(texts))
    maps = maps.reshape(shape).permute(0, 3, 1, 2).numpy()
    n_rows, n_columns = grid.shape[1:3]
    # Reflection at the edges leaves the mean as it is.
    sigmas = (0, 0, _BLUR * n_rows, _BLUR * n_columns)
    return gaussian_filter(maps, sigmas, mode="reflect"), pixels


@torch.inference_mode()
def _map_cells(head: torch.nn.Module, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of cells (n, n_cells, n_features) and of their means, (n, n_out).

    The mean of the cells' outputs is that of their mean if the head is affine, or affine after it
    has L2-normalized its input, as closed-form heads do. Such a head does not see the norm of a
    cell, so that the cell's output is computed from that of its direction.
    """
    features = cells.mean(dim=1)
    whole = head(features)
    output = head(cells.flatten(0, 1)).unflatten(0, cells.shape[:2])
    if (output.mean(dim=1) - whole).norm() <= _TOLERANCE * whole.norm():
        return output, whole
    # The terms that depend on the direction cancel.
    offset = ((whole + head(-features)) / 2)[:, None]
    relative_norm = cells.norm(dim=2) / features.norm(dim=1, keepdim=True)
    return offset + relative_norm[:, :, None] * (output - offset), whole
