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

from sklearn_ape.cli._inputs import label_names, list_images, load_data
from sklearn_ape.cli._output import FileName, Table, check_file, check_folder, form_of
from sklearn_ape.datasets import load_pairs
from sklearn_ape.datasets.table import read_table


@pytest.fixture
def image(few):
    return next((few / "animal").iterdir())


def relative(paths, folder):
    return [os.path.relpath(path, folder) for path in paths]


class TestListImages:
    def test_names_that_are_hard_to_handle(self, image, tmp_path, capsys):
        folder = tmp_path / "mine"
        folder.mkdir()
        names = ["with space.PNG", "line\nfeed.png", "Früchte 🍎.png", "a,b;'c'.png", "[1].png"]
        for name in names:
            shutil.copy(image, folder / name)
        (folder / "notes.txt").write_text("no image")
        (folder / ".hidden.png").write_text("no image")
        (folder / "link.png").symlink_to(image)
        assert sorted(relative(list_images([str(folder)]), folder)) == sorted([*names, "link.png"])
        assert "1 files (1 '.txt')" in capsys.readouterr().err

    def test_a_file_that_looks_like_a_pattern_is_a_file(self, image, tmp_path):
        target = tmp_path / "[1].png"
        shutil.copy(image, target)
        assert list_images([str(target)]) == [str(target)]

    def test_patterns_and_folders_name_an_image_once(self, few):
        everything = list_images([str(few)])
        assert len(everything) == 12
        assert list_images([str(few / "**" / "*.png"), str(few)]) == everything
        assert list_images([str(few), str(few / "animal")]) == everything

    def test_captions_among_the_files_of_a_pattern_are_no_images(self, few, capsys):
        (few / "animal" / "cat.txt").write_text("a cat")
        assert len(list_images([str(few / "animal" / "*")])) == 4
        assert "1 '.txt'" in capsys.readouterr().err

    def test_an_image_without_an_extension(self, image, tmp_path):
        target = tmp_path / "IMG_0001"
        shutil.copy(image, target)
        assert list_images([str(target)]) == [str(target)]

    def test_a_circle_of_links_ends(self, few):
        (few / "animal" / "again").symlink_to(few)
        assert len(list_images([str(few)])) == 12

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("gone.jpg", "no file or folder 'gone.jpg'"),
            ("*.gone", r"No file fits the pattern '\*\.gone'"),
            ("https://x.org/cat.jpg", "address.*download"),
        ],
    )
    def test_what_is_not_there(self, argument, message):
        with pytest.raises(FileNotFoundError, match=message):
            list_images([argument])

    def test_empty_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r"no images in .*no files at all"):
            list_images([str(tmp_path)])


class TestLabelNames:
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
    def test_on_the_command_line(self, text, names):
        assert label_names(text, None) == names

    def test_in_files(self, tmp_path):
        lines, table = tmp_path / "labels.txt", tmp_path / "labels.json"
        lines.write_text("\ufeffsalt, pepper\n\n  Käse \n", encoding="utf-8")
        assert label_names(None, lines) == ["salt, pepper", "Käse"]
        table.write_text('{"vehicle": ["car", "bus"], "animal": "cat"}')
        assert label_names(None, table) == {"vehicle": ["car", "bus"], "animal": "cat"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("cat,dog,cat", "repeat: 'cat'"),
            ("cat", "'cat' is the only label"),
            (" , ", "empty"),
        ],
    )
    def test_labels_that_would_give_silent_nonsense(self, text, message):
        with pytest.raises(ValueError, match=message):
            label_names(text, None)

    def test_broken_json(self, tmp_path):
        (tmp_path / "labels.json").write_text("{cat}")
        with pytest.raises(ValueError, match="is not JSON"):
            label_names(None, tmp_path / "labels.json")
        (tmp_path / "labels.json").write_text("7")
        with pytest.raises(ValueError, match="must hold a list"):
            label_names(None, tmp_path / "labels.json")

    def test_files_are_split_at_line_ends_alone(self, tmp_path):
        file = tmp_path / "labels.txt"
        file.write_bytes("New\u2028York\nform\x0cfeed\r\na\x85b\x1cc\rdog\n".encode())
        assert label_names(None, file) == ["New\u2028York", "form\x0cfeed", "a\x85b\x1cc", "dog"]

    @pytest.mark.parametrize(
        "text",
        ['{"animal": ["cat"], "animal": ["dog"], "car": "bus"}', '[{"animal": 1, "animal": 2}]'],
    )
    def test_a_repeated_key_in_json_raises(self, tmp_path, text):
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(ValueError, match="has the key 'animal' more than once"):
            label_names(None, tmp_path / "labels.json")

    def test_names_that_are_too_long_for_csv(self):
        with pytest.raises(typer.BadParameter, match="cannot be read"):
            label_names("cat," + "d" * 200_000, None)

    def test_both_ways_at_once(self, tmp_path):
        with pytest.raises(typer.BadParameter, match="not both"):
            label_names("cat,dog", tmp_path)


class TestLoadData:
    def test_a_table_of_a_spreadsheet(self, few, image):
        table = few / "pairs.csv"
        name = image.relative_to(few)
        table.write_text(f"\ufeffBild;Text\n{name};a cat, black\n", encoding="utf-8")
        data = load_data(table, image="Bild", caption="Text")
        assert data.captions == ["a cat, black"]
        assert data.images == [str(image)]

    def test_an_image_that_is_gone_is_left_to_the_encoder_unless_strict(self, few):
        table = few / "pairs.csv"
        table.write_text("image,caption\ngone.jpg,a cat\n")
        assert len(load_data(table).images) == 1
        with pytest.raises(FileNotFoundError, match="gone"):
            load_data(table, strict=True)

    def test_cells_that_hold_no_images(self, tmp_path):
        (tmp_path / "t.jsonl").write_text('{"image": 7, "caption": "a cat"}')
        with pytest.raises(ValueError, match="holds a int for an image"):
            load_data(tmp_path / "t.jsonl")

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder or table"):
            load_data(tmp_path / "gone")


ROWS = [["a, b\n.jpg", "cat", 0.5], ["[bold]ü.jpg", None, None]]
COLUMNS = ["path", "label", "probability"]


def write(output, form=None):
    with Table(COLUMNS, output, form) as table:
        for row in ROWS:
            table.write(row)


class TestTable:
    @pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
    def test_every_form_gives_back_what_was_written(self, tmp_path, suffix):
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

    def test_parquet_goes_through_a_pipe(self, capfdbinary):
        with Table(["path"], form="parquet") as table:
            table.write(["a.jpg"])
        given = io.BytesIO(capfdbinary.readouterr().out)
        assert pd.read_parquet(given)["path"].tolist() == ["a.jpg"]

    def test_a_table_that_cannot_be_finished_leaves_no_file(self, tmp_path):
        table = Table(COLUMNS, tmp_path / "out.json").__enter__()
        table.write([object()])  # no JSON
        with pytest.raises((TypeError, ValueError)):
            table.__exit__(None, None, None)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
    def test_an_error_leaves_the_file_that_was_there_and_nothing_else(self, tmp_path, suffix):
        file = tmp_path / f"out.{suffix}"
        write(file)
        before = file.read_bytes()
        table = Table(COLUMNS, file).__enter__()
        table.write(["x.jpg", "dog", 1.0])
        table.__exit__(RuntimeError, RuntimeError(), None)
        assert file.read_bytes() == before
        assert os.listdir(tmp_path) == [file.name]

    def test_a_link_stays_a_link(self, tmp_path):
        (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
        (tmp_path / "real.csv").write_text("old")
        write(tmp_path / "link.csv")
        assert (tmp_path / "link.csv").is_symlink()
        assert (tmp_path / "real.csv").read_text().startswith("path")

    def test_what_is_no_file_is_not_replaced(self):
        write(Path("/dev/null"), "csv")
        assert not os.path.isfile("/dev/null")

    def test_names_that_are_no_text_come_out_as_they_are(self, tmp_path):
        name = os.fsdecode(b"caf\xe9.jpg")
        with Table(["path"], tmp_path / "out.csv") as table:
            table.write([name])
        assert (tmp_path / "out.csv").read_bytes() == b"path\ncaf\xe9.jpg\n"
        with Table(["path"], tmp_path / "out.parquet") as table:
            table.write([name])
        assert pd.read_parquet(tmp_path / "out.parquet")["path"].tolist() == ["caf\\udce9.jpg"]

    @pytest.mark.parametrize("form", ["csv", "tsv", "json", "jsonl", "table"])
    def test_a_terminal_sees_no_control_characters(self, monkeypatch, form):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setattr("sys.stdout", Terminal())
        with Table(["path\x1b[2J", "label"], form=form) as table:
            table.write([FileName("red\x1b[31m\n.jpg"), "a\x7fb\x9b"])
        shown = re.sub(r"\x1b\[[0-9;]*m", "", sys.stdout.getvalue())  # rich's own colours
        assert shown.replace("\n", "").replace("\t", "").isprintable()
        assert "31m" in shown

    def test_parquet_is_refused_on_a_terminal(self, monkeypatch):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        with pytest.raises(typer.BadParameter, match="Give --output"):
            form_of(None, "parquet")

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
    def test_captions_come_back_and_names_lead_to_the_same_files(self, rows, form):
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

    def test_numbers_stay_numbers(self, tmp_path):
        with Table(["score", "label"], tmp_path / "out.csv") as table:
            table.write([-0.5, "-1"])
        assert (tmp_path / "out.csv").read_text() == "score,label\n-0.5,-1\n"

    def test_a_table_shows_brackets_as_they_are(self, capsys):
        write(None, "table")
        assert "[bold]ü.jpg" in capsys.readouterr().out


class TestChecks:
    def test_the_form_is_that_of_the_name(self, tmp_path):
        assert form_of(tmp_path / "x.CSV", None) == "csv"
        assert form_of(tmp_path / "x.ndjson", None) == "jsonl"
        assert form_of(tmp_path / "x.txt", "tsv") == "tsv"
        assert form_of(None, None) == "csv"  # a test's standard output is no terminal
        with pytest.raises(typer.BadParameter, match="cannot tell the format"):
            form_of(tmp_path / "x.txt", None)
        with pytest.raises(typer.BadParameter, match="'xlsx' is not one of"):
            form_of(None, "xlsx")

    def test_a_missing_folder_is_made(self, tmp_path):
        check_file(tmp_path / "a" / "b" / "out.csv")
        assert os.listdir(tmp_path / "a" / "b") == []

    def test_what_is_in_the_way(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(IsADirectoryError, match="is a folder"):
            check_file(tmp_path)
        with pytest.raises(OSError, match="cannot be written"):
            check_file(tmp_path / "file" / "out.csv")
        with pytest.raises(NotADirectoryError, match="is a file"):
            check_folder(tmp_path / "file")

    def test_a_full_disk_is_told_before_the_work(self, tmp_path, monkeypatch):
        usage = namedtuple("usage", "total used free")(10**9, 10**9 - 2**20, 2**20)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match="will take about 50 MiB, and 1 MiB are free"):
            check_file(tmp_path / "out.npy", 50 * 2**20)
