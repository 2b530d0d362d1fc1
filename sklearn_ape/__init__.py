"""Align two frozen, pretrained encoders with a small trained head, in scikit-learn's style."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors, which cannot evaluate the table below
    from .aligners import APEAligner as APEAligner
    from .aligners import ASIFAligner as ASIFAligner
    from .aligners import CCAAligner as CCAAligner
    from .aligners import CLIPAligner as CLIPAligner
    from .aligners import KernelAligner as KernelAligner
    from .aligners import LiTAligner as LiTAligner
    from .aligners.starter import load_starter as load_starter
    from .persistence import load_pretrained as load_pretrained
    from .retrieval import CrossModalRetriever as CrossModalRetriever
    from .zero_shot import FewShotClassifier as FewShotClassifier
    from .zero_shot import MultiLabelZeroShotClassifier as MultiLabelZeroShotClassifier
    from .zero_shot import ZeroShotClassifier as ZeroShotClassifier

    __version__: str

# Public names by module. They are imported on first use, as skorch alone would double the time of
# `import sklearn_ape`.
_PUBLIC = {
    "APEAligner": ".aligners",
    "ASIFAligner": ".aligners",
    "CCAAligner": ".aligners",
    "CLIPAligner": ".aligners",
    "CrossModalRetriever": ".retrieval",
    "FewShotClassifier": ".zero_shot",
    "KernelAligner": ".aligners",
    "LiTAligner": ".aligners",
    "MultiLabelZeroShotClassifier": ".zero_shot",
    "ZeroShotClassifier": ".zero_shot",
    "load_pretrained": ".persistence",
    "load_starter": ".aligners.starter",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def _submodules() -> list[str]:
    from pkgutil import iter_modules

    names = (module.name for module in iter_modules(__path__))
    return [name for name in names if not name.startswith("_")]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # This module takes most of the time of `import sklearn_ape`, and few programs need it.
        from importlib.metadata import version

        return version("sklearn-ape")
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name], __name__), name)
    if not name.startswith("_") and name in _submodules():
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    private = {name for name in globals() if name.startswith("_")}  # without imported names
    return sorted({*private, *__all__, *_submodules()})
