"""Real captioned pictures: packaged collections, folders and tables.

Every loader returns a :class:`~sklearn.utils.Bunch` whose ``images`` and ``captions`` go straight
into ``fit``. Pictures are named, not opened: encoders open them batch by batch.
"""

from ._base import get_data_home
from ._folder import load_image_folder
from ._imagenet_captions import load_imagenet_captions
from ._openclipart import load_openclipart
from ._openmoji import load_openmoji
from ._pairs import load_pairs
from ._tuxpaint import load_tuxpaint_stamps

__all__ = [
    "get_data_home",
    "load_image_folder",
    "load_imagenet_captions",
    "load_openclipart",
    "load_openmoji",
    "load_pairs",
    "load_tuxpaint_stamps",
]
