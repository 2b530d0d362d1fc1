"""Fixtures: folders of images, and functions that run commands."""

import csv
import io
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sklearn_ape.cli import app


def named(caption):
    """Return the file name from which `captions="filename"` reads a caption."""
    return caption.replace("/", " ").replace(":", "").replace(" ", "_") + ".png"


@pytest.fixture(scope="session")
def photos(captioned_images, tmp_path_factory):
    """Return 60 images in the folders animal, food and travel, named by their captions."""
    folder = tmp_path_factory.mktemp("photos")
    for row in range(60):
        target = folder / captioned_images.categories[row] / named(captioned_images.captions[row])
        target.parent.mkdir(exist_ok=True)
        shutil.copy(captioned_images.images[row], target)
    return folder


@pytest.fixture
def small_folder(photos, tmp_path):
    """Return a copy with four images per subfolder, which tests may change."""
    folder = tmp_path / "small_folder"
    for kind in sorted(photos.iterdir()):
        (folder / kind.name).mkdir(parents=True)
        for image in sorted(kind.iterdir())[:4]:
            shutil.copy(image, folder / kind.name)
    return folder


@pytest.fixture
def run(feature_cache, monkeypatch):
    """Return a function that runs a command in this process with the cache of all tests."""
    monkeypatch.setenv("SKLEARN_APE_DATA", str(feature_cache.parent / "home"))
    runner = CliRunner()

    def invoke(*arguments, stdin=None, code=0):
        result = runner.invoke(app, [str(argument) for argument in arguments], input=stdin)
        output = f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
        assert result.exit_code == code, output
        assert "Traceback" not in result.stderr
        return result

    return invoke


@pytest.fixture
def rows(run):
    """Return a function that runs a command and parses the csv of its standard output."""

    def invoke(*arguments, **options):
        return list(csv.DictReader(io.StringIO(run(*arguments, **options).stdout)))

    return invoke


@pytest.fixture
def shell():
    """Return a function that runs a command in a child process."""

    def invoke(*arguments, **options):
        command = [sys.executable, "-m", "sklearn_ape", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    return invoke
