"""Suffixes of image files: one list, of what Pillow reads."""

import pytest
from PIL import Image

from sklearn_ape.app import _session as _studio
from sklearn_ape.app import _uploads as _captioned
from sklearn_ape.cli import _inputs
from sklearn_ape.datasets import _image_folder as _folder
from sklearn_ape.datasets import table as _pairs
from sklearn_ape.encoders import images as _images
from sklearn_ape.encoders import text_encoder as _text_base
from sklearn_ape.retrieval import _index as _queries
from sklearn_ape.retrieval._index import resolve_queries
from sklearn_ape.utils.files import IMAGE_SUFFIXES


@pytest.mark.parametrize(
    "module",
    [_captioned, _studio, _inputs, _folder, _pairs, _images, _text_base, _queries],
    ids=lambda module: module.__name__,
)
def test_all_modules_use_one_object(module):
    assert module.IMAGE_SUFFIXES is IMAGE_SUFFIXES


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_pillow_reads_it(suffix):
    assert suffix == suffix.lower()
    assert Image.registered_extensions()[suffix] in Image.OPEN


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_folders_and_queries_agree(suffix, tmp_path):
    """A file that a folder lists as an image is one that a query is warned about."""
    (tmp_path / f"a{suffix.upper()}").write_bytes(b"")
    (tmp_path / "a.doc").write_bytes(b"")
    data = _folder.load_image_folder(tmp_path)
    assert len(data.images) == 1
    assert data.other_files == {".doc": 1}
    with pytest.warns(UserWarning, match="look like paths"):
        resolve_queries([f"photos/missing{suffix}"], "auto")
