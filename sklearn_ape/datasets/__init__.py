"""Loaders of captioned images from packaged collections, folders, tables and tar shards.

Loaders return a :class:`~sklearn.utils.Bunch` whose ``images`` and ``captions`` can be passed to
``fit``. They list images without opening them; encoders open them batch by batch. For data that
do not fit on disk as files, `load_webdataset` reads tar shards.
"""

from ._debian import load_openclipart, load_tuxpaint_stamps
from ._emoji import load_noto_emoji, load_openmoji
from ._iconify import load_iconify
from ._image_folder import load_image_folder
from ._imagenet_captions import load_imagenet_captions
from ._webdataset import load_webdataset, write_webdataset
from .base import get_data_home
from .table import load_pairs

__all__ = [
    "get_data_home",
    "load_iconify",
    "load_image_folder",
    "load_imagenet_captions",
    "load_noto_emoji",
    "load_openclipart",
    "load_openmoji",
    "load_pairs",
    "load_tuxpaint_stamps",
    "load_webdataset",
    "write_webdataset",
]
