"""The package: metadata, imports and versions of dependencies."""

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import sklearn_ape

MODULES = [
    module.name
    for module in pkgutil.walk_packages(sklearn_ape.__path__, "sklearn_ape.")
    if not any(part.startswith("_") for part in module.name.split("."))
]


def test_import_loads_no_heavy_library():
    """`import sklearn_ape` must be fast in every worker, so it does not import torch."""
    libraries = ["torch", "skorch", "transformers", "timm", "open_clip", "pandas", "sklearn"]
    libraries += ["numpy", "PIL", "importlib.metadata", "pkgutil"]
    code = (
        "import sys; before = set(sys.modules); import sklearn_ape; "
        f"print(sorted({{*{libraries}}} & (set(sys.modules) - before)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_version_is_that_of_the_metadata():
    """The version is read on first use."""
    assert sklearn_ape.__version__ == version("sklearn-ape")


@pytest.mark.exhaustive
def test_every_public_submodule_is_an_attribute():
    """Public modules can be used without a separate import, and `app` without gradio."""
    names = {module.split(".")[1] for module in MODULES}
    code = (
        "import sys, sklearn_ape; assert 'sklearn_ape.app' not in sys.modules; "
        f"assert {names} <= set(dir(sklearn_ape)); "
        f"print(all(getattr(sklearn_ape, name) for name in {names})); "
        "print(sklearn_ape.app.build_app.__name__, 'gradio' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["True", "build_app", "False"]


def test_public_names_resolve():
    for name in sklearn_ape.__all__:
        assert getattr(sklearn_ape, name) is not None
        assert name in dir(sklearn_ape)
    assert "import_module" not in dir(sklearn_ape)  # as completed by a notebook
    with pytest.raises(AttributeError, match="no attribute 'APEAlinger'"):
        _ = sklearn_ape.APEAlinger


def test_names_for_type_checkers_agree_with_lazy_names():
    """The imports under TYPE_CHECKING and the table of lazy imports list the same names."""
    tree = ast.parse(inspect.getsource(sklearn_ape))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    names = {node.names[0].name: f".{node.module}" for node in imports}
    assert names == sklearn_ape._PUBLIC


@pytest.mark.parametrize("module", MODULES)
def test_every_public_class_and_function_is_documented(module):
    imported = importlib.import_module(module)
    for name in getattr(imported, "__all__", []):
        item = getattr(imported, name)
        if not (inspect.isclass(item) or inspect.isfunction(item)):
            continue
        text = inspect.getdoc(item) or ""
        assert text, f"{module}.{name}"
        is_exception = inspect.isclass(item) and issubclass(item, Exception)
        if is_exception and "__init__" not in vars(item):
            continue  # exceptions have no signature before Python 3.13
        parameters = [
            parameter
            for parameter in inspect.signature(item).parameters
            if parameter not in ("self", "args", "kwargs")
        ]
        if parameters and not hasattr(item, "_fields") and item.__module__.startswith(module):
            assert "Parameters\n----------" in text, f"{module}.{name}"


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_FOR_USERS = {"docs", "dev"}
IS_LOWEST = os.environ.get("SKLEARN_APE_LOWEST") == "1"


def requirements():
    """Return the dependencies by name, with the extras that need them."""
    extras = PROJECT["optional-dependencies"].items()
    groups = [("", PROJECT["dependencies"]), *(e for e in extras if e[0] not in NOT_FOR_USERS)]
    return {
        Requirement(line).name: (Requirement(line), extra)
        for extra, lines in groups
        for line in lines
    }


def lowest(requirement):
    """Return the lowest version of a requirement, which must not have other bounds."""
    (clause,) = requirement.specifier
    assert clause.operator in (">=", "=="), requirement
    return Version(clause.version)


def table():
    """Return the rows of the page: package, lowest version, newest tested version and extra."""
    page = (ROOT / "docs" / "versioning.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \| ([\d.]+) \| ([\d.]+) \| ?`?([\w-]*)`? ?\|$", page, re.M)
    return {name: (Version(low), Version(high), extra) for name, low, high, extra in rows}


REQUIREMENTS = requirements()
TABLE = table()


class TestTable:
    def test_table_has_every_dependency_in_order(self):
        assert list(TABLE) == list(REQUIREMENTS)

    @pytest.mark.parametrize("name", REQUIREMENTS)
    def test_lowest_version_is_that_of_the_metadata(self, name):
        requirement, extra = REQUIREMENTS[name]
        assert TABLE[name][0] == lowest(requirement)
        assert TABLE[name][2] == extra

    @pytest.mark.skipif(IS_LOWEST, reason="the least versions are installed")
    @pytest.mark.parametrize("name", REQUIREMENTS)
    def test_newest_tested_version_is_not_newer_than_installed(self, name):
        try:
            installed = Version(Version(version(name)).base_version)
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
        assert TABLE[name][1] <= installed

    def test_python_versions_are_those_of_the_metadata(self):
        page = (ROOT / "docs" / "versioning.md").read_text(encoding="utf-8")
        assert f"Python {PROJECT['requires-python'].removeprefix('>=')}" in page


@pytest.mark.skipif(not IS_LOWEST, reason="for `make test-lowest`")
@pytest.mark.parametrize("name", REQUIREMENTS)
def test_lowest_version_is_installed_in_lowest_environment(name):
    """The lowest versions are tested in an environment that has exactly these versions."""
    assert Version(Version(version(name)).base_version) == lowest(REQUIREMENTS[name][0])
