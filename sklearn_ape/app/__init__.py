"""Web app to try an aligner in a browser: image classification, image search, alignment."""

from ._limits import Limits
from ._server import Running, build_app, serve

__all__ = ["Limits", "Running", "build_app", "serve"]
