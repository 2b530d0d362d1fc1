"""A page on which an aligner is tried: classify, search, align, in a browser on this computer."""

from ._limits import Limits
from ._page import build_app
from ._serve import Running, serve

__all__ = ["Limits", "Running", "build_app", "serve"]
