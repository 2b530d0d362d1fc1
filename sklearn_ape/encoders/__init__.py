"""Frozen, pretrained encoders as scikit-learn transformers."""

from ._base import CacheInfo
from ._errors import EncodingError
from ._open_clip import OpenCLIPImageEncoder, OpenCLIPTextEncoder
from ._registry import EncoderInfo, list_encoders
from ._timm import TimmImageEncoder
from ._transformers_image import TransformersImageEncoder
from ._transformers_text import TransformersTextEncoder

__all__ = [
    "CacheInfo",
    "EncoderInfo",
    "EncodingError",
    "OpenCLIPImageEncoder",
    "OpenCLIPTextEncoder",
    "TimmImageEncoder",
    "TransformersImageEncoder",
    "TransformersTextEncoder",
    "list_encoders",
]
