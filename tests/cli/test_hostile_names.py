"""File names, labels and captions that terminals and spreadsheets would interpret."""

import csv
import io
import json
import os
import re
import shutil
import unicodedata

import pytest

from sklearn_ape.datasets import load_pairs
from sklearn_ape.utils import messages

NAMES = (
    *("=cmd|' !A0.png", "-photo.png", "+5.png", "@sum.png", "\ttab.png", "\rback.png"),
    *(
        "red\x1b[31m.png",
        "title\x1b]0;x\x07.png",
        "csi\x9b2J.png",
        "line\nfeed.png",
        "bell\x07.png",
    ),
    *(
        "turn\u202egnp.png",
        "hidden\u200b.png",
        "a,b;c.png",
        "\"quoted\" 'name'.png",
        "[bold]b.png",
    ),
    os.fsdecode(b"caf\xe9\x9b31m.png"),
    "'=quote.png",
)
LABELS = ("=an animal", "-food\x1b[31m", "@travel\u202e", "[red]thing")
FORMULA = re.compile(r"[=+\-@\t\r]")
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


@pytest.fixture(autouse=True)
def no_progress_bars(monkeypatch):
    """Hide progress bars, which contain carriage returns and appear on a busy machine only."""
    monkeypatch.setattr(messages, "shows_progress", lambda verbose: False)


@pytest.fixture(scope="module")
def hostile(photos, tmp_path_factory):
    """Return a folder of images with such names, including two unreadable images."""
    folder = tmp_path_factory.mktemp("hostile")
    images = sorted(photos.glob("*/*.png"))
    for name, image in zip(NAMES, images[:: len(images) // len(NAMES)], strict=False):
        shutil.copy(image, folder / name)
    for name in ("bad\x1b[2J.png", "=bad.png"):
        (folder / name).write_bytes(f"no image: {name}".encode())
    return folder


@pytest.fixture
def here(hostile, monkeypatch):
    """Change to the folder, so that names are passed without a folder."""
    monkeypatch.chdir(hostile)
    return hostile


def assert_harmless(text):
    for character in text.replace("\n", ""):
        assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"), repr(text)


def read_csv(text):
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    for row in rows:
        for cell in row:
            assert not FORMULA.match(cell) or NUMBER.fullmatch(cell), cell
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def decoded(content):
    return content.decode("utf-8", "surrogateescape")


def files(rows, column="path"):
    return {os.path.normpath(row[column]) for row in rows}


def test_classify_escapes_names_in_all_formats(here, run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(list(LABELS)))
    command = ("classify", "*.png", "--labels-file", labels, "--top-k", 2)
    everything = set(os.listdir("."))
    result = run(*command, "--quiet")  # progress bars contain control characters
    assert_harmless(result.stderr)
    assert r"'bad\x1b[2J.png'" in result.stderr
    rows = read_csv(decoded(result.stdout_bytes))
    assert files(rows) == everything
    assert {row["label"].removeprefix("'") for row in rows if row["label"]} <= set(LABELS)
    text = run(*command, "--format", "table").stdout
    assert_harmless(text)
    assert r"red\x1b[31m.png" in text
    records = json.loads(run(*command, "--format", "json").stdout)
    assert {record["path"] for record in records} == everything
    assert {record["label_2"] for record in records if record["label_2"]} <= set(LABELS)


def test_search_escapes_names(here, run, tmp_path):
    like = "=cmd|' !A0.png"
    command = ("search", "*.png", "--query", "=1+1", "--query", "red\x1b[31m", "--like", like)
    result = run(*command, "-k", 3)
    assert_harmless(result.stderr)
    rows = read_csv(decoded(result.stdout_bytes))
    assert files(rows) <= set(NAMES)
    assert [row["query"] for row in rows] == [
        *["'=1+1"] * 3,
        *["red\x1b[31m"] * 3,
        *[f"./{like}"] * 3,
    ]
    assert_harmless(run(*command, "--format", "table").stdout)
    run("index", "*.png", "-o", tmp_path / "index")
    rows = read_csv(
        decoded(run("search", "--index", tmp_path / "index", "--query", "x").stdout_bytes)
    )
    assert {os.path.basename(row["path"]) for row in rows} <= set(NAMES)


def test_encode_escapes_names(here, run, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("=1+1\n-5 degrees\n-5\na\x0cb\u2028c\n", encoding="utf-8")
    result = run("encode", "*.png", "-o", tmp_path / "f.npy", "--texts", texts, "--quiet")
    assert_harmless(result.stderr)
    rows = read_csv(decoded((tmp_path / "f.csv").read_bytes()))
    assert files(rows) == set(os.listdir("."))
    rows = read_csv((tmp_path / "f.texts.csv").read_text(encoding="utf-8"))
    assert [row["text"] for row in rows] == ["'=1+1", "'-5 degrees", "-5", "a\x0cb\u2028c"]


@pytest.mark.exhaustive
def test_names_survive_curate_fit_and_evaluate(here, run, tmp_path):
    captions = [f"{'=+-@'[row % 4]}{row} things" for row in range(len(NAMES))]
    table = tmp_path / "pairs.jsonl"
    records = [
        {"image": str(here / name), "caption": caption, "label": "=a" if row % 2 else "-b"}
        for row, (name, caption) in enumerate(zip(NAMES, captions, strict=True))
    ]
    table.write_text("".join(json.dumps(record) + "\n" for record in records))
    for suffix in ("csv", "tsv"):
        chosen, dropped = (tmp_path / f"{name}.{suffix}" for name in ("chosen", "dropped"))
        options = ("--labels", "=a,-b", "-n", 12, "--noisy", 0, "--dropped", dropped)
        result = run("curate", table, *options, "-o", chosen)
        assert_harmless(result.stderr)
        given = {(record["image"], record["caption"]) for record in records}
        pairs = [load_pairs(file) for file in (chosen, dropped)]
        assert len(pairs[0].images) == 12
        assert {
            pair for both in pairs for pair in zip(both.images, both.captions, strict=True)
        } == given
        assert set(load_pairs(chosen, label="label").labels) <= {"=a", "-b"}
    read_csv(decoded((tmp_path / "chosen.csv").read_bytes()))
    result = run("fit", tmp_path / "chosen.csv", "--method", "cca", "-o", tmp_path / "model")
    assert_harmless(result.stdout + result.stderr)
    result = run("evaluate", table, "--label", "label", "--aligner", tmp_path / "model")
    assert_harmless(result.stderr)
    rows = read_csv(result.stdout)
    assert {row["of"] for row in rows if row["measure"] == "accuracy"} == {"all", "'=a", "'-b"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("classify", "gone\x1b[31m.png", "--labels", "a,b"), 1),
        (("classify", "--no\x1b[31m.png", "--labels", "a,b"), 2),
        (("no\x1b[31m",), 2),
        (("--no\x1b[31m",), 2),
        (("classify", ".", "--labels", "a,b", "--aligner", "no\x1b[31m\u202e"), 1),
        (("classify", ".", "--labels", "red\x1b[31m,red\x1b[31m"), 1),
        (("classify", ".", "--labels", "a,b", "-o", "x.no\x1b[31m"), 2),
        (("evaluate", "."), 1),
        (("encode", ".", "-o", "x.npy", "--encoder", "no\x1b[31m"), 1),
        (("fit", ".", "-o", "=cmd|' !A0.png"), 1),
    ],
)
def test_errors_escape_names(here, run, arguments, code):
    assert_harmless(run(*arguments, code=code).stderr)
