"""Documentation: API reference, docstrings, pages, README snippets and examples.

`make docs` builds it with warnings as errors. These tests check what a build does not detect.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from docutils.core import publish_doctree
from numpydoc.validate import validate
from sklearn.base import BaseEstimator

import sklearn_ape
from sklearn_ape import FewShotClassifier, load_pretrained

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
        elif match := re.fullmatch(r"(?:   |\.\. py:data:: )([A-Za-z]\w*)", line):
            names.append(f"{module}.{match[1]}")
    return names


def resolved(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


# Checks of numpydoc that docstrings must pass. The others are omitted on purpose: named return
# values, summaries that start with a plural, and See Also sections are optional.
CHECKS = {
    *("GL03", "GL05", "GL06", "GL07", "GL08", "GL09", "GL10"),
    *("SS01", "SS02", "SS03", "SS04", "SS06"),
    *(f"PR{number:02}" for number in range(1, 11)),
    *("RT01", "RT03", "RT04", "RT05", "YD01", "SA02", "SA03", "SA04", "EX01"),
}
# Methods that only skorch calls, and names of which users do not create objects.
WITHOUT_EXAMPLE = {
    *("BestEpoch", "DivergenceGuard", "EpochProgress", "StopWhenPatient", "ValidationRecall"),
    *("Ranks", "Head", "BaseMap", "FeatureCache", "EncodingError"),
    *("SerializableMixin", "PretrainedMixin", "main"),  # shown in examples of subclasses
    *("EncodingFailedWarning", "FileLockedError", "OtherContentError"),
}


def is_named_tuple(item):
    return inspect.isclass(item) and issubclass(item, tuple)


def is_data(item):
    return not (inspect.isclass(item) or inspect.isfunction(item))


def documented():
    """Return all public functions and classes, and the public methods that the package defines."""
    for name in listed_names():
        item = resolved(name)
        if is_data(item):
            continue
        yield name
        if not (inspect.isclass(item) and issubclass(item, BaseEstimator)):
            continue
        for attribute, member in inspect.getmembers(item, inspect.isfunction):
            ours = member.__module__.startswith("sklearn_ape.")
            if ours and not attribute.startswith("_") and "training" not in name:
                yield f"{name}.{attribute}"


def find_faults(name):
    """Return the errors that numpydoc reports for a docstring."""
    is_method = name not in listed_names()
    item = None if is_method else resolved(name)
    excused = set()
    if is_method or is_named_tuple(item) or name.rpartition(".")[2] in WITHOUT_EXAMPLE:
        excused.add("EX01")
    if is_named_tuple(item) or getattr(item, "_is_protocol", False):
        excused.add("PR01")  # their attributes are documented instead
    return [
        f"{code} {message}"
        for code, message in validate(name)["errors"]
        if code in CHECKS - excused
    ]


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

    def test_no_name_is_listed_twice(self):
        listed = listed_names()
        assert len(set(listed)) == len(listed)


class TestDocstrings:
    @pytest.mark.parametrize("name", list(documented()))
    def test_docstring_is_complete(self, name):
        """Parameters match the signature, sections are in order, and returns are documented."""
        assert not find_faults(name)

    def test_incomplete_docstring_is_detected(self, monkeypatch):
        from sklearn_ape.prompts import fill

        monkeypatch.setattr(fill, "__doc__", fill.__doc__.replace("name : str", "label : str"))
        assert any(fault.startswith("PR") for fault in find_faults("sklearn_ape.prompts.fill"))


def linked_pages():
    """Return the pages that are listed in a toctree."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    entries = {line.strip() for tree in trees for line in tree.splitlines()}
    return {re.sub(r".*<(.*)>", r"\1", entry) for entry in entries if not entry.startswith(":")}


class TestPages:
    def test_no_page_has_a_name_that_sphinx_uses(self):
        """Sphinx would overwrite such a page, for example search.html, without a warning."""
        assert not {"search", "genindex", "modindex"} & {page.stem for page in PAGES}

    @pytest.mark.parametrize(
        "page", [page for page in PAGES if page.stem != "index"], ids=lambda page: page.name
    )
    def test_page_is_in_a_toctree(self, page):
        assert page.stem in linked_pages(), f"no toctree of docs/ names {page.name}"


ROOT = DOCS.parent
LINKING = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


def list_anchors(page):
    """Return the anchors of the headings of a Markdown file, as GitHub and MyST name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def find_broken_links(page, text):
    """Return the relative links of a page whose file or heading does not exist."""
    broken = []
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        is_built = name.startswith(("auto_examples/", "generated/"))
        if not is_built and (
            not target.exists() or (anchor and anchor not in list_anchors(target))
        ):
            broken.append(link)
    return broken


class TestLinks:
    @pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
    def test_files_and_headings_exist(self, page):
        broken = find_broken_links(page, page.read_text(encoding="utf-8"))
        assert not broken, f"{page.name} has links to files or headings that do not exist"

    def test_broken_links_are_found(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("# What `fit` learns\n```console\n# a comment\n```\n## Near-duplicates\n")
        good = "[a](page.md) [b](#what-fit-learns) [c](page.md#near-duplicates)"
        wrong = "[d](other.md) [e](#a-comment) [f](page.md#near)"
        broken = find_broken_links(page, f"{good} {wrong} [g](https://example.org/page.md)")
        assert broken == ["other.md", "#a-comment", "page.md#near"]


SNIPPETS = [
    pytest.param(snippet, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, snippet in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    )
    if ">>>" not in snippet
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_without_prompts_imports_existing_names(snippet):
    """Snippets with prompts run as doctests; others need a cluster or files of the user."""
    for node in ast.walk(ast.parse(snippet)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sklearn_ape"):
            for alias in node.names:
                assert resolved(f"{node.module}.{alias.name}") is not None


README = (ROOT / "README.md").read_text(encoding="utf-8")
README_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# Later snippets use names of earlier ones.
README_PROGRAM = "\n".join(block for block in README_BLOCKS if ">>>" not in block)


@pytest.fixture
def user_images(captioned_images, tmp_path, monkeypatch):
    """Create the folder that the snippets use: images in one subfolder per class."""
    categories = captioned_images.categories[:30]
    for image, category in zip(captioned_images.images, categories, strict=False):
        folder = tmp_path / "photos" / category
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder)
    monkeypatch.chdir(tmp_path)


def test_snippets_of_readme_run(user_images):
    names = {}
    exec(README_PROGRAM, names)
    assert len(names["photos"].images) == 30
    assert 0.5 < names["accuracy"] <= 1
    assert type(load_pretrained("my-model")) is FewShotClassifier


def test_readme_has_snippets_of_both_kinds():
    assert README_PROGRAM.count("\n") > 8
    assert README.count(">>>") > 5


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name in re.findall(
            r"[\w./*]+\.(?:py|md|rst|cfg|toml|csv)\b", (ROOT / "CONTRIBUTING.md").read_text()
        )
        if "NAME" not in name
    ),
)
def test_files_named_in_contributing_exist(name):
    assert list(ROOT.glob(name)) or list((ROOT / "sklearn_ape").rglob(name))


def test_names_in_steps_of_contributing_exist():
    steps = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("### Add an encoder")
    names = set(re.findall(r"`([A-Za-z_]\w+)`", steps[2].partition("\n## ")[0]))
    assert len(names) > 20
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("sklearn_ape", "tests")
        for path in (ROOT / folder).rglob("*.py")
    )
    assert names <= set(re.findall(r"\w+", code))


EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("plot_*.py"))
EXPECTED_OUTPUT = {
    "plot_01_photographs": ["10 of 12 photographs", "is photograph 3", "a building', 'a plant"],
    "plot_02_few_labels": ["364 images of 10 classes", "after the correction: ", "together: "],
    "plot_03_search_in_both_directions": ["of the first five", "after adding 100"],
    "plot_04_without_pairs": [
        "accuracy on 73 images",
        "with standardize=X",
        "%,",
    ],
    "plot_05_own_images": ["same captions: True", "'unknown']", "broken.png"],
    "plot_06_align_and_classify": ["recall@10", "accuracy on", "weighted avg"],
    "plot_07_prompts": ["several descriptions", "drawing ", "points"],
    "plot_08_confusion_and_map": [" predicted as "],
    "plot_09_calibration_and_rejection": ["temperature", "calibration error", "classified"],
    "plot_10_choose_an_aligner": ["ASIFAligner ", "95% interval"],
    "plot_11_search_over_depth": ["images encoded:", "<- best", "    6  "],
    "plot_12_training_history": ["selected epoch", "recall@1"],
    "plot_13_noisy_captions": ["wrong, is", "25% dropped by score", "right pairs only"],
    "plot_14_free_pairs_from_a_classifier": ["1000 classes", "captioned and head pairs"],
    "plot_15_save_and_share": ["model.safetensors", "config.json", "and threshold 0.5"],
    "plot_16_features_in_files": ["untouched: True", "float16, from files", "CC12M"],
    "plot_17_search_with_optuna": ["ridge", "of 15 trials", "searched"],
}


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    """Draw figures without a window, and close all of them."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_prints_expected_output(path, capsys):
    runpy.run_path(str(path))
    out = capsys.readouterr().out
    for text in EXPECTED_OUTPUT.get(path.stem, ()):
        assert text in out


def test_every_example_is_checked():
    """Each example has expected output, so that wrong results are detected."""
    assert {path.stem for path in EXAMPLES} == set(EXPECTED_OUTPUT)


def test_numbers_stay_together_except_in_code(monkeypatch):
    """The extension takes the empty line from the end of the code before that."""
    monkeypatch.setenv("TQDM_DISABLE", "1")  # which the configuration sets
    monkeypatch.setattr(sys, "path", sys.path.copy())
    page = publish_doctree("About 80 %.\n\n::\n\n  5 ± 1")
    runpy.run_path(str(DOCS / "_extensions" / "own_words.py"))["strip"](None, page)
    runpy.run_path(str(DOCS / "conf.py"))["keep_numbers_together"](None, page, "page")
    assert page.astext() == "About 80\u00a0%.\n\n5 ± 1"
