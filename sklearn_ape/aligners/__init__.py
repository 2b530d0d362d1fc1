"""Aligners: estimators that map two frozen encoders into one space."""

from .ape import APEAligner

__all__ = ["APEAligner"]
