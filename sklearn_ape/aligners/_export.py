"""Export of aligners: ONNX files, and models in the shape of open_clip."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..encoders.image_encoder import ImageEncoder, OnPixels
from ..features.validation import embed_rows
from ..utils.linalg import l2_normalize
from ..utils.torch_state import default_state
from ..utils.validation import check_sequence
from ._base import BaseAligner
from .ape import APEAligner
from .cca import CCAAligner
from .kernel import KernelAligner

_MOST_DIFFERENCE = 1e-5


_ROWS = (1, 7, 64)


def export_onnx(aligner: Any, folder: str | os.PathLike[str]) -> None:
    """Write both heads of a fitted aligner as ONNX: features in, embeddings of length 1 out.

    Parameters
    ----------
    aligner : APEAligner, KernelAligner or CCAAligner
        Fitted.
    folder : str or path-like
        Made when it does not exist. ``image_head.onnx`` and ``text_head.onnx`` in it are
        replaced. Their input is ``features``, float32 of shape (n, n_features), their output
        ``embeddings``, float32 of shape (n, n_components); n is free.

    Raises
    ------
    ImportError
        When onnx, onnxscript or onnxruntime is not installed.
    TypeError
        For other aligners, whose answers are no network of features.
    ValueError
        When ONNX Runtime gives other embeddings than the aligner, by more than 1e-5; nothing is
        written then.

    Notes
    -----
    The encoders are not in it: export those with the tools of their own libraries. Files above
    2 GB are beyond ONNX's format.

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
    if not isinstance(aligner, APEAligner | KernelAligner | CCAAligner):
        raise TypeError(
            f"Only the heads of APEAligner, KernelAligner and CCAAligner are exported, not those "
            f"of {type(aligner).__name__}."
        )
    check_is_fitted(aligner)
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError('export_onnx needs pip install "sklearn-ape[onnx]".') from error
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=target) as fresh:
        sides = {
            "image": (aligner.n_features_in_, aligner._embed_image),
            "text": (aligner.n_text_features_in_, aligner._embed_text),
        }
        for side, (n_features, embed) in sides.items():
            path = Path(fresh) / f"{side}_head.onnx"
            _export(_head_of(aligner, side), n_features, path)
            _compare(path, n_features, embed)
        for side in sides:
            os.replace(Path(fresh) / f"{side}_head.onnx", target / f"{side}_head.onnx")


class _Embeds(nn.Module):
    """One side of two towers."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return l2_normalize(self.head(features))


class _Projects(nn.Module):
    """A projection in double precision, as numpy computes it."""

    mean: torch.Tensor
    matrix: torch.Tensor

    def __init__(self, mean: np.ndarray, matrix: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean).double())
        self.register_buffer("matrix", torch.from_numpy(np.ascontiguousarray(matrix)).double())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        projected = (features.double() - self.mean) @ self.matrix
        length = projected.norm(dim=1, keepdim=True)
        return (projected / torch.where(length > 0, length, 1.0)).float()


def _head_of(aligner: Any, side: str) -> nn.Module:
    if isinstance(aligner, CCAAligner):
        return _Projects(*getattr(aligner, f"_{side}_projection"))
    return _Embeds(getattr(aligner.module_, f"{side}_head")).eval()


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


def _compare(path: Path, n_features: int, embed: Any) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for n_rows in _ROWS:
        # Of several scales, as features are.
        rows = rng.standard_normal((n_rows, n_features)) * 10.0 ** rng.uniform(-1, 1, (n_rows, 1))
        rows = rows.astype(np.float32)
        found = session.run(None, {"features": rows})[0]
        difference = float(np.abs(found - embed(rows)).max())
        if not difference <= _MOST_DIFFERENCE:
            raise ValueError(
                f"ONNX Runtime gives other embeddings than the aligner in {path.name}, by up to "
                f"{difference:.2g}: nothing is written."
            )


_PADDING = 0


class OpenCLIPShape(NamedTuple):
    """What `open_clip.create_model_and_transforms` and `get_tokenizer` return.

    Parameters
    ----------
    model : torch.nn.Module
        With ``encode_image``, ``encode_text`` and ``logit_scale``.
    transform : callable
        Turns an image into a tensor.
    tokenizer : callable
        Turns texts into a tensor.
    """

    model: nn.Module
    transform: Any
    tokenizer: Any


def as_open_clip(aligner: Any) -> OpenCLIPShape:
    """Return a fitted aligner as an open_clip model, its transform and its tokenizer.

    What evaluates open_clip models, such as CLIP_benchmark [1]_, then evaluates aligners, as it
    is.

    Parameters
    ----------
    aligner : estimator
        A fitted aligner with an image encoder and a text encoder, or a Pipeline of an image
        encoder and an aligner with a text encoder. In FrozenEstimator or not.

    Returns
    -------
    shape : OpenCLIPShape
        Named tuple ``(model, transform, tokenizer)``. The model computes without gradients, on
        the encoders' own device; tensors are returned where the input lies. Embeddings are of
        length 1, and ``logit_scale`` is a logarithm, as in open_clip.

    Raises
    ------
    ValueError
        When the aligner takes features rather than images and texts.

    Notes
    -----
    The tokenizer's numbers are the bytes of the texts: the text encoder's own tokenizer works
    within the model, so that any text encoder will do. The results are those of the aligner,
    whatever the caller's torch settings: evaluations often run models under autocast, which does
    not reach the encoders and heads. The encoders' own `dtype` sets their precision.

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
    inner, encoder = _unwrapped(aligner)
    check_is_fitted(inner)
    encoder = encoder or getattr(inner, "image_encoder_", None)
    encoder = encoder or getattr(inner, "image_encoder", None)
    if isinstance(encoder, FrozenEstimator):
        encoder = encoder.estimator
    if not isinstance(encoder, ImageEncoder):
        raise ValueError(
            f"{type(inner).__name__} has no image encoder of sklearn_ape, so there is no saying "
            "what to do with an image: fit it with image_encoder=TimmImageEncoder(...), or give "
            "the Pipeline of encoder and aligner."
        )
    has_text = getattr(inner, "text_encoder_", None) or getattr(inner, "text_encoder", None)
    if has_text is None:
        raise ValueError(
            f"{type(inner).__name__} was fitted on features of texts: fit it on captions, with a "
            "text_encoder."
        )
    encoder._check_parameters()
    return OpenCLIPShape(_Model(inner, encoder), _Transform(encoder), _tokenized)


class _Model(nn.Module):
    """Encodes what `_Transform` and `_tokenized` return."""

    def __init__(self, aligner: BaseAligner, encoder: ImageEncoder) -> None:
        super().__init__()
        # No submodules: the network is shared with all encoders of the process.
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
        """Embed transformed images, (n, 3, height, width) or a list of them."""
        pixels = image if isinstance(image, torch.Tensor) else torch.stack(list(image))
        network = self._encoder._network()
        several = pixels.ndim == 5  # views of each image
        flat = (pixels.flatten(0, 1) if several else pixels).to(network.device, torch.float32)
        flat = flat.contiguous(memory_format=torch.channels_last)
        features = self._encoder._pixel_network(network)(flat).float()
        if several:
            features = features.unflatten(0, pixels.shape[:2]).mean(dim=1)
        embeddings = embed_rows(
            features.cpu().numpy(), self._aligner._embed_image, self._aligner._n_features_out
        )
        return torch.from_numpy(embeddings).to(pixels.device)

    @default_state()
    @torch.no_grad()
    def encode_text(self, text: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        """Embed texts as the tokenizer gives them."""
        texts = [_read(row) for row in text.cpu().numpy()]
        embeddings = np.asarray(self._aligner.transform_text(texts), dtype=np.float32)
        return torch.from_numpy(embeddings).to(text.device)

    def forward(
        self, image: Any = None, text: Any = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        """Return the embeddings of both and the factor of the cosines."""
        return (
            None if image is None else self.encode_image(image),
            None if text is None else self.encode_text(text),
            self.logit_scale.exp(),
        )


class _Transform:
    """The encoder's own preprocessing of one image, as a tensor (3, height, width).

    With several views, (n_views, 3, height, width).
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        self._encoder = encoder
        network = encoder._network()
        self._preprocessing = encoder._preprocessing(network.prepare)

    @default_state()
    def __call__(self, image: Any) -> torch.Tensor:
        prepared = self._encoder._prepare(self._encoder._network().prepare, image)
        normalize = OnPixels(nn.Identity(), self._preprocessing).normalize
        if self._encoder.views == 1:
            return normalize(prepared.unsqueeze(0))[0].contiguous()
        return normalize(prepared).contiguous()


@default_state()
def _tokenized(texts: str | Sequence[str], context_length: int | None = None) -> torch.Tensor:
    """Return the bytes of texts, each plus 1, with 0 behind."""
    if isinstance(texts, str):  # as open_clip's own tokenizers take it
        texts = [texts]
    check_sequence(texts, "texts", "text")
    rows = [torch.tensor(list(text.encode()), dtype=torch.long) + 1 for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_PADDING)


def _read(row: np.ndarray) -> str:
    return bytes((row[row != _PADDING] - 1).astype(np.uint8)).decode(errors="replace")


def _unwrapped(aligner: Any) -> tuple[BaseAligner, Any]:
    """Return the aligner, and the encoder before it in a Pipeline if there is one."""
    if isinstance(aligner, FrozenEstimator):
        return _unwrapped(aligner.estimator)
    if isinstance(aligner, Pipeline):
        steps = [step for _, step in aligner.steps if step not in (None, "passthrough")]
        if len(steps) > 2:
            raise ValueError(
                "The Pipeline must be of an image encoder and an aligner; there are "
                f"{len(steps)} steps."
            )
        inner, before = _unwrapped(steps[-1])
        return inner, before or (steps[0] if len(steps) == 2 else None)
    if not isinstance(aligner, BaseAligner):
        raise ValueError(
            f"aligner must be an aligner such as APEAligner, or a Pipeline that ends in one, not "
            f"{type(aligner).__name__}."
        )
    return aligner, None
