"""Content-addressed stores for the features of frozen encoders.

A frozen encoder always gives the same feature for the same content, so a feature is worth
computing once. Keys are digests of everything the feature depends on; a renamed image is
therefore found again and a changed one is not.
"""

from ._disk import DiskFeatureCache
from ._file import FileLockedError, OtherContentError
from ._memory import FeatureCache, MemoryFeatureCache
from ._open import open_cache

__all__ = [
    "DiskFeatureCache",
    "FeatureCache",
    "FileLockedError",
    "MemoryFeatureCache",
    "OtherContentError",
    "open_cache",
]
