"""The heads of a fitted aligner as ONNX."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._caller_state import default_state
from .._unit import unit
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
        return unit(self.head(features))


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
