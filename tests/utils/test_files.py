"""Suffixes of image files, which all modules share."""

import pytest
from PIL import Image

from sklearn_ape.app import _session, _uploads
from sklearn_ape.cli import _inputs
from sklearn_ape.datasets import _image_folder, table
from sklearn_ape.encoders import items, text_encoder
from sklearn_ape.retrieval import _index
from sklearn_ape.retrieval._index import resolve_queries
from sklearn_ape.utils.files import IMAGE_SUFFIXES


@pytest.mark.parametrize(
    "module",
    [_uploads, _session, _inputs, _image_folder, table, items, text_encoder, _index],
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
