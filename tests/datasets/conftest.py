"""Fixtures for the tests of datasets: folders of empty image files."""

import os

import pytest

NAMES = ("cats/black_cat-01.jpg", "cats/old_cat.PNG", "dogs/dog.jpg")


def make(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")  # files are not opened
    return folder


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "images", *NAMES)


def relative(folder, images):
    return [os.path.relpath(image, folder).replace(os.sep, "/") for image in images]
