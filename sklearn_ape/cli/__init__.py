"""Command line ``sklearn-ape``, with one module per command.

The commands import torch, scikit-learn and NumPy in their functions, so that ``--help`` is fast.
"""

from .main import app, main

__all__ = ["app", "main"]
