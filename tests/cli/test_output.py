"""Files are whole or absent; rows survive what names may hold."""

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

from sklearn_ape.cli._output import FileName, Table, check_file, check_folder, form_of
from sklearn_ape.datasets import load_pairs
from sklearn_ape.datasets.table import read_table

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
