"""README's snippets run; those with prompts run as doctests, the others here."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = [
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


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs(snippet, own_images):
    names = {}
    exec("from sklearn_ape.encoders import TimmImageEncoder\n" + snippet, names)
    assert len(names["data"].images) == 4
    assert names["encoder"].transform(names["data"].images).shape == (4, 1280)


def test_there_are_snippets_of_both_kinds():
    assert SNIPPETS
    assert README.count(">>>") > 10


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_within_the_repository_lead_somewhere(link):
    assert (ROOT / link).exists()
