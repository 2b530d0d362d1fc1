"""Models as folders that can be shared: JSON, safetensors and a model card, never a pickle."""

from .hub import load_pretrained
from .mixins import Recordable, Shareable, State

__all__ = ["Recordable", "Shareable", "State", "load_pretrained"]
