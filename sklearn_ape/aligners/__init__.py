"""Aligners: estimators that map two frozen encoders into one space."""

from ._export import OpenCLIPShape, as_open_clip, export_onnx
from .ape import APEAligner
from .asif import ASIFAligner
from .cca import CCAAligner
from .clip import CLIPAligner
from .kernel import KernelAligner
from .lit import LiTAligner

__all__ = [
    "APEAligner",
    "ASIFAligner",
    "CCAAligner",
    "CLIPAligner",
    "KernelAligner",
    "LiTAligner",
    "OpenCLIPShape",
    "as_open_clip",
    "export_onnx",
]
