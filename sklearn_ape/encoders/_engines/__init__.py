"""Engines that compute a frozen network: torch, ONNX Runtime and OpenVINO."""

from ._base import ENGINES, Engine, TorchEngine, Workload, choose_engine
from ._factory import engine_key, exports_folder, is_export_worthwhile, make_engine

__all__ = [
    "ENGINES",
    "Engine",
    "TorchEngine",
    "Workload",
    "choose_engine",
    "engine_key",
    "exports_folder",
    "is_export_worthwhile",
    "make_engine",
]
