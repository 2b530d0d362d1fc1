"""Content-addressed stores for the features of frozen encoders.

A frozen encoder always gives the same feature for the same content, so a feature is worth
computing once. Keys are digests of everything the feature depends on; a renamed image is
therefore found again and a changed one is not.
"""

from ._cache import FeatureCache, MemoryFeatureCache, open_cache
from ._disk_cache import DiskFeatureCache
from .feature_file import FileLockedError, OtherContentError

__all__ = [
    "DiskFeatureCache",
    "FeatureCache",
    "FileLockedError",
    "MemoryFeatureCache",
    "OtherContentError",
    "open_cache",
]
