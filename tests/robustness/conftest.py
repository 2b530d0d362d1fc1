"""Fixtures of other folders that tests of robustness use as well."""

from tests.features.conftest import folder as cache_folder
from tests.persistence.conftest import saved

__all__ = ["cache_folder", "saved"]
