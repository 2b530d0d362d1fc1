"""What computes a frozen network: torch itself, or a faster runtime for the same graph."""

from ._base import ENGINES, Engine, Workload, choose_engine
from ._factory import make_engine

__all__ = ["ENGINES", "Engine", "Workload", "choose_engine", "make_engine"]
