"""What computes a frozen network: torch itself, or a faster runtime for the same graph."""

from ._base import ENGINES, Engine, Workload, chosen_engine
from ._factory import engine_for

__all__ = ["ENGINES", "Engine", "Workload", "chosen_engine", "engine_for"]
