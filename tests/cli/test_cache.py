"""The commands `cache info`, `cache prune` and `cache verify`."""

import json
import re
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from sklearn_ape.features import DiskFeatureCache

COMMANDS = ["info", "prune", "verify"]


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a cache of 300 features of images and 100 of texts."""
    rng = np.random.default_rng(0)
    for n, width in ((300, 1280), (100, 384)):
        with DiskFeatureCache(tmp_path / "cache") as cache:
            cache.put_many({rng.bytes(32): rng.random(width, dtype=np.float32) for _ in range(n)})
    return tmp_path / "cache"


def test_home_that_cannot_be_written_is_not_used(small_folder, run, tmp_path, monkeypatch):
    """Services often have no home folder. Commands work without a cache on disk there."""
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("SKLEARN_APE_DATA", str(tmp_path / "file" / "home"))
    result = run("classify", small_folder, "--labels", "an animal,food")
    assert result.stderr.count("Features are not stored, because") == 1
    assert len(result.stdout.splitlines()) == 13


def test_full_disk_is_reported_once(small_folder, run, tmp_path, monkeypatch):
    """Every encoder of a command opens the cache, and each of them warned."""

    def commit(cache):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(DiskFeatureCache, "_commit", commit)
    options = ("--captions", "filename", "--method", "kernel", "--cache", tmp_path / "cache")
    result = run("fit", small_folder, "-o", tmp_path / "model", *options)
    assert result.stderr.count("is no longer written to: database or disk is full") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classify", "a.png", "--labels", "a,b", "--cache", ""), "--cache is empty"),
        (("demo", "--cache="), "--cache is empty"),
        (("fit", "-o", "", "."), "-o is empty"),
        (("fit", "", "--quiet"), "An argument is empty"),
        (("cache", "info", "--quiet", ""), "An argument is empty"),
        (("fit", ".", "--labels", "-o", "model"), "--labels needs a value before -o"),
        (("classify", ".", "-o", "--labels", "a,b"), "-o needs a value before --labels"),
    ],
)
def test_missing_value_is_an_error(run, tmp_path, monkeypatch, arguments, message):
    """Files were read from, or written to, the working folder, or a file named "--labels"."""
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, code=2)
    assert f"{message}. Pass a value" in result.stderr
    assert not list(tmp_path.iterdir())


def damage(folder):
    with sqlite3.connect(folder / "features.sqlite") as connection:
        connection.execute("UPDATE features SET value = ZEROBLOB(1552) WHERE rowid = 400")
    connection.close()


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_is_short_and_has_example(self, run, command, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        text = run("cache", command, "--help").stdout
        assert f"Example: sklearn-ape cache {command}" in text
        assert len(text.splitlines()) <= 60
        assert text.index("Arguments:") < text.index("Output:") < text.index("Advanced:")

    def test_help_lists_commands(self, run):
        text = run("cache", "--help").stdout
        assert all(re.search(rf"^  {command} ", text, re.MULTILINE) for command in COMMANDS)

    def test_commands_do_not_import_torch(self, folder):
        code = f"""
import sys
from sklearn_ape.cli import app
app(["cache", "info", {str(folder)!r}], standalone_mode=False)
print([name for name in ("torch", "sklearn", "PIL") if name in sys.modules])
"""
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["info"], ["verify"], ["prune", "--max-size", "0B"]])
def test_folder_that_is_not_a_cache_is_an_error(run, arguments, tmp_path):
    result = run("cache", *arguments, tmp_path, code=1)
    assert f"{str(tmp_path)!r} is not a feature cache" in result.stderr
    assert not list(tmp_path.iterdir())


class TestInfo:
    def test_features_are_listed_by_dimension(self, run, folder):
        result = run("cache", "info", folder)
        expected = ["dimension,dtype,features", "384,float32,100", "1280,float32,300"]
        assert result.stdout.splitlines() == expected
        assert f"Folder: {str(folder)!r}" in result.stderr
        size = (folder / "features.sqlite").stat().st_size
        assert f"Size on disk: {size / 1e6:.1f} MB" in result.stderr
        assert re.search(r"Last change: \d{4}-\d\d-\d\d \d\d:\d\d", result.stderr)

    def test_json_and_quiet(self, run, folder):
        result = run("cache", "info", folder, "--format", "json", "--quiet")
        assert json.loads(result.stdout)[1]["features"] == 300
        assert result.stderr == ""

    def test_other_files_are_reported(self, run, folder):
        (folder / "features.sqlite.damaged").write_bytes(b"x" * 2500)
        assert "damaged files, which prune keeps: 2.5 kB" in run("cache", "info", folder).stderr

    def test_default_folder_is_the_user_cache(self, run, folder, monkeypatch):
        monkeypatch.setenv("SKLEARN_APE_DATA", str(folder.parent / "home"))
        assert "home/features' is not a feature cache" in run("cache", "info", code=1).stderr
        (folder.parent / "home").mkdir()
        folder.rename(folder.parent / "home" / "features")
        assert "1280,float32,300" in run("cache", "info").stdout


class TestPrune:
    @pytest.mark.parametrize(
        ("size", "n_bytes"),
        [("1MB", 1e6), ("0.5 MiB", 2**19), ("500kb", 5e5), ("400000 B", 4e5)],
    )
    def test_cache_has_at_most_the_size(self, run, folder, size, n_bytes):
        path = folder / "features.sqlite"
        before = path.stat().st_size
        result = run("cache", "prune", "--max-size", size, folder)
        after = path.stat().st_size
        assert 0.7 * n_bytes < after <= n_bytes
        n_left = sum(DiskFeatureCache(folder).info().counts.values())
        message = re.search(r"Removed (\d+) features and freed (\S+) (\wB)\.", result.stderr)
        assert int(message[1]) == 400 - n_left
        freed = float(message[2]) * {"kB": 1e3, "MB": 1e6}[message[3]]
        assert freed == pytest.approx(before - after, abs=1e5)

    def test_dimension(self, run, folder):
        run("cache", "prune", "--dimension", "1280", folder)
        assert DiskFeatureCache(folder).info().counts == {("float32", 384): 100}

    @pytest.mark.parametrize("size", ["2", "2XB", "GB", "-1GB", "1e9", "٣GB"])
    def test_invalid_size_raises(self, run, folder, size):
        result = run("cache", "prune", f"--max-size={size}", folder, code=2)
        assert "is not a size" in result.stderr
        assert sum(DiskFeatureCache(folder).info().counts.values()) == 400

    def test_no_option_raises(self, run, folder):
        result = run("cache", "prune", folder, code=2)
        assert "Set --max-size 2GB or --dimension 1280" in result.stderr


class TestVerify:
    def test_correct_cache(self, run, folder):
        result = run("cache", "verify", folder)
        assert "All 400 features of" in result.stderr
        assert run("cache", "verify", folder, "--quiet").stderr == ""

    def test_damaged_feature_exits_with_status_1(self, run, folder):
        damage(folder)
        result = run("cache", "verify", folder, "--quiet", code=1)
        assert "1 of 400 features of" in result.stderr

    def test_damaged_file_exits_with_status_1(self, run, folder):
        (folder / "features.sqlite").write_bytes(b"garbage " * 500)
        result = run("cache", "verify", folder, code=1)
        assert "Damage of the file: file is not a database" in result.stderr
