"""The versions that the pages name are those that pyproject.toml allows and CI installs."""

import os
import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_FOR_USERS = {"docs", "dev"}
IS_LOWEST = os.environ.get("SKLEARN_APE_LOWEST") == "1"


def requirements():
    """Return what users may install, by name, with the extras that need it."""
    extras = PROJECT["optional-dependencies"].items()
    groups = [("", PROJECT["dependencies"]), *(e for e in extras if e[0] not in NOT_FOR_USERS)]
    return {
        Requirement(line).name: (Requirement(line), extra)
        for extra, lines in groups
        for line in lines
    }


def lowest(requirement):
    """Return the least version, of a requirement that has no other clause."""
    (clause,) = requirement.specifier
    assert clause.operator in (">=", "=="), requirement
    return Version(clause.version)


def table():
    """Return the rows of the page: package, lowest, newest tested, extra."""
    page = (ROOT / "docs" / "versioning.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \| ([\d.]+) \| ([\d.]+) \| ?`?(\w*)`? ?\|$", page, re.M)
    return {name: (Version(low), Version(high), extra) for name, low, high, extra in rows}


REQUIREMENTS = requirements()
TABLE = table()


class TestTable:
    def test_it_has_every_dependency_in_order(self):
        assert list(TABLE) == list(REQUIREMENTS)

    @pytest.mark.parametrize("name", REQUIREMENTS)
    def test_the_lowest_is_that_of_the_metadata(self, name):
        requirement, extra = REQUIREMENTS[name]
        assert TABLE[name][0] == lowest(requirement)
        assert TABLE[name][2] == extra

    @pytest.mark.skipif(IS_LOWEST, reason="the least versions are installed")
    @pytest.mark.parametrize("name", REQUIREMENTS)
    def test_no_newer_version_is_said_to_be_tested_than_is_here(self, name):
        try:
            installed = Version(Version(version(name)).base_version)
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
        assert TABLE[name][1] <= installed

    def test_python(self):
        page = (ROOT / "docs" / "versioning.md").read_text(encoding="utf-8")
        assert f"Python {PROJECT['requires-python'].removeprefix('>=')}" in page


@pytest.mark.skipif(not IS_LOWEST, reason="for `make test-lowest`")
@pytest.mark.parametrize("name", REQUIREMENTS)
def test_the_least_version_is_what_is_tested(name):
    """A bound that no installation could have is one that no test has tried."""
    assert Version(Version(version(name)).base_version) == lowest(REQUIREMENTS[name][0])
