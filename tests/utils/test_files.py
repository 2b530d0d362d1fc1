"""Suffixes of image files, which all modules share, and hints for files that do not exist."""

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from sklearn_ape.app import _session, _uploads
from sklearn_ape.cli import _inputs
from sklearn_ape.datasets import _image_folder
from sklearn_ape.encoders import text_encoder
from sklearn_ape.retrieval import _index
from sklearn_ape.retrieval._index import resolve_queries
from sklearn_ape.utils.files import (
    IMAGE_SUFFIXES,
    describe_missing_image,
    describe_similar_file,
    expand_user,
)


def test_only_home_of_existing_user_is_expanded():
    """The shell, too, uses the path of an unknown user as it is."""
    assert expand_user("~/a.csv") == Path.home() / "a.csv"
    assert expand_user("~no-such-user/a.csv") == Path("~no-such-user/a.csv")


@pytest.mark.parametrize(
    "module",
    [_uploads, _session, _inputs, _image_folder, text_encoder, _index],
    ids=lambda module: module.__name__,
)
def test_all_modules_use_one_object(module):
    assert module.IMAGE_SUFFIXES is IMAGE_SUFFIXES


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_pillow_reads_suffix(suffix):
    assert suffix == suffix.lower()
    assert Image.registered_extensions()[suffix] in Image.OPEN


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_folders_and_queries_agree(suffix, tmp_path):
    """Folders and text queries accept the same suffixes as images."""
    (tmp_path / f"a{suffix.upper()}").write_bytes(b"")
    (tmp_path / "a.doc").write_bytes(b"")
    data = _image_folder.load_image_folder(tmp_path)
    assert len(data.images) == 1
    assert data.other_files == {".doc": 1}
    with pytest.warns(UserWarning, match="look like paths"):
        resolve_queries([f"photos/missing{suffix}"], "auto")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("caf\u00e9/black.jpg", "cafe\u0301/black.jpg"),
        (unicodedata.normalize("NFD", "caf\u00e9.png"), "caf\u00e9.png"),
        ("dog.JPG", "dog.jpg"),
    ],
)
def test_file_with_almost_equal_name_is_named(tmp_path, name, given):
    """The two names look equal in a message, or nearly so."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    message = describe_missing_image(str(tmp_path / given))
    file_name = str(tmp_path / name) if "/" in name else name
    assert f"A file {file_name!r} exists, whose name differs in case or in the form" in message
    message = describe_missing_image(str(tmp_path / "other.jpg"))
    assert message == "does not exist. Check the path."


def test_backslashes_of_windows_are_named(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.jpg").write_bytes(b"")
    message = describe_missing_image(f"{tmp_path}/cats\\a.jpg")
    assert message.startswith("does not exist. The file exists if the backslashes of Windows")
    assert "backslashes" not in describe_missing_image(f"{tmp_path}/cats\\b.jpg")


@pytest.mark.parametrize("given", ["folder", "folder/", "link.png", "drawing.svg", "FOLDER.d"])
def test_path_that_exists_is_not_an_almost_equal_name(tmp_path, given):
    """Folders, broken links and files that are not images have other errors."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "FOLDER.D").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "missing.png")
    (tmp_path / "drawing.svg").write_bytes(b"")
    assert not describe_similar_file(f"{tmp_path}/{given}")
