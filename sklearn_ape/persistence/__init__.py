"""Models as folders that can be shared: JSON, safetensors and a model card, never a pickle."""

from .hub import load_pretrained
from .mixins import FittedState, PretrainedMixin, SerializableMixin

__all__ = ["FittedState", "PretrainedMixin", "SerializableMixin", "load_pretrained"]
