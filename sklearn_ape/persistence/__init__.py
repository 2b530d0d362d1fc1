"""Models as folders that can be shared: JSON, safetensors and a model card, never a pickle."""

from ._hub import load_pretrained
from ._recordable import Recordable
from ._shareable import Shareable
from ._state import State

__all__ = ["Recordable", "Shareable", "State", "load_pretrained"]
