"""load_iconify: selection of sets, captions, rendering and refusal of unsafe icons."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sklearn_ape.datasets import load_iconify

SQUARE = '<path fill="{color}" d="M4 4h16v16H4z"/>'


def make_info(prefix, license_="MIT", category="UI 24px", palette=False):
    return {
        "name": f"Set {prefix}",
        "author": {"name": "A. Author", "url": "https://example.org"},
        "license": {"title": license_, "spdx": license_},
        "category": category,
        "palette": palette,
    }


def make_icons(**bodies):
    icons = {name.replace("_", "-"): {"body": body} for name, body in bodies.items()}
    return {"icons": icons, "width": 24, "height": 24}


SETS = {
    "plain": (
        make_info("plain"),
        make_icons(
            account_circle_outline_24=SQUARE.format(color="#00f"),
            account_circle=SQUARE.format(color="currentColor"),
            two_tone_bell=SQUARE.format(color="#0a0"),
            traffic_light='<circle cx="12" cy="6" r="4"/>',
            invisible=SQUARE.format(color="#fff"),
        ),
    ),
    "emoji": (
        make_info("emoji", "CC-BY-SA-4.0", "Emoji", palette=True),
        make_icons(
            waving_hand='<circle cx="12" cy="12" r="9" fill="#fc0"/>',
            waving_hand_medium_dark_skin_tone='<circle cx="12" cy="12" r="9" fill="#860"/>',
            copy_of_account=SQUARE.format(color="currentColor"),
        ),
    ),
    "brands": (make_info("brands", "CC0-1.0", "Logos"), make_icons(acme="<path d='M0 0h9v9'/>")),
    "copyleft": (make_info("copyleft", "GPL-3.0"), make_icons(gnu="<path d='M0 0h8v8H0z'/>")),
}


def write_package(folder, sets=SETS):
    (folder / "json").mkdir(parents=True)
    infos = {prefix: info for prefix, (info, _) in sets.items()}
    (folder / "collections.json").write_text(json.dumps(infos))
    for prefix, (_, icons) in sets.items():
        (folder / "json" / f"{prefix}.json").write_text(json.dumps({"prefix": prefix, **icons}))
    return folder


@pytest.fixture
def package(tmp_path):
    return write_package(tmp_path / "package")


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def write_icon(tmp_path, body, name="icon", **fields):
    """Write a package with a single icon; return its folder."""
    icons = {"icons": {name: {"body": body, **fields}}}
    return write_package(tmp_path / "package", {"one": (make_info("one"), icons)})


def test_captions_have_no_words_for_styles(package, home):
    """One image per caption is loaded, the one with the plainest name."""
    data = load_iconify(package, data_home=home)
    assert dict(zip(data.names, data.captions, strict=True)) == {
        "account-circle": "account circle",
        "two-tone-bell": "bell",
        "traffic-light": "traffic light",
        "waving-hand": "waving hand",
    }
    assert data.sets.tolist() == ["plain", "plain", "plain", "emoji"]
    assert data.licenses[-1] == "CC-BY-SA-4.0"
    assert data.categories.tolist() == ["UI 24px"] * 3 + ["Emoji"]


def test_frequent_word_is_a_style():
    """A word such as "light" is dropped only in a set in which many names end with it."""
    from sklearn_ape.datasets._icon_sets import _clean_name, _find_style_words

    names = [f"icon{i}-light" for i in range(10)] + ["traffic-light"]
    first, last = _find_style_words(names)
    assert _clean_name("traffic-light", first, last) == "traffic"
    first, last = _find_style_words(["traffic-light"] + [f"icon{i}-left" for i in range(40)])
    assert _clean_name("traffic-light", first, last) == "traffic light"
    assert _clean_name("24", first, last) == "24"


def test_variants_are_loaded_on_request(package, home):
    data = load_iconify(package, variants=True, data_home=home)
    assert data.captions.count("waving hand") == 2
    assert data.captions.count("account circle") == 2
    # The drawing of "copy-of-account" is that of "account-circle", and occurs once.
    assert "copy of account" not in data.captions


def test_images_are_centered_on_white(package, home):
    data = load_iconify(package, sets=["plain"], size=112, data_home=home)
    with Image.open(data.images[0]) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (112, 112, 3)
    assert (pixels[:6] == 255).all()
    assert (pixels[56, 56] == 51).all()  # currentColor is dark grey


def test_invisible_icon_is_left_out_and_not_rendered_again(package, home, monkeypatch):
    data = load_iconify(package, data_home=home)
    assert "invisible" not in data.names
    monkeypatch.setattr("resvg_py.svg_to_bytes", None)  # fails if anything is rendered
    again = load_iconify(package, data_home=home)
    assert again.images == data.images


def test_sets_are_selected_by_licence_category_and_palette(package, home):
    def load(**options):
        return set(load_iconify(package, data_home=home, **options).sets)

    assert load() == {"plain", "emoji"}
    assert load(licenses="all", categories="all") == set(SETS)
    assert load(licenses=["GPL-3.0"]) == {"copyleft"}
    assert load(categories=["Emoji"]) == {"emoji"}
    assert load(sets=["brands"]) == {"brands"}
    assert load(palette=True) == {"emoji"}
    assert load(palette=False) == {"plain"}


def test_named_set_of_another_licence_warns(package, home):
    """It was left out without a message."""
    with pytest.warns(UserWarning, match=r"sets contains copyleft \(GPL-3\.0\), which are not"):
        data = load_iconify(package, sets=["plain", "copyleft"], data_home=home)
    assert set(data.sets) == {"plain"}


def test_description_names_authors_and_licences(package, home):
    description = load_iconify(package, data_home=home).DESCR
    assert "Set plain (`plain`) by A. Author (https://example.org), MIT" in description
    assert "CC-BY-SA-4.0" in description
    assert "GPL" not in description


def test_package_of_one_set_is_loaded(tmp_path, home):
    info, icons = SETS["emoji"]
    folder = tmp_path / "unpacked" / "package"
    folder.mkdir(parents=True)
    (folder / "info.json").write_text(json.dumps({"prefix": "emoji", **info}))
    (folder / "icons.json").write_text(json.dumps({"prefix": "emoji", **icons}))
    images, captions = load_iconify(folder.parent, data_home=home, return_X_y=True)
    assert captions == ["waving hand", "copy of account"]
    assert all(os.path.exists(image) for image in images)


def test_changed_drawing_is_rendered_again(tmp_path, home):
    package = write_icon(tmp_path, SQUARE.format(color="#f00"))
    red = load_iconify(package, data_home=home).images
    file = package / "json" / "one.json"
    file.write_text(file.read_text().replace("#f00", "#00f"))
    blue = load_iconify(package, data_home=home).images
    assert red != blue
    with Image.open(blue[0]) as image:
        assert image.convert("RGB").getpixel((112, 112)) == (0, 0, 255)


@pytest.mark.exhaustive
def test_processes_render_the_same_images(package, tmp_path):
    one = load_iconify(package, data_home=tmp_path / "a")
    two = load_iconify(package, data_home=tmp_path / "b", n_jobs=2)
    for first, second in zip(one.images, two.images, strict=True):
        with open(first, "rb") as left, open(second, "rb") as right:
            assert left.read() == right.read()


@pytest.mark.parametrize(
    "body",
    [
        "<script>alert(1)</script>",
        '<path onload="alert(1)" d="M0 0h9v9"/>',
        '<image href="secret.png"/>',
        '<use xlink:href="other.svg#a"/>',
        '<path fill="url(https://example.org/a.svg#b)" d="M0 0h9v9"/>',
        "<style>@import 'a.css';</style>",
        '<a href="javascript:alert(1)"><path d="M0 0h9v9"/></a>',
        "<foreignObject><b>html</b></foreignObject>",
    ],
)
def test_unsafe_icon_raises(tmp_path, home, body):
    """Scripts and references to files are refused, and the icon is named."""
    package = write_icon(tmp_path, body)
    with pytest.raises(ValueError, match=r"Icon 'one:icon' contains .*not allowed"):
        load_iconify(package, data_home=home)


def write_chain(name, attribute, n_elements, n_groups=0):
    """Return elements that refer to each other, and a path that refers to the first."""
    start, end = "<g>" * n_groups, "</g>" * n_groups
    path = '<path d="M0 0h9v9z" ' + attribute + '="url(#p{})"/>'
    chain = "".join(
        f'<{name} id="p{n}" width="1" height="1">{start}{path.format(n + 1)}{end}</{name}>'
        for n in range(n_elements)
    )
    return chain + path.format(0)


@pytest.mark.parametrize(
    "body",
    [
        "<g>" * 300 + SQUARE + "</g>" * 300,
        write_chain("pattern", "fill", 900),
        write_chain("mask", "mask", 900),
        write_chain("marker", "marker-start", 900),
        write_chain("clipPath", "clip-path", 5000),
        "".join(f'<use id="u{n}" href="#u{n + 1}"/>' for n in range(300)),
        write_chain("pattern", "fill", 20, n_groups=40),
    ],
    ids=["groups", "patterns", "masks", "markers", "clips", "uses", "groups in patterns"],
)
def test_deeply_nested_icon_raises(tmp_path, home, body):
    """The renderer would end the process."""
    with pytest.raises(ValueError, match=r"Icon 'one:icon' has more than 150 levels"):
        load_iconify(write_icon(tmp_path, body), data_home=home)


def test_icon_with_many_references_is_rendered(tmp_path, home):
    """Uses outside referenced elements do not nest, and clip paths have few levels."""
    body = '<path id="a" d="M4 4h16v16H4z"/>' + '<use href="#a"/>' * 300
    body += write_chain("clipPath", "clip-path", 50)
    assert len(load_iconify(write_icon(tmp_path, body), data_home=home).images) == 1


def test_icon_with_many_elements_of_one_id_is_rendered(tmp_path, home):
    """They do not nest, since each of them refers to the first."""
    package = write_icon(tmp_path, '<g id="a" fill="url(#a)"/>' * 300 + SQUARE)
    assert len(load_iconify(package, data_home=home).images) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 1e9}, "left, top, width and height"),
        ({"height": -3}, "left, top, width and height"),
        ({"left": "0"}, "left, top, width and height"),
        ({"top": 10**400}, "left, top, width and height"),
        ({"width": True}, "left, top, width and height"),
        ({"body": "\ud800"}, "is not valid Unicode"),
        ({"body": 3}, "has no 'body'"),
        ({"body": "<path"}, "cannot be rendered"),
        ({"body": " " * 3_000_000}, "characters"),
        ({"name": "../escape"}, "invalid name"),
    ],
)
def test_invalid_icon_raises(tmp_path, home, fields, message):
    fields = {"body": SQUARE, "name": "icon", **fields}
    with pytest.raises(ValueError, match=f"Icon 'one:.*{message}"):
        load_iconify(write_icon(tmp_path, **fields), data_home=home)


def test_reference_within_an_icon_is_allowed(tmp_path, home):
    body = (
        '<defs><linearGradient id="a"><stop stop-color="red"/></linearGradient></defs>'
        '<path id="b" fill="url(#a)" d="M0 0h9v9z"/><use href="#b" x="3"/>'
    )
    assert len(load_iconify(write_icon(tmp_path, body), data_home=home).images) == 1


def test_icon_without_area_is_left_out_and_without_others_raises(tmp_path, home):
    package = write_icon(tmp_path, SQUARE, width=0)
    with pytest.raises(ValueError, match="package' has no icon with a visible part"):
        load_iconify(package, data_home=home)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": ["unknown"]}, "sets contains 'unknown'"),
        ({"sets": "plain"}, r"Pass a list, sets=\['plain'\]"),
        ({"categories": ["Animals"]}, "categories contains 'Animals'"),
        ({"licenses": ["Proprietary"]}, "licenses contains 'Proprietary'"),
        ({"palette": "color"}, "palette must be True, False or None"),
        ({"sets": ["copyleft"]}, "No set has the given.* licenses='all' selects"),
        ({"size": 100_000}, "size must be at most 8192, not 100000"),
        ({"size": 0}, "size must be an integer >= 1"),
    ],
)
def test_invalid_parameter_raises(package, home, options, message):
    with pytest.raises(ValueError, match=message):
        load_iconify(package, data_home=home, **options)


def test_folder_without_package_raises_with_instructions(tmp_path):
    with pytest.raises(FileNotFoundError, match="npm pack @iconify/json"):
        load_iconify(tmp_path)
    with pytest.raises(FileNotFoundError, match="npm pack @iconify/json"):
        load_iconify(tmp_path / "missing")


@pytest.mark.parametrize("file", ["collections.json", "json/plain.json"])
@pytest.mark.parametrize("content", ["{", "[]", '{"icons": 3}', "\x00"])
def test_damaged_file_raises(package, home, file, content):
    (package / file).write_text(content)
    with pytest.raises(ValueError, match="Unpack the package again"):
        load_iconify(package, data_home=home)


def test_set_without_licence_raises(tmp_path, home):
    info = make_info("plain") | {"license": {}}
    package = write_package(tmp_path / "package", {"plain": (info, make_icons(a=SQUARE))})
    with pytest.raises(ValueError, match="Set 'plain' has no SPDX identifier"):
        load_iconify(package, data_home=home)


@pytest.mark.parametrize("other", [{"author": "A. Author"}, {"category": ["Emoji"]}])
def test_invalid_description_of_a_set_raises(tmp_path, home, other):
    sets = {"plain": (make_info("plain") | other, make_icons(a=SQUARE))}
    with pytest.raises(ValueError, match="Set 'plain' has an author that is not an object, or"):
        load_iconify(write_package(tmp_path / "package", sets), data_home=home)


@pytest.mark.exhaustive
def test_killed_rendering_is_continued(package, home):
    """Images that were rendered before a kill are complete and are not rendered again."""
    script = (
        "import os, sys, resvg_py\n"
        "from sklearn_ape.datasets import load_iconify\n"
        "render, count = resvg_py.svg_to_bytes, [0]\n"
        "def stop(**options):\n"
        "    count[0] += 1\n"
        "    if count[0] == 3:\n"
        "        os._exit(9)\n"
        "    return render(**options)\n"
        "resvg_py.svg_to_bytes = stop\n"
        "load_iconify(sys.argv[1], data_home=sys.argv[2])\n"
    )
    process = subprocess.run([sys.executable, "-c", script, package, home], check=False)
    assert process.returncode == 9
    before = {file: file.stat().st_mtime_ns for file in home.rglob("*.png")}
    assert len(before) == 2
    data = load_iconify(package, data_home=home)
    assert len(data.images) == 4
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())


def test_data_home_that_cannot_be_written_raises(package, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="Pass another data_home"):
        load_iconify(package, data_home=blocked)
