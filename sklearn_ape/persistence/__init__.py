"""Saving and loading of models as folders of JSON and safetensors, without pickle."""

from .hub import load_pretrained
from .mixins import FittedState, PretrainedMixin, SerializableMixin

__all__ = ["FittedState", "PretrainedMixin", "SerializableMixin", "load_pretrained"]
