"""The command line, ``sklearn-ape``: one module a command.

What is heavy (torch, the encoders) is imported inside the commands, so that ``--help`` is quick.
"""

from .main import app, main

__all__ = ["app", "main"]
