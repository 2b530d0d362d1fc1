"""Inputs and result tables of commands."""

import csv
import io
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pandas as pd
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_ape.cli._inputs import list_images, load_data, parse_labels
from sklearn_ape.cli._output import (
    FileName,
    Table,
    check_model_folder,
    check_output_file,
    check_output_folder,
    print_loading,
    resolve_format,
    write_atomically,
)
from sklearn_ape.datasets import load_pairs
from sklearn_ape.datasets.table import read_table


@pytest.fixture
def image(small_folder):
    return next((small_folder / "animal").iterdir())


def relative(paths, folder):
    return [os.path.relpath(path, folder) for path in paths]


class TestListImages:
    def test_folder_with_unusual_file_names(self, image, tmp_path, capsys):
        folder = tmp_path / "mine"
        folder.mkdir()
        names = ["with space.PNG", "line\nfeed.png", "Früchte 🍎.png", "a,b;'c'.png", "[1].png"]
        for name in names:
            shutil.copy(image, folder / name)
        (folder / "notes.txt").write_text("no image")
        (folder / ".hidden.png").write_text("no image")
        (folder / "link.png").symlink_to(image)
        assert sorted(relative(list_images([str(folder)]), folder)) == sorted([*names, "link.png"])
        assert "Skipped 1 file of other formats (1 '.txt')" in capsys.readouterr().err

    def test_existing_file_named_like_pattern_is_a_file(self, image, tmp_path):
        target = tmp_path / "[1].png"
        shutil.copy(image, target)
        assert list_images([str(target)]) == [str(target)]

    def test_duplicate_paths_are_removed(self, small_folder):
        everything = list_images([str(small_folder)])
        assert len(everything) == 12
        assert list_images([str(small_folder / "**" / "*.png"), str(small_folder)]) == everything
        assert list_images([str(small_folder), str(small_folder / "animal")]) == everything
        other_path = small_folder / "food" / ".." / "animal"
        assert list_images([str(small_folder), str(other_path)]) == everything

    def test_captions_matched_by_pattern_are_skipped(self, small_folder, capsys):
        (small_folder / "animal" / "cat.txt").write_text("a cat")
        assert len(list_images([str(small_folder / "animal" / "*")])) == 4
        assert "1 '.txt'" in capsys.readouterr().err

    def test_image_without_suffix_is_listed(self, image, tmp_path):
        target = tmp_path / "IMG_0001"
        shutil.copy(image, target)
        assert list_images([str(target)]) == [str(target)]

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("gone.jpg", "'gone.jpg' does not exist"),
            ("*.gone", r"'\*\.gone' matches no files"),
            ("https://x.org/cat.jpg", "is a URL.*Download"),
        ],
    )
    def test_missing_files_raise(self, argument, message):
        with pytest.raises(FileNotFoundError, match=message):
            list_images([argument])

    def test_closed_standard_input_has_no_images(self, monkeypatch):
        monkeypatch.setattr("sys.stdin", None)  # as Python sets it for <&-
        with pytest.raises(ValueError, match="IMAGES contains no images"):
            list_images(["-"])

    def test_empty_folder_raises(self, tmp_path):
        with pytest.raises(ValueError, match=r"no images .no files at all"):
            list_images([str(tmp_path)])


class TestParseLabels:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("cat,dog", ["cat", "dog"]),
            (" a cat , a dog,", ["a cat", "a dog"]),
            ('cat, "salt, pepper"', ["cat", "salt, pepper"]),
            ("cat,dog\nbird,fish", ["cat", "dog", "bird", "fish"]),
            ("cat\r\ndog\rbird\n", ["cat", "dog", "bird"]),
        ],
    )
    def test_names_in_option(self, text, names):
        assert parse_labels([text], None) == names

    def test_names_in_repeated_options(self):
        assert parse_labels(["cat,dog", "bird"], None) == ["cat", "dog", "bird"]

    def test_names_in_files(self, tmp_path):
        lines, table = tmp_path / "labels.txt", tmp_path / "labels.json"
        lines.write_text("\ufeffsalt, pepper\n\n  Käse \n", encoding="utf-8")
        assert parse_labels(None, lines) == ["salt, pepper", "Käse"]
        table.write_text('{"vehicle": ["car", "bus"], "animal": "cat"}')
        assert parse_labels(None, table) == {"vehicle": ["car", "bus"], "animal": "cat"}

    @pytest.mark.parametrize(
        ("text", "error", "message"),
        [
            ("cat,dog,cat", ValueError, "repeat: 'cat'"),
            ("cat", typer.BadParameter, "'cat' is the only label"),
            (
                "cats.json",
                typer.BadParameter,
                "name of a file, not a label. Pass it to --labels-f",
            ),
            ("cat; dog", typer.BadParameter, "labels, separated by commas and in quotes"),
            (" , ", typer.BadParameter, "contains no names"),
        ],
    )
    def test_useless_labels_raise(self, text, error, message):
        with pytest.raises(error, match=message):
            parse_labels([text], None)

    @pytest.mark.parametrize("suffix", [".txt", ".json"])
    def test_file_without_labels_is_named(self, tmp_path, suffix):
        file = tmp_path / f"names{suffix}"
        file.write_text("[]" if suffix == ".json" else "\n")
        with pytest.raises(typer.BadParameter, match=r"names.* contains no names"):
            parse_labels(None, file)

    def test_file_of_one_line_says_where_names_belong(self, tmp_path):
        file = tmp_path / "names.txt"
        file.write_text("animal,food\n")
        with pytest.raises(
            typer.BadParameter, match=r"only one name, 'animal,food'.*one per line"
        ):
            parse_labels(None, file)

    @pytest.mark.parametrize("suffix", [".csv", ".yaml"])
    def test_files_of_other_formats_raise(self, tmp_path, suffix):
        """Their lines would become labels."""
        file = tmp_path / f"names{suffix}"
        file.write_text("path,label\na.jpg,cat\n")
        with pytest.raises(typer.BadParameter, match=f"is a {suffix} file"):
            parse_labels(None, file)

    def test_invalid_json_raises(self, tmp_path):
        (tmp_path / "labels.json").write_text("{cat}")
        with pytest.raises(ValueError, match="is not valid JSON"):
            parse_labels(None, tmp_path / "labels.json")
        (tmp_path / "labels.json").write_text("7")
        with pytest.raises(ValueError, match="not a list or an object"):
            parse_labels(None, tmp_path / "labels.json")
        (tmp_path / "labels.json").write_text('{"animal": ["cat"], "animal": ["dog"]}')
        with pytest.raises(ValueError, match="has the key 'animal' more than once"):
            parse_labels(None, tmp_path / "labels.json")
        (tmp_path / "labels.json").write_bytes('["Käse"]'.encode("latin-1"))
        with pytest.raises(ValueError, match=r"is not UTF-8 text.* Save it as UTF-8"):
            parse_labels(None, tmp_path / "labels.json")

    def test_files_are_split_only_at_line_ends(self, tmp_path):
        file = tmp_path / "labels.txt"
        file.write_bytes("New\u2028York\nform\x0cfeed\r\na\x85b\x1cc\rdog\n".encode())
        assert parse_labels(None, file) == ["New\u2028York", "form\x0cfeed", "a\x85b\x1cc", "dog"]

    def test_both_options_raise(self, tmp_path):
        with pytest.raises(typer.BadParameter, match="both set"):
            parse_labels(["cat,dog"], tmp_path)


class TestLoadData:
    def test_missing_image_raises_only_if_strict(self, small_folder):
        table = small_folder / "pairs.csv"
        image = next(small_folder.glob("*/*.png")).relative_to(small_folder)
        table.write_text(f"image,caption\ngone.jpg,a cat\n{image.as_posix()},a dog\n")
        assert len(load_data(table).images) == 2
        with pytest.raises(FileNotFoundError, match="gone"):
            load_data(table, strict=True)

    def test_cells_without_images_raise(self, tmp_path):
        (tmp_path / "t.jsonl").write_text('{"image": 7, "caption": "a cat"}')
        with pytest.raises(ValueError, match="has an image of type int"):
            load_data(tmp_path / "t.jsonl")

    def test_options_of_another_kind_of_data_raise(self, small_folder):
        """Columns of a folder, and sources of captions of a table, had no effect."""
        with pytest.raises(typer.BadParameter, match="'kind' is a column of a table, and"):
            load_data(small_folder, image="image", caption="caption", label="kind")
        (small_folder / "pairs.csv").write_text("image,text\ngone.jpg,a cat\n")
        with pytest.raises(typer.BadParameter, match="set --caption to the column of captions"):
            load_data(small_folder / "pairs.csv", "text")

    def test_captions_of_a_table_can_be_left_out(self, small_folder, image):
        table = small_folder / "pairs.csv"
        table.write_text(f"image,caption,kind\n{image},a cat,animal\n")
        data = load_data(table, "none", image="image", caption="caption", label="kind")
        assert data.captions is None
        assert data.labels.tolist() == ["animal"]
        with pytest.raises(typer.BadParameter, match="'none' is a source of captions"):
            load_data(table, "none", image="image", caption="kind", label="kind")

    def test_missing_data_raise(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            load_data(tmp_path / "gone")
        with pytest.raises(FileNotFoundError, match=r"'https://x\.org/p\.csv' is a URL"):
            load_data(Path("https://x.org/p.csv"))


ROWS = [["a, b\n.jpg", "cat", 0.5], ["[bold]ü.jpg", None, None]]
COLUMNS = ["path", "label", "probability"]


def write(output, form=None):
    with Table(COLUMNS, output, form) as table:
        for row in ROWS:
            table.write(row)


class TestTable:
    @pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
    def test_each_format_round_trips(self, tmp_path, suffix):
        file = tmp_path / f"out.{suffix}"
        write(file)
        if suffix in ("csv", "tsv"):
            with file.open(newline="", encoding="utf-8") as stream:
                read = list(csv.reader(stream, delimiter="," if suffix == "csv" else "\t"))
            assert read == [COLUMNS, ["a, b\n.jpg", "cat", "0.5"], ["[bold]ü.jpg", "", ""]]
            return
        if suffix == "parquet":
            frame = pd.read_parquet(file)
            read = frame.astype(object).where(frame.notna(), None).to_dict("records")
        elif suffix == "json":
            read = json.loads(file.read_text())
        else:
            read = [json.loads(line) for line in file.read_text().splitlines()]
        assert [[*row.values()] for row in read] == ROWS

    def test_parquet_is_written_to_pipe(self, capfdbinary):
        with Table(["path"], file_format="parquet") as table:
            table.write(["a.jpg"])
        given = io.BytesIO(capfdbinary.readouterr().out)
        assert pd.read_parquet(given)["path"].tolist() == ["a.jpg"]

    def test_unfinished_table_leaves_no_file(self, tmp_path):
        table = Table(COLUMNS, tmp_path / "out.json").__enter__()
        table.write([object()])  # not JSON
        with pytest.raises((TypeError, ValueError)):
            table.__exit__(None, None, None)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
    def test_error_keeps_previous_file(self, tmp_path, suffix):
        file = tmp_path / f"out.{suffix}"
        write(file)
        before = file.read_bytes()
        table = Table(COLUMNS, file).__enter__()
        table.write(["x.jpg", "dog", 1.0])
        table.__exit__(RuntimeError, RuntimeError(), None)
        assert file.read_bytes() == before
        assert os.listdir(tmp_path) == [file.name]

    def test_target_of_link_is_replaced(self, tmp_path):
        (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
        (tmp_path / "real.csv").write_text("old")
        write(tmp_path / "link.csv")
        assert (tmp_path / "link.csv").is_symlink()
        assert (tmp_path / "real.csv").read_text().startswith("path")

    def test_device_is_not_replaced(self):
        write(Path("/dev/null"), "csv")
        assert not os.path.isfile("/dev/null")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
    @pytest.mark.parametrize("form", ["csv", "json", "parquet"])
    def test_full_device_is_named(self, form, monkeypatch):
        """It is not removed either, as pyarrow did if the user may."""
        removed = []
        monkeypatch.setattr(os, "remove", removed.append)
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            write(Path("/dev/full"), form)
        assert removed == []

    def test_undecodable_names_are_written_as_bytes(self, tmp_path):
        name = os.fsdecode(b"caf\xe9.jpg")
        with Table(["path"], tmp_path / "out.csv") as table:
            table.write([name])
        assert (tmp_path / "out.csv").read_bytes() == b"path\ncaf\xe9.jpg\n"
        with Table(["path"], tmp_path / "out.parquet") as table:
            table.write([name])
        assert pd.read_parquet(tmp_path / "out.parquet")["path"].tolist() == ["caf\\udce9.jpg"]

    @pytest.mark.parametrize("form", ["csv", "tsv", "json", "jsonl", "table"])
    def test_control_characters_are_escaped_on_terminal(self, monkeypatch, form):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setattr("sys.stdout", Terminal())
        with Table(["path\x1b[2J", "label"], file_format=form) as table:
            table.write([FileName("red\x1b[31m\n.jpg"), "a\x7fb\x9b"])
        output = re.sub(r"\x1b\[[0-9;]*m", "", sys.stdout.getvalue())  # colours of rich
        assert output.replace("\n", "").replace("\t", "").isprintable()
        assert "31m" in output

    @pytest.mark.parametrize(
        ("is_terminal", "quiet"), [(True, False), (True, True), (False, False)]
    )
    def test_loading_is_announced_on_a_terminal_only(
        self, monkeypatch, capsys, is_terminal, quiet
    ):
        """Commands were silent for several seconds before their first progress bar."""
        monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
        print_loading(quiet)
        expected = "Loading the networks ...\n" if is_terminal and not quiet else ""
        assert capsys.readouterr().err == expected

    def test_parquet_on_terminal_raises(self, monkeypatch):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        with pytest.raises(typer.BadParameter, match="Set --output"):
            resolve_format(None, "parquet")

    @pytest.mark.exhaustive
    @given(
        st.lists(
            st.tuples(
                st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
                st.sampled_from(["", "=", "-", "+", "@", "'=", "\t", "\r", '"', ",;"]),
                st.floats(allow_nan=False, allow_infinity=False),
            ),
            min_size=1,
            max_size=5,
        ),
        st.sampled_from(["csv", "tsv"]),
    )
    @settings(max_examples=200, deadline=None)
    def test_escaped_captions_and_names_round_trip(self, rows, form):
        rows = [(f"{first}{text}x", number) for text, first, number in rows]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"pairs.{form}")
            with Table(["image", "caption", "similarity"], file) as table:
                for text, number in rows:
                    table.write([FileName(text.replace("/", "")), text, number])
            data = load_pairs(file, check_files=False)
            numbers = read_table(file)["similarity"]
            cells = [
                row[:2]
                for row in csv.reader(
                    io.StringIO(file.read_bytes().decode(), newline=""),
                    delimiter="," if form == "csv" else "\t",
                )
            ]
        assert data.captions == [" ".join(text.split()) for text, _ in rows]
        assert [os.path.normpath(path) for path in data.images] == [
            os.path.normpath(os.path.join(folder, text.replace("/", ""))) for text, _ in rows
        ]
        assert list(map(float, numbers)) == [number for _, number in rows]
        for cell in itertools.chain(*cells):
            assert not re.match(r"[=+\-@\t\r\n]", cell)

    def test_numbers_are_not_escaped(self, tmp_path):
        with Table(["score", "label"], tmp_path / "out.csv") as table:
            table.write([-0.5, "-1"])
        assert (tmp_path / "out.csv").read_text() == "score,label\n-0.5,-1\n"

    def test_table_does_not_interpret_markup(self, capsys):
        write(None, "table")
        assert "[bold]ü.jpg" in capsys.readouterr().out


class TestOutputs:
    def test_suffix_selects_format(self, tmp_path):
        assert resolve_format(tmp_path / "x.CSV", None) == "csv"
        assert resolve_format(tmp_path / "x.ndjson", None) == "jsonl"
        assert resolve_format(tmp_path / "x.txt", "tsv") == "tsv"
        assert (
            resolve_format(None, None) == "csv"
        )  # the standard output of tests is not a terminal
        with pytest.raises(typer.BadParameter, match="no suffix of a known format"):
            resolve_format(tmp_path / "x.txt", None)
        with pytest.raises(typer.BadParameter, match="'xlsx' is not one of"):
            resolve_format(None, "xlsx")

    def test_missing_folder_is_created(self, tmp_path):
        check_output_file(tmp_path / "a" / "b" / "out.csv")
        assert os.listdir(tmp_path / "a" / "b") == []

    def test_unknown_user_is_name_of_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        check_output_file(Path("~no-such-user/out.csv"))
        check_output_folder(Path("~no-such-user/folder"))
        with write_atomically(Path("~no-such-user/out.csv")) as path:
            path.write_text("a")
        assert os.listdir(tmp_path / "~no-such-user") == ["out.csv"]

    def test_existing_file_or_folder_in_path_raises(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(IsADirectoryError, match="is a folder"):
            check_output_file(tmp_path)
        with pytest.raises(OSError, match="cannot be written"):
            check_output_file(tmp_path / "file" / "out.csv")
        with pytest.raises(NotADirectoryError, match="is a file"):
            check_output_folder(tmp_path / "file")

    def test_full_disk_raises(self, tmp_path, monkeypatch):
        usage = namedtuple("usage", "total used free")(10**9, 10**9 - 2**20, 2**20)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match="needs about 50 MiB, but only 1 MiB are free"):
            check_output_file(tmp_path / "out.npy", 50 * 2**20)

    def test_disk_without_space_for_a_model_raises(self, tmp_path, monkeypatch):
        """Models were fitted, and then lost because they could not be saved."""
        usage = namedtuple("usage", "total used free")(10**9, 10**9 - 2**24, 2**24)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match="needs about 32 MiB, but only 16 MiB are free"):
            check_model_folder(tmp_path / "model", "Aligner", has_starter=True)
        check_model_folder(tmp_path / "model", "Aligner")


def test_sidecar_captions_are_not_reported_as_skipped(small_folder, capsys, monkeypatch):
    """Other text files are."""
    images = sorted(small_folder.rglob("*.png"))
    for image, suffix in zip(images, (".txt", ".TXT", ".caption"), strict=False):
        image.with_suffix(suffix).write_text("a caption")
    assert len(list_images([str(small_folder)])) == len(images)
    assert "Skipped" not in capsys.readouterr().err
    (small_folder / "notes.txt").write_text("not a caption")
    list_images([str(small_folder)])
    assert "Skipped 1 file of other formats (1 '.txt')." in capsys.readouterr().err
    # A file system that ignores case has each file under both names.
    is_file = Path.is_file
    monkeypatch.setattr(
        Path,
        "is_file",
        lambda path: is_file(path) or is_file(path.with_suffix(path.suffix.lower())),
    )
    list_images([str(small_folder)])
    assert "Skipped 1 file of other formats (1 '.txt')." in capsys.readouterr().err


def test_captions_that_images_share_are_counted_once(small_folder, tmp_path, capsys):
    """They do not reduce the number of other files, in the same folder and in others."""
    image = next(small_folder.rglob("*.png"))
    for name in ("shared", "other"):
        (tmp_path / name).mkdir()
        for suffix in (".png", ".jpg"):
            shutil.copy(image, tmp_path / name / f"photo{suffix}")
        (tmp_path / name / "notes.txt").write_text("not a caption")
    (tmp_path / "shared" / "photo.txt").write_text("a caption")
    list_images([str(tmp_path / "shared"), str(tmp_path / "other")])
    assert "Skipped 2 files of other formats (2 '.txt')." in capsys.readouterr().err
