"""Caches and files for the features of frozen encoders.

Keys are digests of everything that a feature depends on. So the features of a renamed image are
found, and those of a changed image are not.
"""

from ._disk_cache import DiskFeatureCache
from ._maintenance import DiskCacheInfo, DiskCacheReport
from .cache import FeatureCache, MemoryFeatureCache, open_cache
from .feature_file import FileLockedError, OtherContentError

__all__ = [
    "DiskCacheInfo",
    "DiskCacheReport",
    "DiskFeatureCache",
    "FeatureCache",
    "FileLockedError",
    "MemoryFeatureCache",
    "OtherContentError",
    "open_cache",
]
