"""Export of aligners to ONNX files and to the interface of open_clip models."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..devices import default_state
from ..encoders.image_encoder import ImageEncoder, OnPixels
from ..utils.files import expand_user
from ..utils.messages import import_optional
from ..utils.sklearn_compat import unfreeze
from ..utils.validation import check_sequence
from ._base import BaseAligner
from .clip import CLIPAligner
from .lit import LiTAligner
from .wrapper import unwrap

# Largest difference of an embedding in ONNX Runtime. It is checked for several numbers of rows,
# because the number of rows is dynamic in the file.
_MAX_DIFFERENCE = 1e-5
_N_ROWS = (1, 7, 64)

_PADDING = 0


def export_onnx(aligner: Any, folder: str | os.PathLike[str]) -> None:
    """Write both heads of a fitted aligner as ONNX files.

    Parameters
    ----------
    aligner : APEAligner, KernelAligner or CCAAligner
        The fitted aligner.
    folder : str or path-like
        Folder of the files ``image_head.onnx`` and ``text_head.onnx``, which are replaced if
        they exist. Their input is ``features``, float32 of shape (n, n_features). Their output
        is ``embeddings``, L2-normalized float32 of shape (n, n_components). n is dynamic.

    Raises
    ------
    ImportError
        If onnx, onnxscript or onnxruntime is not installed.
    TypeError
        If the aligner is of another class, whose embeddings are not computed by a network.
    ValueError
        If the embeddings of ONNX Runtime and of the aligner differ by more than 1e-5. Files are
        not written then.

    See Also
    --------
    as_open_clip : Use an aligner as an open_clip model.

    Notes
    -----
    The encoders are not exported. Use the tools of their libraries for them. The ONNX format is
    limited to files of 2 GB.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from sklearn_ape import KernelAligner
    >>> from sklearn_ape.aligners import export_onnx
    >>> rng = np.random.default_rng(0)
    >>> features = rng.standard_normal((50, 6))
    >>> aligner = KernelAligner().fit(features, features[:, :4])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export_onnx(aligner, folder)
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['image_head.onnx', 'text_head.onnx']
    """
    if not hasattr(aligner, "_make_network"):
        raise TypeError(
            "aligner must be an APEAligner, KernelAligner or CCAAligner, not "
            f"{type(aligner).__name__}."
        )
    check_is_fitted(aligner)
    for package in ("onnx", "onnxruntime", "onnxscript"):
        import_optional(package, extra="onnx", purpose="export_onnx")
    target = expand_user(folder)
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    sizes = {"image": aligner.n_features_in_, "text": aligner.n_text_features_in_}
    try:
        # Written to a temporary folder first, so that a failed export leaves existing files in
        # place.
        with tempfile.TemporaryDirectory(prefix=".onnx-", dir=target) as temporary_folder:
            for side, n_features in sizes.items():
                path = Path(temporary_folder) / f"{side}_head.onnx"
                _export(aligner._make_network(side), n_features, path)
                _check_embeddings(path, n_features, partial(aligner._embed, side))
            for path in Path(temporary_folder).glob("*_head.onnx"):
                path.replace(target / path.name)
    finally:
        if is_new:
            with suppress(OSError):  # the folder is not empty unless the export failed
                target.rmdir()


def _export(module: nn.Module, n_features: int, path: Path) -> None:
    with warnings.catch_warnings(), default_state(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(2, n_features),),
            path,
            input_names=["features"],
            output_names=["embeddings"],
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            external_data=False,
            verbose=False,
        )


def _check_embeddings(path: Path, n_features: int, embed: Any) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for n_rows in _N_ROWS:
        # Features have rows of different norms.
        rows = rng.standard_normal((n_rows, n_features)) * 10.0 ** rng.uniform(-1, 1, (n_rows, 1))
        rows = rows.astype(np.float32)
        embeddings = session.run(None, {"features": rows})[0]
        difference = float(np.abs(embeddings - embed(rows)).max())
        if not difference <= _MAX_DIFFERENCE:
            raise ValueError(
                f"{path.name} gives embeddings in ONNX Runtime that differ from the aligner's by "
                f"up to {difference:.2g}. No files were written."
            )


class OpenCLIPShape(NamedTuple):
    """Result of `as_open_clip`, with the interface of open_clip.

    Parameters
    ----------
    model : torch.nn.Module
        Model with the methods ``encode_image`` and ``encode_text`` and the parameter
        ``logit_scale``.
    transform : callable
        Function that converts an image to a tensor.
    tokenizer : callable
        Function that converts texts to a tensor.
    """

    model: nn.Module
    transform: Any
    tokenizer: Any


def as_open_clip(aligner: Any) -> OpenCLIPShape:
    """Return a fitted aligner as an open_clip model, its transform and its tokenizer.

    Evaluations of open_clip models, such as CLIP_benchmark [1]_, can then be run on aligners.

    Parameters
    ----------
    aligner : estimator
        A fitted aligner with an image encoder and a text encoder, or a Pipeline of an image
        encoder and an aligner with a text encoder. Either may be in a FrozenEstimator.

    Returns
    -------
    shape : OpenCLIPShape
        Named tuple ``(model, transform, tokenizer)``. The model computes without gradients on
        the device of the encoders, and returns tensors on the device of the input. Embeddings
        are L2-normalized, and ``logit_scale`` is a logarithm, as in open_clip.

    Raises
    ------
    TypeError
        If `aligner` is not an aligner of sklearn_ape, or a Pipeline that ends in one.
    ValueError
        If the aligner takes features rather than images and texts.

    See Also
    --------
    CLIPAligner : Use an open_clip model as an aligner.
    export_onnx : Export the heads to ONNX.

    Notes
    -----
    The tokenizer returns the bytes of the texts. The tokenizer of the text encoder is applied
    within the model, so that all text encoders are supported. The results are those of the
    aligner, independent of the caller's torch settings: autocast, under which evaluations often
    run models, does not affect the encoders and heads. Their precision is set by the `dtype` of
    the encoders.

    References
    ----------
    .. [1] M. Cherti and R. Beaumont, "CLIP benchmark", 2022.
       https://github.com/LAION-AI/CLIP_benchmark

    Examples
    --------
    >>> from sklearn_ape import KernelAligner
    >>> from sklearn_ape.aligners import as_open_clip
    >>> from sklearn_ape.datasets import load_openmoji
    >>> from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder
    >>> data = load_openmoji()
    >>> aligner = KernelAligner(
    ...     image_encoder=TimmImageEncoder(), text_encoder=TransformersTextEncoder()
    ... ).fit(data.images[:20], data.captions[:20])
    >>> model, transform, tokenizer = as_open_clip(aligner)
    >>> pixels = transform(data.images[0]).unsqueeze(0)
    >>> pixels.shape
    torch.Size([1, 3, 224, 224])
    >>> cosines = model.encode_image(pixels) @ model.encode_text(tokenizer(data.captions[:20])).T
    >>> cosines.argmax().item()
    0
    """
    encoder, inner = unwrap(aligner)
    if not isinstance(inner, BaseAligner):
        raise TypeError(
            f"aligner must be an aligner of sklearn_ape, or a Pipeline that ends in one, not "
            f"{type(inner).__name__}."
        )
    if isinstance(encoder, Pipeline):
        raise ValueError(
            f"aligner is a Pipeline of {len(encoder.steps) + 1} steps. Pass a Pipeline of an "
            "image encoder and an aligner."
        )
    check_is_fitted(inner)
    encoder = unfreeze(encoder or _find_encoder(inner, "image"))
    if not isinstance(encoder, ImageEncoder):
        raise ValueError(
            f"aligner is a {type(inner).__name__} without an image encoder of sklearn_ape. Fit it "
            "with image_encoder=TimmImageEncoder(...), or pass the Pipeline of encoder and "
            "aligner."
        )
    if _find_encoder(inner, "text") is None:
        raise ValueError(
            f"aligner is a {type(inner).__name__} that was fitted on features of texts. Fit it on "
            "captions, with a text_encoder."
        )
    encoder._check_parameters()
    encoder._make_pixel_network(encoder._get_network())  # raises an error if there is none
    return OpenCLIPShape(_Model(inner, encoder), _Transform(encoder), _tokenize)


def _find_encoder(aligner: BaseAligner, side: str) -> Any:
    """Return the encoder that a fitted aligner uses, or None if it was fitted on features."""
    # CLIPAligner is not fitted, and LiTAligner trains a copy of its text encoder.
    is_parameter = isinstance(aligner, CLIPAligner) or (
        side == "text" and isinstance(aligner, LiTAligner)
    )
    return getattr(aligner, f"{side}_encoder" if is_parameter else f"{side}_encoder_", None)


class _Model(nn.Module):
    """Model whose inputs are the outputs of `_Transform` and `_tokenize`."""

    def __init__(self, aligner: BaseAligner, encoder: ImageEncoder) -> None:
        super().__init__()
        # Not submodules: `to` or `half` would change the network, which all encoders share.
        self._aligner = aligner
        self._encoder = encoder
        with default_state():
            scale = torch.tensor(float(aligner.logit_scale_)).log()
        self.logit_scale = nn.Parameter(scale, requires_grad=False)

    @default_state()
    @torch.no_grad()
    def encode_image(
        self, image: torch.Tensor | Sequence[torch.Tensor], normalize: bool = True
    ) -> torch.Tensor:
        """Embed transformed images of shape (n, 3, height, width), or a list of images.

        Embeddings are always L2-normalized. `normalize` is accepted because callers of open_clip
        pass it.
        """
        pixels = image if isinstance(image, torch.Tensor) else torch.stack(list(image))
        network = self._encoder._get_network()
        module = OnPixels(self._encoder._make_pixel_network(network), None, self._encoder.views)
        dtype = self._encoder.dtype_
        options = {"dtype": getattr(torch, dtype), "enabled": dtype != "float32"}
        with torch.autocast(network.device.type, **options):
            features = module(pixels.to(network.device, torch.float32)).float()
        embeddings = self._aligner._embed_valid("image", features.cpu().numpy())
        return torch.from_numpy(embeddings).to(pixels.device)

    @default_state()
    @torch.no_grad()
    def encode_text(self, text: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        """Embed tokenized texts."""
        texts = [_decode(row) for row in text.cpu().numpy()]
        embeddings = np.asarray(self._aligner.transform_text(texts), dtype=np.float32)
        return torch.from_numpy(embeddings).to(text.device)

    def forward(
        self, image: Any = None, text: Any = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        """Return the embeddings of images and texts, and the logit scale."""
        return (
            None if image is None else self.encode_image(image),
            None if text is None else self.encode_text(text),
            self.logit_scale.exp(),
        )


class _Transform:
    """Preprocessing of the encoder: an image as a tensor of shape (3, height, width).

    If the encoder has several views, the shape is (n_views, 3, height, width).
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        self._encoder = encoder
        network = encoder._get_network()
        self._preprocessing = encoder._get_preprocessing(network.prepare)

    @default_state()
    def __call__(self, image: Any) -> torch.Tensor:
        prepared = self._encoder._prepare_item(self._encoder._get_network().prepare, image)
        normalize = OnPixels(nn.Identity(), self._preprocessing).normalize
        if self._encoder.views == 1:
            return normalize(prepared.unsqueeze(0))[0].contiguous()
        return normalize(prepared).contiguous()


@default_state()
def _tokenize(texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
    """Return the bytes of texts plus 1, padded with 0."""
    if isinstance(texts, str):  # the tokenizers of open_clip accept a str
        texts = [texts]
    check_sequence(texts, "texts", "text")
    rows = [torch.tensor(list(text.encode()), dtype=torch.long) + 1 for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_PADDING)


def _decode(row: np.ndarray) -> str:
    return bytes((row[row != _PADDING] - 1).astype(np.uint8)).decode(errors="replace")
