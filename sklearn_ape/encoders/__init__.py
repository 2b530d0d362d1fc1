"""Frozen, pretrained encoders as scikit-learn transformers."""

from ._encoding import CacheInfo
from ._open_clip import OpenCLIPImageEncoder, OpenCLIPTextEncoder
from ._sentence_transformers import SentenceTransformerEncoder, SentenceTransformerImageEncoder
from ._timm import TimmImageEncoder
from ._transformers import TransformersImageEncoder, TransformersTextEncoder
from .head_pairs import HeadPairs, classifier_head_pairs
from .items import EncodingError, EncodingFailedWarning
from .weights import EncoderInfo, list_encoders

__all__ = [
    "CacheInfo",
    "EncoderInfo",
    "EncodingError",
    "EncodingFailedWarning",
    "HeadPairs",
    "OpenCLIPImageEncoder",
    "OpenCLIPTextEncoder",
    "SentenceTransformerEncoder",
    "SentenceTransformerImageEncoder",
    "TimmImageEncoder",
    "TransformersImageEncoder",
    "TransformersTextEncoder",
    "classifier_head_pairs",
    "list_encoders",
]
