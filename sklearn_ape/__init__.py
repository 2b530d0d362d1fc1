"""Align two frozen, pretrained encoders with a small trained head, the scikit-learn way."""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aligners import (
        APEAligner,
        ASIFAligner,
        CCAAligner,
        CLIPAligner,
        KernelAligner,
        LiTAligner,
    )
    from .aligners.kernel import load_starter
    from .persistence import load_pretrained
    from .retrieval import CrossModalRetriever
    from .zero_shot import MultiLabelZeroShotClassifier, ZeroShotClassifier

__version__ = _version("sklearn-ape")

__all__ = [
    "APEAligner",
    "ASIFAligner",
    "CCAAligner",
    "CLIPAligner",
    "CrossModalRetriever",
    "KernelAligner",
    "LiTAligner",
    "MultiLabelZeroShotClassifier",
    "ZeroShotClassifier",
    "__version__",
    "load_pretrained",
    "load_starter",
]

# Resolved on first use: skorch alone would double the time of `import sklearn_ape`.
_PUBLIC = {
    "APEAligner": ".aligners",
    "ASIFAligner": ".aligners",
    "CCAAligner": ".aligners",
    "CLIPAligner": ".aligners",
    "CrossModalRetriever": ".retrieval",
    "KernelAligner": ".aligners",
    "LiTAligner": ".aligners",
    "MultiLabelZeroShotClassifier": ".zero_shot",
    "ZeroShotClassifier": ".zero_shot",
    "load_pretrained": ".persistence",
    "load_starter": ".aligners.kernel",
}
_SUBMODULES = (
    "aligners",
    "app",
    "cli",
    "curation",
    "datasets",
    "devices",
    "encoders",
    "features",
    "heads",
    "inspection",
    "losses",
    "metrics",
    "persistence",
    "prompts",
    "recipes",
    "retrieval",
    "training",
    "utils",
    "zero_shot",
)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name], __name__), name)
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
