"""Documentation that runs and is complete: names, pages, README snippets and examples.

`make docs` builds it, with warnings as errors. What a build cannot see is looked for here.
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
from numpydoc.validate import validate
from sklearn.base import BaseEstimator

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
        elif match := re.fullmatch(r"(?:   |\.\. py:data:: )([A-Za-z]\w*)", line):
            names.append(f"{module}.{match[1]}")
    return names


def resolved(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


# Of numpydoc's checks; its documentation says what each is. Left out is what we write otherwise on
# purpose: named return values, summaries that begin with a plural, no See Also where there is
# nothing to see.
CHECKS = {
    *("GL03", "GL05", "GL06", "GL07", "GL08", "GL09", "GL10"),
    *("SS01", "SS02", "SS03", "SS04", "SS06"),
    *(f"PR{number:02}" for number in range(1, 11)),
    *("RT01", "RT03", "RT04", "RT05", "YD01", "SA02", "SA03", "SA04", "EX01"),
}
# skorch calls them, nobody else; and what is no function or class of which one makes objects.
WITHOUT_EXAMPLE = {
    *("BestEpoch", "DivergenceGuard", "EpochProgress", "StopWhenPatient", "ValidationRecall"),
    *("diverged", "Ranks", "Head", "BaseMap", "FeatureCache", "EncodingError"),
    *("SerializableMixin", "PretrainedMixin", "restored_head", "main"),  # shown by others
    *("EncodingFailedWarning", "FileLockedError", "OtherContentError"),
}


def is_named_tuple(item):
    return inspect.isclass(item) and issubclass(item, tuple)


def is_data(item):
    return not (inspect.isclass(item) or inspect.isfunction(item))


def documented():
    """Return every public function and class, and every public method of ours of an estimator."""
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


def faults(name):
    """Return what numpydoc finds wrong with a docstring."""
    is_method = name not in listed_names()
    item = None if is_method else resolved(name)
    excused = set()
    if is_method or is_named_tuple(item) or name.rpartition(".")[2] in WITHOUT_EXAMPLE:
        excused.add("EX01")
    if is_named_tuple(item) or getattr(item, "_is_protocol", False):
        excused.add("PR01")  # their Attributes say it
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

    def test_nothing_is_listed_twice(self):
        listed = listed_names()
        assert len(set(listed)) == len(listed)


class TestDocstrings:
    @pytest.mark.parametrize("name", list(documented()))
    def test_docstring_is_whole(self, name):
        """Parameters match the signature, sections are in order, results are said."""
        assert not faults(name)

    def test_a_bad_docstring_is_found(self, monkeypatch):
        from sklearn_ape.prompts import fill

        monkeypatch.setattr(fill, "__doc__", fill.__doc__.replace("name : str", "label : str"))
        assert any(fault.startswith("PR") for fault in faults("sklearn_ape.prompts.fill"))


def linked_pages():
    """Return the pages that a toctree names."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    entries = {line.strip() for tree in trees for line in tree.splitlines()}
    return {re.sub(r".*<(.*)>", r"\1", entry) for entry in entries if not entry.startswith(":")}


class TestPages:
    def test_no_page_takes_the_name_of_one_of_sphinx(self):
        """Sphinx writes its own search.html over such a page, and says nothing."""
        assert not {"search", "genindex", "modindex"} & {page.stem for page in PAGES}

    @pytest.mark.parametrize(
        "page", [page for page in PAGES if page.stem != "index"], ids=lambda page: page.name
    )
    def test_page_is_in_a_toctree(self, page):
        assert page.stem in linked_pages(), f"no toctree of docs/ names {page.name}"

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_links_lead_somewhere(self, page):
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", text):
            there = (DOCS / link).exists() or link.startswith(("auto_examples/", "generated/"))
            assert there, f"{page.name} links to {link}, which is not there"


SNIPPETS = [
    pytest.param(snippet, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, snippet in enumerate(
        re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    )
    if ">>>" not in snippet
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_that_needs_a_cluster_or_your_files_is_python_with_names_of_ours(snippet):
    """Those with prompts run as doctests; these cannot, yet must not name what is gone."""
    for node in ast.walk(ast.parse(snippet)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sklearn_ape"):
            for alias in node.names:
                assert resolved(f"{node.module}.{alias.name}") is not None


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
README_SNIPPETS = [
    block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if ">>>" not in block
]


@pytest.fixture
def own_images(captioned_images, tmp_path, monkeypatch):
    """What the snippets speak of: a folder with captions beside its images, and a table."""
    rows = ["file,text"]
    for image, caption, category in zip(
        captioned_images.images[:4],
        captioned_images.captions,
        captioned_images.categories,
        strict=False,
    ):
        folder = tmp_path / "photos" / category
        folder.mkdir(parents=True, exist_ok=True)
        copied = Path(shutil.copy(image, folder))
        copied.with_suffix(".txt").write_text(caption, encoding="utf-8")
        rows.append(f"{copied},{caption}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("snippet", README_SNIPPETS)
def test_snippet_runs(snippet, own_images):
    names = {}
    exec("from sklearn_ape.encoders import TimmImageEncoder\n" + snippet, names)
    assert len(names["data"].images) == 4
    assert names["encoder"].transform(names["data"].images).shape == (4, 1280)


def test_there_are_snippets_of_both_kinds():
    assert README_SNIPPETS
    assert README.count(">>>") > 10


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_within_the_repository_lead_somewhere(link):
    assert (ROOT / link).exists()


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
PROMISED = {
    "plot_01_align_and_classify": ["recall@10", "accuracy on", "weighted avg"],
    "plot_02_search_over_depth": ["images encoded:", "<- best", "    6  "],
    "plot_03_without_pairs": [
        "from the training set of the starter model",
        "with standardize=X",
        "%,",
    ],
    "plot_04_own_images": ["same captions: True", "'unknown']", "broken.png"],
    "plot_05_choose_an_aligner": ["ASIFAligner ", "95% interval"],
    "plot_06_training_history": ["selected epoch", "recall@1"],
    "plot_07_noisy_captions": ["wrong, is", "25% dropped by score", "right pairs only"],
    "plot_08_prompts": ["several descriptions", "drawing ", "points"],
    "plot_09_calibration_and_rejection": ["temperature", "calibration error", "classified"],
    "plot_10_search_in_both_directions": ["of the first five", "after adding 100"],
    "plot_11_free_pairs_from_a_classifier": ["1000 classes", "captioned and head pairs"],
    "plot_12_confusion_and_map": [" predicted as "],
    "plot_13_features_in_files": ["untouched: True", "float16, from files", "CC12M"],
    "plot_14_save_and_share": ["model.safetensors", "config.json", "and threshold 0.5"],
    "plot_15_search_with_optuna": ["ridge", "of 15 trials", "searched"],
}


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    """Figures are drawn into memory, and none stays open."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, capsys):
    runpy.run_path(str(path))
    out = capsys.readouterr().out
    for text in PROMISED.get(path.stem, ()):
        assert text in out


def test_every_example_is_checked():
    """An example whose output nobody looks at could print nonsense."""
    assert {path.stem for path in EXAMPLES} == set(PROMISED)
