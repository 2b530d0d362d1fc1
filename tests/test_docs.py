"""The documentation names everything that is public, and no page of it is out of reach.

`make docs` builds it, with warnings as errors. What a build cannot see is looked for here.
"""

import importlib
import pkgutil
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

import sklearn_ape

DOCS = Path(__file__).parents[1] / "docs"
MODULES = [
    "sklearn_ape",
    *(
        module.name
        for module in pkgutil.walk_packages(sklearn_ape.__path__, "sklearn_ape.")
        if not any(part.startswith("_") for part in module.name.split("."))
    ),
]
PAGES = sorted(path for path in DOCS.glob("*") if path.suffix in (".md", ".rst"))


def listed_names():
    """Return the full names that autosummary lists in the API page."""
    names, module = [], ""
    for line in (DOCS / "api.rst").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = match[1]
        elif match := re.fullmatch(r"   ([A-Za-z]\w*)", line):
            names.append(f"{module}.{match[1]}")
    return names


def resolved(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


class TestReference:
    @pytest.mark.parametrize("module", MODULES)
    def test_every_public_name_is_listed(self, module):
        listed = {(name.rpartition(".")[2], id(resolved(name))) for name in listed_names()}
        imported = importlib.import_module(module)
        missing = [
            name
            for name in getattr(imported, "__all__", [])
            if name != "__version__" and (name, id(getattr(imported, name))) not in listed
        ]
        assert not missing, f"docs/api.rst does not list these names of {module}: {missing}"

    def test_nothing_is_listed_twice(self):
        listed = listed_names()
        assert len(set(listed)) == len(listed)


def linked_pages():
    """Return the pages that a toctree names."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    entries = {line.strip() for tree in trees for line in tree.splitlines()}
    return {re.sub(r".*<(.*)>", r"\1", entry) for entry in entries if not entry.startswith(":")}


class TestPages:
    @pytest.mark.parametrize(
        "page", [page for page in PAGES if page.stem != "index"], ids=lambda page: page.name
    )
    def test_page_is_in_a_toctree(self, page):
        listed = any(fnmatch(page.stem, pattern) for pattern in linked_pages())
        assert listed, f"no toctree of docs/ names {page.name}"

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_links_lead_somewhere(self, page):
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", text):
            there = (DOCS / link).exists() or link.startswith(("auto_examples/", "generated/"))
            assert there, f"{page.name} links to {link}, which is not there"
