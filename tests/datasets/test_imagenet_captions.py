"""load_imagenet_captions: captions, labels and missing images."""

import json
import os
import re
import warnings

import pytest

from sklearn_ape.datasets import load_imagenet_captions

ENTRIES = [
    {
        "filename": "n01440764_10026.JPEG",
        "title": "My  catch",
        "tags": ["lake", "fish"],
        "description": 'On <a href="http://x.y/z">Lake</a> B &amp; C\r\n3 < 5 kg<br/>caught',
        "wnid": "n01440764",
    },
    {
        "filename": "n02012849_1.JPEG",
        "title": "",
        "tags": ["bird"],
        "description": "",
        "wnid": "n02012849",
    },
    {
        "filename": "n03126707_7.JPEG",
        "title": "at the docks",
        "tags": [],
        "description": "",
        "wnid": "n03126707",
    },
    {
        "filename": "n03126707_8.JPEG",
        "title": "",
        "tags": [],
        "description": "<p> </p>",
        "wnid": "n03126707",
    },
]


@pytest.fixture
def root(tmp_path):
    for entry in ENTRIES:
        image = tmp_path / "train" / entry["wnid"] / entry["filename"]
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(b"")  # never opened
    return tmp_path / "train"


def write(folder, entries):
    file = folder / "imagenet_captions.json"
    file.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return file


@pytest.fixture
def table(tmp_path):
    return write(tmp_path, ENTRIES)


def test_entries_give_captions_and_labels(root, table):
    """Captions join title, tags and description without HTML; empty entries are skipped."""
    data = load_imagenet_captions(root, table)
    assert data.captions == [
        "My catch lake fish On Lake B & C 3 < 5 kg caught",
        "bird",
        "at the docks",
    ]
    assert [os.path.basename(image) for image in data.images] == [
        entry["filename"] for entry in ENTRIES[:3]
    ]
    assert all(os.path.isfile(image) for image in data.images)
    assert data.wnids.tolist() == ["n01440764", "n02012849", "n03126707"]
    assert "0 entries without an image, 1 without a text" in data.DESCR


def test_labels_are_unique(root, table):
    """Classes with equal names, such as the two cranes, have different labels."""
    labels = load_imagenet_captions(root, table).labels.tolist()
    assert labels[0] == "tench"
    assert labels[1].startswith("crane (large long-necked wading bird")
    assert labels[2].startswith("crane (lifts and moves heavy objects")


def test_class_names_work_in_classifier(root, table):
    data = load_imagenet_captions(root, table)
    assert set(data.class_names) == set(data.labels.tolist())
    assert data.class_names["tench"] == ["tench", "Tinca tinca"]


def test_fields_select_parts_of_captions(root, table):
    images, captions = load_imagenet_captions(
        root, table, fields=("tags", "title"), return_X_y=True
    )
    assert captions == ["lake fish My catch", "bird", "at the docks"]
    assert len(images) == 3
    assert load_imagenet_captions(root, table, fields="tags").captions == ["lake fish", "bird"]
    for wrong in ((), ("title", "titel"), ["title", "title"], "titel"):
        with pytest.raises(ValueError, match=rf"names of .*, not {re.escape(repr(wrong))}\."):
            load_imagenet_captions(root, table, fields=wrong)


def test_images_in_one_folder_are_accepted(root, table):
    for entry in ENTRIES:
        (root / entry["wnid"] / entry["filename"]).rename(root / entry["filename"])
    assert len(load_imagenet_captions(root, table).images) == 3


def test_missing_images_warn_or_raise(root, table):
    (root / "n01440764" / "n01440764_10026.JPEG").unlink()
    with pytest.warns(UserWarning, match=r"no file for 1 of 4 images.*'n01440764_10026\.JPEG'"):
        data = load_imagenet_captions(root, table)
    assert data.captions == ["bird", "at the docks"]
    assert "tench" not in data.class_names
    with pytest.raises(FileNotFoundError, match="1 of 4 images"):
        load_imagenet_captions(root, table, on_missing="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_imagenet_captions(root, table, on_missing="ignore").images) == 2
    with pytest.raises(FileNotFoundError, match=r"4 of 4 images.*Pass the folder that contains"):
        load_imagenet_captions(root.parent, table, on_missing="ignore")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "at least one entry"),
        ({"a": 1}, "a list with at least"),
        ([{"filename": "a.JPEG"}], r"Entry 0 .*'filename' and 'wnid'"),
        ([ENTRIES[0], 3], r"Entry 1 "),
        ([{**ENTRIES[0], "filename": "../a.JPEG"}], "Use a name without folders"),
        ([{**ENTRIES[0], "title": 7}], r"Entry 0 .* must have a text as 'title', not 7"),
        ([{**ENTRIES[0], "tags": ["a", None]}], r"must have a text or a list of texts as 'tags'"),
        ([ENTRIES[3]], "has no text in the fields title, tags, description"),
    ],
)
def test_invalid_entries_raise(root, tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        load_imagenet_captions(root, write(tmp_path, entries))


def test_unknown_class_raises(root, tmp_path):
    entry = {**ENTRIES[0], "wnid": "n00000001"}
    (root / "n01440764" / entry["filename"]).rename(root / entry["filename"])
    with pytest.raises(ValueError, match=r"1 wnids are not among ImageNet's .*'n00000001'"):
        load_imagenet_captions(root, write(tmp_path, [entry]))


def test_missing_paths_raise(root, table, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_imagenet_captions(tmp_path / "none", table)
    with pytest.raises(FileNotFoundError, match=r"imagenet_captions\.json from"):
        load_imagenet_captions(root, tmp_path / "none.json")
    with pytest.raises(ValueError, match="on_missing must be"):
        load_imagenet_captions(root, table, on_missing="drop")
