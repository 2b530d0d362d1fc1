"""Frozen, pretrained encoders as scikit-learn transformers."""

from ._base import CacheInfo
from ._errors import EncodingError, EncodingFailedWarning
from ._head_pairs import HeadPairs, classifier_head_pairs
from ._open_clip import OpenCLIPImageEncoder, OpenCLIPTextEncoder
from ._registry import EncoderInfo, list_encoders
from ._timm import TimmImageEncoder
from ._transformers_image import TransformersImageEncoder
from ._transformers_text import TransformersTextEncoder

__all__ = [
    "CacheInfo",
    "EncoderInfo",
    "EncodingError",
    "EncodingFailedWarning",
    "HeadPairs",
    "OpenCLIPImageEncoder",
    "OpenCLIPTextEncoder",
    "TimmImageEncoder",
    "TransformersImageEncoder",
    "TransformersTextEncoder",
    "classifier_head_pairs",
    "list_encoders",
]
