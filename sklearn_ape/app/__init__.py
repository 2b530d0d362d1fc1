"""A page on which an aligner is tried: classify, search, align, in a browser on this computer."""

from ._limits import Limits
from ._server import Running, serve
from ._ui import build_app

__all__ = ["Limits", "Running", "build_app", "serve"]
