"""The command `classify`."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sklearn_ape import (
    FewShotClassifier,
    MultiLabelZeroShotClassifier,
    ZeroShotClassifier,
    load_starter,
)
from sklearn_ape.cli import _models
from sklearn_ape.utils.messages import HiddenBar
from tests.encoders.test_open_clip import save_model

LABELS = "an animal,food,a vehicle"


@pytest.fixture
def broken(small_folder):
    """Return `small_folder` with a damaged image and a text file named as an image."""
    whole = next((small_folder / "animal").iterdir())
    (small_folder / "animal" / "zz cut short.png").write_bytes(whole.read_bytes()[:200])
    (small_folder / "zz text.jpg").write_text("no image")
    return small_folder


class TestResults:
    def test_results_equal_those_of_classifier(self, small_folder, rows):
        table_rows = rows(
            "classify", small_folder, "--labels", LABELS, "--top-k", "2", "--probabilities"
        )
        paths = [row["path"] for row in table_rows]
        assert paths == sorted(paths)
        assert len(paths) == 12
        classifier = ZeroShotClassifier(LABELS.split(","))
        expected = classifier.predict_proba(paths)
        columns = [f"probability:{name}" for name in classifier.classes_]
        shares = np.array([[float(row[name]) for name in columns] for row in table_rows])
        np.testing.assert_allclose(shares, expected, atol=1e-4)
        assert [row["label"] for row in table_rows] == classifier.predict(paths).tolist()
        second = classifier.classes_[np.argsort(-expected, axis=1)[:, 1]]
        assert [row["label_2"] for row in table_rows] == second.tolist()
        assert {row["error"] for row in table_rows} == {""}

    def test_image_below_threshold_is_unknown(self, small_folder, rows):
        table_rows = rows(
            "classify", small_folder, "--labels", LABELS, "--threshold", "0.7", "--top-k", "2"
        )
        for row in table_rows:
            is_certain = float(row["probability"]) >= 0.7
            assert row["label"] == (row["label_1"] if is_certain else "unknown")
        assert 0 < sum(row["label"] == "unknown" for row in table_rows) < len(table_rows)

    def test_synonyms_and_templates(self, small_folder, rows, tmp_path):
        file = tmp_path / "labels.json"
        file.write_text(json.dumps({"living": ["an animal", "a plant"], "thing": ["a vehicle"]}))
        table_rows = rows(
            "classify", small_folder, "--labels-file", file, "--templates", "drawing"
        )
        assert {row["label"] for row in table_rows} <= {"living", "thing"}


class TestImages:
    def test_unreadable_images_are_rows_with_error(self, broken, rows, run):
        table_rows = rows("classify", broken, "--labels", LABELS)
        bad = {os.path.basename(row["path"]): row for row in table_rows if row["error"]}
        assert set(bad) == {"zz cut short.png", "zz text.jpg"}
        assert "a text file, not an image" in bad["zz text.jpg"]["error"]
        assert {row["label"] for row in bad.values()} == {""}
        assert len(table_rows) == 14
        said = run("classify", broken, "--labels", LABELS, "--quiet").stderr
        assert "Skipped 2 of 14 images, which cannot be read" in said

    def test_table_repeats_neither_errors_nor_the_first_label(self, broken, run, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        options = ("classify", broken, "--labels", LABELS, "--format", "table", "-k", "2")
        header = "path label probability label 2 probability 2"
        assert run(*options).stdout.split("\n")[1].split() == header.split()
        result = run(*options, "--threshold", "0.99")  # the label is "unknown" for some
        header = "path label probability label 1 probability 1 label 2 probability 2"
        assert result.stdout.split("\n")[1].split() == header.split()
        assert "zz cut short.png' is damaged" in result.stderr
        for number in range(4):  # more errors than the message lists
            (broken / f"yy {number}.png").write_text("no image")
        assert "error" in run(*options).stdout.split("\n")[1].split()

    def test_only_unreadable_images_exit_with_error(self, tmp_path, run):
        (tmp_path / "x.png").write_text("no image")
        result = run("classify", tmp_path, "--labels", LABELS, code=1)
        assert "x.png" in result.stdout

    def test_images_listed_on_standard_input(self, small_folder, rows):
        names = [str(path) for path in sorted((small_folder / "food").iterdir())]
        stdin = "\ufeff" + "\r\n".join([*names, "gone.jpg"])  # as Windows writes a list
        lines = rows("classify", "-", "--labels", LABELS, stdin=stdin)
        assert [row["path"] for row in lines] == [*names, "gone.jpg"]
        assert "does not exist" in lines[-1]["error"]
        zeros = rows("classify", "-", "--labels", LABELS, stdin="\0".join(names) + "\0")
        assert [row["path"] for row in zeros] == names

    def test_batches_give_same_rows(self, small_folder, rows, monkeypatch):
        whole = rows("classify", small_folder, "--labels", LABELS)
        monkeypatch.setattr("sklearn_ape.cli._models._BATCH_SIZE", 5)
        parts = rows("classify", small_folder, "--labels", LABELS)
        assert [(row["path"], row["label"]) for row in parts] == [
            (row["path"], row["label"]) for row in whole
        ]
        for part, row in zip(parts, whole, strict=True):
            assert float(part["probability"]) == pytest.approx(float(row["probability"]), abs=1e-4)

    def test_progress_bar_advances_within_batches(self, small_folder, run, monkeypatch, tmp_path):
        """The bar stood still for the half minute that a batch of photographs takes."""
        bars = []

        class Bar(HiddenBar):
            def __init__(self, total, **options):
                bars.append(self)
                self.updates = []

            def update(self, n=1):
                self.n += n
                self.updates.append(n)

        monkeypatch.setattr("tqdm.tqdm", Bar)
        monkeypatch.setattr("sklearn_ape.cli._models._BATCH_SIZE", 8)
        run("classify", small_folder, "--labels", LABELS, "--cache", tmp_path / "features")
        updates = next(bar.updates for bar in bars if bar.n == 12)
        assert max(updates) < 8

    def test_large_image_is_rejected_without_a_warning(self, small_folder, run):
        """Pillow's warning of a decompression bomb did not name the file."""
        Image.new("1", (10_000, 10_000)).save(small_folder / "large.png")
        result = run("classify", small_folder, "--labels", LABELS)
        assert "large.png' is rejected: 10000 x 10000 pixels" in result.stdout
        assert "Warning" not in result.stderr

    def test_damaged_metadata_give_no_warning(self, tmp_path, run):
        """Pillow's warning did not name the file, whose pixels are read."""
        tags = bytes.fromhex("49492a0008000000ff00")  # 255 tags, all of which are missing
        Image.new("RGB", (32, 32), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0" + tags)
        result = run("classify", tmp_path, "--labels", LABELS, "--cache", "memory")
        assert result.stdout.splitlines()[1].endswith(",")  # no error
        assert "Warning" not in result.stderr

    def test_undecodable_file_name_is_written_as_bytes(self, small_folder, run):
        image = next((small_folder / "food").iterdir())
        odd = os.fsencode(small_folder / "food") + b"/caf\xe9.png"
        os.rename(os.fsencode(image), odd)
        result = run("classify", small_folder / "food", "--labels", LABELS)
        assert odd in result.stdout_bytes


class TestSavedClassifier:
    def test_saved_classifier_of_starter_skips_unreadable_images(self, broken, rows, tmp_path):
        ZeroShotClassifier(LABELS.split(","), threshold=0.7).save_pretrained(tmp_path / "mine")
        table_rows = rows("classify", broken, "--aligner", tmp_path / "mine")
        assert table_rows == rows("classify", broken, "--labels", LABELS, "--threshold", "0.7")
        assert sum(bool(row["error"]) for row in table_rows) == 2

    def test_few_shot_classifier_of_a_clip_model_skips_unreadable_images(
        self, photos, broken, rows, tmp_path
    ):
        """Its aligner is selected by name, and has no image encoder of its own."""
        (tmp_path / "clip").mkdir()
        save_model(tmp_path / "clip")
        images = sorted(map(str, photos.rglob("*.png")))[::10]
        classifier = FewShotClassifier(aligner=f"open_clip:{tmp_path / 'clip'}")
        classifier.fit(images, [Path(image).parent.name for image in images])
        classifier.save_pretrained(tmp_path / "mine")
        table_rows = rows("classify", broken, "--aligner", tmp_path / "mine")
        assert sum(bool(row["error"]) for row in table_rows) == 2
        readable = [row for row in table_rows if not row["error"]]
        predicted = classifier.predict([row["path"] for row in readable])
        assert [row["label"] for row in readable] == predicted.tolist()


class TestOutput:
    def test_output_files_are_complete(self, broken, run, tmp_path):
        out = tmp_path / "new folder" / "names.parquet"
        result = run("classify", broken, "--labels", LABELS, "-o", out)
        assert result.stdout == ""
        assert "Classified 12 images" in result.stderr
        written = run("classify", broken, "--labels", LABELS, "-o", "-")
        assert written.stdout
        assert "Classified" not in written.stderr
        frame = pd.read_parquet(out)
        assert frame["label"].notna().sum() == 12
        assert frame["error"].notna().sum() == 2
        (tmp_path / "names.csv").write_text("old")
        run("classify", broken, "--labels", LABELS, "-o", tmp_path / "names.csv")
        with (tmp_path / "names.csv").open(newline="") as stream:
            assert len(list(csv.DictReader(stream))) == 14

    def test_interrupt_keeps_previous_file(self, small_folder, run, tmp_path, monkeypatch):
        def interrupted(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(ZeroShotClassifier, "predict_proba", interrupted)
        (tmp_path / "names.csv").write_text("old")
        result = run(
            "classify", small_folder, "--labels", LABELS, "-o", tmp_path / "names.csv", code=130
        )
        assert "Interrupted" in result.stderr
        assert "Run the command again to resume" in result.stderr
        assert (tmp_path / "names.csv").read_text() == "old"


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ((), 2, "--labels"),
            (("--labels", "cat"), 2, "only label"),
            (("--labels", LABELS, "--top-k", "4"), 2, "larger than the number of labels, 3"),
            (("--labels", LABELS, "--threshold", "2"), 2, "less than or equal"),
            (("--labels", LABELS, "-o", "out.xlsx"), 2, "no suffix of a known format"),
            (("--labels", LABELS, "--aligner", "./gone"), 1, "'./gone' is not a folder"),
            (("--labels", LABELS, "--templates", "drawin"), 1, "drawin is not a set of templates"),
            (("--labels", LABELS, "--device", "cuda:77"), 1, "cuda"),
        ],
    )
    def test_errors_are_messages(self, small_folder, run, arguments, code, message):
        result = run("classify", small_folder, *arguments, code=code)
        assert message in " ".join(result.stderr.split())
        assert result.stdout == ""


def test_together_takes_all_images_into_account(photos, run):
    """The labels are those of `predict_together`."""
    labels = ["an animal", "food", "a vehicle"]
    result = run("classify", photos, "--labels", ",".join(labels), "--together")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    images = [row["path"] for row in rows]
    expected = ZeroShotClassifier(labels).predict_together(images)
    assert [row["label"] for row in rows] == expected.tolist()


HIERARCHY = {"living": {"an animal": None, "food": None}, "a vehicle": None}


class TestThreshold:
    def test_hierarchy_and_unknown_label_as_in_python(self, small_folder, rows, tmp_path):
        classifier = ZeroShotClassifier(HIERARCHY, threshold=0.8, unknown_label="other")
        classifier.save_pretrained(tmp_path / "model")
        (tmp_path / "labels.json").write_text(json.dumps(HIERARCHY))
        table = rows("classify", small_folder, "--aligner", tmp_path / "model")
        paths = [row["path"] for row in table]
        expected = classifier.predict(paths).tolist()
        assert {"living", "other"} & set(expected)
        assert [row["label"] for row in table] == expected
        options = ("--labels-file", tmp_path / "labels.json", "--threshold", ".8")
        table = rows("classify", small_folder, *options)
        classifier.set_params(unknown_label="unknown")
        assert [row["label"] for row in table] == classifier.predict(paths).tolist()
        living = next(row for row in table if row["label"] == "living")
        assert float(living["probability"]) >= 0.8

    def test_templates_of_a_saved_classifier_raise(self, small_folder, run, tmp_path):
        """It has templates of its own, so that the option would have no effect."""
        ZeroShotClassifier(["food", "an animal"]).save_pretrained(tmp_path / "model")
        options = ("--aligner", tmp_path / "model", "--templates", "drawing")
        for command in ("classify", "evaluate"):
            result = run(command, small_folder, *options, code=2)
            assert "'drawing' has no effect" in " ".join(result.stderr.split())
        run("classify", small_folder, *options, "--labels", LABELS)

    def test_multi_label_classifier_raises(self, small_folder, run, tmp_path):
        MultiLabelZeroShotClassifier(["food", "an animal"]).save_pretrained(tmp_path / "model")
        for command in ("classify", "evaluate"):
            result = run(command, small_folder, "--aligner", tmp_path / "model", code=2)
            assert "is a multi-label classifier" in " ".join(result.stderr.split())


def test_comments_and_commas_in_files_of_labels(small_folder, rows, run, tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("# labels of the photographs\nfood,\nan animal,\n")
    table = rows("classify", small_folder, "--labels-file", file)
    assert {row["label"] for row in table} == {"food", "an animal"}
    result = run("classify", small_folder, "--labels", "['food','animal']", code=2)
    assert "without brackets" in " ".join(result.stderr.split())


def test_options_of_a_saved_classifier_leave_the_starter_unchanged(tmp_path):
    """The starter model is shared within the process, also by a model that refers to it."""
    classifier = ZeroShotClassifier(["a cat", "a dog"])
    classifier.fit([np.zeros((32, 32, 3), np.uint8)], ["a cat"])
    classifier.save_pretrained(tmp_path / "model")
    expected = load_starter().image_encoder_.get_params()
    options = _models.RuntimeOptions(cache=None, device="cpu", n_jobs=1, quiet=True)
    model = _models.load_model(str(tmp_path / "model"), options)
    assert model.aligner_.image_encoder_.on_error == "nan"
    assert load_starter().image_encoder_.get_params() == expected


def test_options_apply_to_the_aligner_that_a_saved_classifier_selects(tmp_path):
    """`evaluate` encoded the images twice, the second time without the options."""
    ZeroShotClassifier(["a cat", "a dog"]).save_pretrained(tmp_path / "model")
    options = _models.RuntimeOptions(cache=None, device="cpu", n_jobs=1, quiet=True)
    model = _models.load_model(str(tmp_path / "model"), options)
    assert _models.get_image_encoder(model).device == "cpu"
    assert _models.extract_aligner(model) is model.aligner
    assert load_starter().image_encoder_.device == "auto"
