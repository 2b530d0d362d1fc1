"""Fixtures of other folders that the robustness tests also use."""

from tests.features.conftest import folder as cache_folder
from tests.persistence.conftest import saved

__all__ = ["cache_folder", "saved"]
