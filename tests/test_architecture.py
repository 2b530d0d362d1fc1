"""Structure of the package: module sizes, imports of private modules and import chains."""

import ast
import sys
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sklearn_ape

ROOT = Path(sklearn_ape.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# Limit of the longest chain of files in which each imports the next.
MAX_CHAIN = 16
MAX_LINES = 500


REQUIRED = {
    canonicalize_name(requirement.name)
    for requirement in map(Requirement, requires("sklearn-ape"))
    if not requirement.marker
}


@cache  # it takes two seconds
def find_distributions():
    """Return the canonical names of the distributions that hold each package."""
    found = packages_distributions()
    return {package: set(map(canonicalize_name, names)) for package, names in found.items()}


def module_name(file):
    parts = ("sklearn_ape", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def statements(body):
    """Yield the statements that run when a module is imported."""
    for statement in body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            continue
        yield statement
        if isinstance(statement, (ast.If, ast.Try)):
            yield from statements([*statement.body, *statement.orelse])


@cache
def imports(module):
    """Return the modules of the package that a module imports when it is imported."""
    file = MODULES[module]
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    names = set()
    for statement in statements(ast.parse(file.read_text(encoding="utf-8")).body):
        if not isinstance(statement, ast.ImportFrom) or not statement.level:
            continue
        base = package[: len(package) - statement.level + 1]
        source = ".".join([*base, *([statement.module] if statement.module else [])])
        for alias in statement.names:
            submodule = f"{source}.{alias.name}"
            names.add(submodule if submodule in MODULES else source)
    return frozenset(names - {module, "sklearn_ape"})


@cache
def longest_chain(module):
    return (*max((longest_chain(name) for name in imports(module)), key=len, default=()), module)


def owner(module):
    """Return the package that a private module belongs to, or None for a public module."""
    parts = module.split(".")
    private = [index for index, part in enumerate(parts) if part.startswith("_")]
    return ".".join(parts[: private[0]]) if private else None


@pytest.mark.parametrize("module", MODULES)
def test_module_has_at_most_500_lines(module):
    n_lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_LINES


@pytest.mark.parametrize("module", MODULES)
def test_private_modules_are_imported_within_their_package(module):
    foreign = [
        name
        for name in imports(module)
        if owner(name) not in (None, "sklearn_ape")
        and not f"{module}.".startswith(f"{owner(name)}.")
    ]
    assert not foreign


@pytest.mark.parametrize("module", MODULES)
def test_home_folder_is_found_without_errors(module):
    """`expand_user` returns the path of an unknown user; the method of Path raises an error."""
    assert ".expanduser()" not in MODULES[module].read_text(encoding="utf-8")


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_only_required_packages(module):
    """Packages of extras are imported inside the functions that use them."""
    names = set()
    for statement in statements(ast.parse(MODULES[module].read_text(encoding="utf-8")).body):
        if isinstance(statement, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            names.add(statement.module.partition(".")[0])
    for name in names - sys.stdlib_module_names - {"sklearn_ape"}:
        assert REQUIRED & find_distributions()[name], name


def test_import_chains_are_short():
    # An import cycle would raise a RecursionError.
    chain = max(map(longest_chain, MODULES), key=len)
    assert len(chain) <= MAX_CHAIN, " <- ".join(chain)
