"""load_tuxpaint_stamps and load_openclipart with small and real collections."""

import os
from pathlib import Path

import pytest
from PIL import Image

from sklearn_ape.datasets import _debian, load_openclipart, load_tuxpaint_stamps

needs_stamps = pytest.mark.skipif(
    not Path("/usr/share/tuxpaint/stamps").is_dir(),
    reason="the Debian package tuxpaint-stamps-default is not installed",
)
needs_openclipart = pytest.mark.skipif(
    not all(Path("/usr/share/openclipart", part).is_dir() for part in ("png", "svg")),
    reason="the Debian packages openclipart-png and openclipart-svg are not installed",
)

METADATA = """\
<svg xmlns="http://www.w3.org/2000/svg"><metadata>
<rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about="">
<dc:title>{title}</dc:title><dc:description>A
 description</dc:description>
<dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject>
<dc:publisher><cc:Agent><dc:title>The library</dc:title></cc:Agent></dc:publisher>
<dc:creator><cc:Agent><dc:title>Ann Author</dc:title></cc:Agent></dc:creator>
<cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/></cc:Work></rdf:RDF>
</metadata>{rest}"""


def write_image(file, size=(4, 4)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(file)


def write_drawing(root, name, title=None, keywords=(), rest="</svg>", size=(4, 4)):
    write_image(root / "png" / f"{name}.png", size)
    (root / "svg").mkdir(exist_ok=True)
    if title is not None:
        file = root / "svg" / f"{name}.svg"
        file.parent.mkdir(parents=True, exist_ok=True)
        items = "".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
        file.write_text(METADATA.format(title=title, keywords=items, rest=rest))


@pytest.fixture
def stamps(tmp_path):
    texts = {
        "animals/birds/owl": "An  owl.\nde.utf8=Eine Eule.\nfr.utf8=Un hibou.\n",
        "animals/cat": "\ufeffA cat = a pet.\nde.utf8=Eine Katze.\n",
        "food/apple": "An apple.\nde.utf8=\n",
    }
    for name, text in texts.items():
        write_image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    write_image(tmp_path / "food" / "apple_mirror.png")
    return tmp_path


def test_stamps_have_captions_and_categories(stamps):
    """Captions are first lines, categories are folders, and mirrored images are skipped."""
    data = load_tuxpaint_stamps(path=stamps)
    assert data.captions == ["An owl.", "A cat = a pet.", "An apple."]
    assert data.categories.tolist() == ["animals", "animals", "food"]
    assert data.subjects.tolist() == ["animals/birds", "animals", "food"]
    assert [Path(image).name for image in data.images] == ["owl.png", "cat.png", "apple.png"]
    assert "GPL-2" in data.DESCR
    assert load_tuxpaint_stamps(path=stamps, return_X_y=True) == (data.images, data.captions)


def test_stamps_in_another_language(stamps):
    """Images without a translation are skipped."""
    data = load_tuxpaint_stamps(path=stamps, language="de")
    assert data.captions == ["Eine Eule.", "Eine Katze."]
    assert len(data.images) == len(data.categories) == 2


def test_stamps_of_unknown_language_raise(stamps):
    with pytest.raises(ValueError, match=r"'xx'.* de, en, fr\."):
        load_tuxpaint_stamps(path=stamps, language="xx")


def test_stamps_in_wrong_encoding_raise(stamps):
    (stamps / "animals" / "cat.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"cat\.txt.* is not UTF-8"):
        load_tuxpaint_stamps(path=stamps)


def test_stamps_of_wrong_layout_raise(tmp_path, stamps):
    with pytest.raises(FileNotFoundError, match=r"\.txt file next to"):
        load_tuxpaint_stamps(path=tmp_path / "none")
    with pytest.raises(NotADirectoryError, match="is a file"):
        load_tuxpaint_stamps(path=stamps / "food" / "apple.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"animals/birds/owl\.txt"):
        load_tuxpaint_stamps(path=tmp_path / "empty")


def test_missing_package_raises(monkeypatch, tmp_path):
    monkeypatch.setattr(_debian, "_STAMPS_FOLDER", str(tmp_path / "none"))
    with pytest.raises(ImportError, match=r"apt install tuxpaint-stamps-default.*path="):
        load_tuxpaint_stamps()
    monkeypatch.setattr(_debian, "_CLIP_ART_FOLDER", str(tmp_path / "none"))
    with pytest.raises(ImportError, match=r"apt install openclipart-png openclipart-svg.*path="):
        load_openclipart()
    (tmp_path / "half" / "png").mkdir(parents=True)
    monkeypatch.setattr(_debian, "_CLIP_ART_FOLDER", str(tmp_path / "half"))
    with pytest.raises(FileNotFoundError, match=r"no folder 'svg'.* openclipart-svg"):
        load_openclipart()


def test_drawings_have_metadata(tmp_path):
    write_drawing(tmp_path, "food/apple_01", "Red_Apple 01", ["food", "sweet_fruit"])
    data = load_openclipart(path=tmp_path)
    assert data.captions == ["Red Apple, food, sweet fruit"]
    assert data.titles == ["Red_Apple 01"]
    assert data.keywords == [["food", "sweet_fruit"]]
    assert data.descriptions == ["A description"]
    assert data.authors == ["Ann Author"]
    assert data.licenses == ["http://web.resource.org/cc/PublicDomain"]
    assert data.categories.tolist() == ["food"]
    assert load_openclipart(path=tmp_path, return_X_y=True) == (data.images, data.captions)


@pytest.mark.parametrize(
    ("title", "keywords", "caption"),
    [
        ("Tree", ["tree", "hash", "0x89c79", "unsorted", "", "oak", "oak"], "Tree, oak"),
        ("T", list("abcdefgh"), "T, a, b, c, d, e, f"),
        ("Clipart by Nicu Buculei - red_pear", [], "red pear"),
        ("Gelato all&amp;#39;italiana", [], "Gelato all'italiana"),
        ("M16", ["gun"], "M16, gun"),
        ("", ["gun"], "big gun, gun"),
        ("1234", ["gun"], "big gun, gun"),
    ],
)
def test_drawing_captions(tmp_path, title, keywords, caption):
    """Captions have cleaned titles or file names, and up to six distinct keywords."""
    write_drawing(tmp_path, "x/big_gun-02", title, keywords)
    assert load_openclipart(path=tmp_path).captions == [caption]


def test_drawings_with_broken_files(tmp_path):
    """Damage after the metadata is ignored; otherwise the file name is used."""
    write_drawing(tmp_path, "a/cut_behind", "Title", rest="<g><broken")
    write_drawing(tmp_path, "b/no_svg")
    write_drawing(tmp_path, "c/torn_file", "Title")
    (tmp_path / "svg" / "c" / "torn_file.svg").write_text("<svg><meta")
    write_drawing(tmp_path, "d/empty_file", "Title")
    (tmp_path / "svg" / "d" / "empty_file.svg").write_bytes(b"")
    write_drawing(tmp_path, "e/0001")
    data = load_openclipart(path=tmp_path)
    assert data.captions == ["Title", "no svg", "torn file", "empty file", "0001"]
    assert data.titles == ["Title", "", "", "", ""]


def test_large_drawings_are_skipped(tmp_path):
    """Images beyond max_pixels are skipped by their header."""
    write_drawing(tmp_path, "a/large", "Large", size=(40, 40))
    write_drawing(tmp_path, "a/small", "Small")
    assert load_openclipart(path=tmp_path, max_pixels=1000).captions == ["Small"]
    assert load_openclipart(path=tmp_path, max_pixels=None).captions == ["Large", "Small"]
    with pytest.raises(ValueError, match="at most 5 pixels"):
        load_openclipart(path=tmp_path, max_pixels=5)


def test_duplicate_drawings_share_a_group(tmp_path):
    """Links to one file have the same group."""
    write_drawing(tmp_path, "a/one", "One")
    write_drawing(tmp_path, "b/two", "Two")
    try:
        os.symlink(tmp_path / "png" / "a" / "one.png", tmp_path / "png" / "b" / "link.png")
    except OSError:
        pytest.skip("this system does not let us make links")
    one, link, two = load_openclipart(path=tmp_path).groups
    assert one == link != two


def test_drawings_of_wrong_layout_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match="png and svg"):
        load_openclipart(path=tmp_path / "none")
    (tmp_path / "png").mkdir()
    with pytest.raises(FileNotFoundError, match="no folder 'svg'"):
        load_openclipart(path=tmp_path)
    (tmp_path / "svg").mkdir()
    with pytest.raises(ValueError, match="no PNG files"):
        load_openclipart(path=tmp_path)


@needs_stamps
def test_real_stamps():
    """The installed collection has 951 images with captions."""
    data = load_tuxpaint_stamps()
    assert len(data.images) == len(data.captions) == len(data.categories) == 951
    assert "A zebra." in data.captions
    assert not any("utf8=" in caption for caption in data.captions)
    assert not any("mirror" in image for image in data.images)
    german = load_tuxpaint_stamps(language="de")
    assert "Ein Kopfsalat." in german.captions
    assert 900 < len(german.images) < 951


@pytest.mark.exhaustive
@needs_openclipart
def test_real_openclipart():
    """All files of the installed collection have captions with words."""
    data = load_openclipart(max_pixels=None)
    assert len(data.images) == len(data.captions) == len(data.keywords) == 8121
    assert sum(not title for title in data.titles) < 100
    assert all(caption.strip() for caption in data.captions)
    assert max(caption.count(", ") for caption in data.captions) <= 8
    i = next(i for i, image in enumerate(data.images) if image.endswith("/asia/iran.png"))
    assert data.captions[i] == "Iran, asia, united nations member, flag, arab, sign"
    assert 6000 < len(set(data.groups.tolist())) < 8121
    assert len(load_openclipart().images) == 8121 - 16


def test_collection_titles_are_replaced(tmp_path):
    """The file name without the author replaces a title of ten drawings."""
    for name in "abcdefghij":
        write_drawing(tmp_path, f"x/{name}_road_ann_auth_01", "Road signs", ["sign"])
    write_drawing(tmp_path, "y/tree", "Tree")
    captions = load_openclipart(path=tmp_path).captions
    assert captions == [*(f"{name} road, sign" for name in "abcdefghij"), "Tree"]
    dataset = load_openclipart(path=tmp_path, replace_collection_titles=False)
    assert dataset.captions == [*["Road signs, sign"] * 10, "Tree"]
