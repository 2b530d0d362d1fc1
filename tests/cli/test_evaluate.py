"""The command `evaluate`."""

import csv
import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from sklearn_ape import ZeroShotClassifier
from sklearn_ape.datasets import load_openclipart


class TestScores:
    def test_accuracy_equals_score_of_classifier(self, small_folder, rows):
        (small_folder / "animal" / "zz.jpg").write_text("no image")
        table_rows = rows("evaluate", small_folder)
        assert {row["measure"] for row in table_rows} == {"accuracy"}
        assert [row["of"] for row in table_rows] == ["all", "animal", "food", "travel"]
        images = sorted(small_folder.rglob("*.png"))
        truth = [path.parent.name for path in images]
        score = ZeroShotClassifier(["animal", "food", "travel"]).score(images, truth)
        assert float(table_rows[0]["value"]) == pytest.approx(score, abs=1e-4)
        assert int(table_rows[0]["n"]) == 12
        assert float(table_rows[0]["low"]) <= score <= float(table_rows[0]["high"])

    def test_captions_give_recall_with_figure_and_report(self, photos, rows, tmp_path):
        figure, report = tmp_path / "f.png", tmp_path / "r.json"
        figure.symlink_to(tmp_path / "without suffix")
        table_rows = rows(
            *("evaluate", photos, "--captions", "filename"),
            *("--figure", figure, "-o", report),
        )
        measures = {(row["measure"], row["of"]): float(row["value"]) for row in table_rows}
        # The starter model was trained on these captions, but not on these images. Chance is 0.02.
        assert measures["recall@1", "caption to image"] > 0.6
        assert measures["recall@1", "image to caption"] <= measures["recall@5", "image to caption"]
        assert measures["accuracy", "all"] > 0.5
        assert Image.open(figure).width > 1000
        written = json.loads(report.read_text())
        assert written["images"] == 60
        assert [score["n"] for score in written["scores"]] == [int(row["n"]) for row in table_rows]

    def test_unreadable_bytes_are_named_by_row(self, small_folder, run, tmp_path):
        paths = sorted(small_folder.rglob("*.png"))
        table = {
            "image": [path.read_bytes() for path in paths[:11]] + [b"no image"],
            "label": [path.parent.name for path in paths],
        }
        pd.DataFrame(table).to_parquet(tmp_path / "pairs.parquet")
        result = run("evaluate", tmp_path / "pairs.parquet", "--label", "label")
        assert "row 11 (the first is 0): the bytes object is a text file" in result.stderr

    def test_labels_file_gives_other_names(self, small_folder, rows, tmp_path):
        names = tmp_path / "labels.json"
        names.write_text(
            json.dumps(
                {"animal": ["an animal"], "food": ["food"], "travel": ["a vehicle", "house"]}
            )
        )
        assert len(rows("evaluate", small_folder, "--labels-file", names)) == 4

    def test_label_column_gives_accuracy(self, small_folder, rows):
        lines = ["image,caption,kind"]
        lines += [
            f"{path.relative_to(small_folder)},{path.stem},{path.parent.name}"
            for path in small_folder.rglob("*.png")
        ]
        (small_folder / "pairs.csv").write_text("\n".join(lines))
        table_rows = rows("evaluate", small_folder / "pairs.csv", "--label", "kind")
        assert {row["measure"] for row in table_rows} >= {"accuracy", "recall@1"}

    def test_image_of_several_rows_counts_once_in_the_accuracy(self, small_folder, run, rows):
        """Its captions are several rows, which would make the confidence interval too narrow."""
        lines = [f"{path},a,{path.parent.name}" for path in sorted(small_folder.rglob("*.png"))]
        table = small_folder / "pairs.csv"
        for n in (1, 5):
            table.write_text("\n".join(["image,caption,label", *n * lines]))
            table_rows = rows("evaluate", table, "--label", "label", "--captions", "none")
            assert [row["n"] for row in table_rows] == ["12", "4", "4", "4"]

    def test_unreadable_image_of_several_rows_is_reported_once(self, small_folder, run):
        (small_folder / "page.jpg").write_text("<html>")
        lines = [f"{path},a {path.stem}" for path in sorted(small_folder.rglob("*.*g"))]
        table = small_folder / "pairs.csv"
        table.write_text("\n".join(["image,caption", *lines, *lines, "./page.jpg,a page"]))
        message = run("evaluate", table).stderr
        assert "Skipped 1 of 13 images" in message
        assert message.count("page.jpg") == 1

    def test_few_distinct_captions_warn(self, small_folder, run):
        result = run("evaluate", small_folder, "--captions", "folder")
        message = "only 3 distinct captions or images to find, and recall@k among them is 1"
        assert message in " ".join(result.stderr.split())

    def test_labels_that_are_numbers_warn(self, small_folder, run, tmp_path):
        """Their digits say nothing about the images."""
        for code, folder in enumerate(("animal", "food", "travel")):
            (small_folder / folder).rename(small_folder / str(code))
        result = run("evaluate", small_folder)
        assert "labels of the images are numbers, '0', '1', '2'" in " ".join(result.stderr.split())
        (tmp_path / "names.json").write_text('{"0": "an animal", "1": "food", "2": "travel"}')
        result = run("evaluate", small_folder, "--labels-file", tmp_path / "names.json")
        assert "are numbers" not in result.stderr


class TestImagesUsedForFitting:
    @pytest.fixture
    def model(self, small_folder, run, tmp_path):
        """Return the folder of an aligner that is fitted on the images of `small_folder`."""
        options = ("--method", "cca", "--captions", "filename")
        run("fit", small_folder, "-o", tmp_path / "model", *options)
        return tmp_path / "model"

    def test_fitted_images_are_reported(self, model, small_folder, photos, run, tmp_path):
        report = tmp_path / "report.json"
        options = ("--aligner", model, "--captions", "filename", "-o", report)
        result = run("evaluate", small_folder, *options)
        assert "Warning: 12 of 12 images were used to fit this aligner" in result.stderr
        assert json.loads(report.read_text())["used_for_fitting"] == 12
        result = run("evaluate", photos, *options)
        assert "Warning: 12 of 60 images were used to fit this aligner" in result.stderr

    def test_new_images_are_not_reported(self, model, small_folder, photos, run, tmp_path):
        used_names = {path.name for path in small_folder.rglob("*.png")}
        for image in photos.rglob("*.png"):
            if image.name not in used_names:
                target = tmp_path / "new" / image.parent.name / image.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(image, target)
        result = run("evaluate", tmp_path / "new", "--aligner", model)
        assert "used to fit" not in result.stderr

    @pytest.mark.exhaustive
    @pytest.mark.skipif(
        not Path("/usr/share/openclipart").is_dir(),
        reason="the Debian package openclipart-png is not installed",
    )
    def test_images_of_starter_are_reported(self, small_folder, run):
        for row, image in enumerate(load_openclipart().images[:3]):
            shutil.copy(image, small_folder / "food" / f"clip art {row}.png")
        assert "3 of 15 images were used to fit" in run("evaluate", small_folder).stderr


class TestErrors:
    def test_images_without_labels_and_captions_raise(self, small_folder, run):
        for image in small_folder.rglob("*.png"):
            shutil.move(image, small_folder)
        result = run("evaluate", small_folder, code=1)
        assert "neither labels nor captions" in result.stderr

    def test_table_of_labels_without_label_option_raises(self, small_folder, run):
        (small_folder / "labels.csv").write_text("image,label\na.png,cat\n")
        result = run("evaluate", small_folder / "labels.csv", code=1)
        assert "pass their column as label, or --label" in result.stderr

    def test_missing_labels_raise(self, small_folder, run):
        result = run("evaluate", small_folder, "--labels", "animal,food", code=1)
        assert "'travel'" in result.stderr

    def test_other_unicode_form_of_label_is_named(self, small_folder, run):
        """File systems and archives may decompose letters with accents."""
        (small_folder / "food").rename(small_folder / "cafe\u0301")
        result = run("evaluate", small_folder, "--labels", "animal,caf\u00e9,travel", code=1)
        assert "in the form of its Unicode characters" in " ".join(result.stderr.split())

    def test_strict_raises_for_unreadable_image(self, small_folder, run):
        (small_folder / "animal" / "zz.jpg").write_text("no image")
        assert "zz.jpg" in run("evaluate", small_folder, "--strict", code=1).stderr

    def test_report_in_a_table_format_raises(self, small_folder, run):
        assert "the report is JSON" in run("evaluate", small_folder, "-o", "x.csv", code=2).stderr

    def test_report_on_standard_output_raises(self, small_folder, run):
        """A file with the name "-" was written."""
        assert "has the scores" in run("evaluate", small_folder, "-o", "-", code=2).stderr

    def test_figure_does_not_replace_an_image(self, small_folder, run):
        """The figure of an earlier run in the folder would be evaluated as one of its images."""
        image = next(small_folder.rglob("*.png"))
        content = image.read_bytes()
        assert "is an input" in run("evaluate", small_folder, "--figure", image, code=2).stderr
        assert image.read_bytes() == content

    def test_unknown_figure_format_raises(self, small_folder, run):
        assert ".png" in run("evaluate", small_folder, "--figure", "x.docx", code=2).stderr


def test_levels_of_a_hierarchy(photos, run, tmp_path):
    labels = tmp_path / "labels.json"
    labels.write_text('{"living": {"animal": null, "food": null}, "travel": ["a vehicle"]}')
    result = run("evaluate", photos, "--labels-file", labels)
    scores = csv.DictReader(io.StringIO(result.stdout))
    rows = {row["of"]: [float(row[x]) for x in ("value", "low", "high", "n")] for row in scores}
    assert rows["level 2"] == rows["all"]
    assert rows["level 1"][0] >= rows["level 2"][0]


def test_class_within_the_labelled_group_is_correct(photos, run, tmp_path):
    """A folder "animal" does not say which animal is meant."""
    labels = tmp_path / "labels.json"
    labels.write_text('{"animal": {"bird": null, "a mammal": null}, "food": null, "travel": null}')
    result = run("evaluate", photos, "--labels-file", labels)
    rows = {row["of"]: float(row["value"]) for row in csv.DictReader(io.StringIO(result.stdout))}
    assert rows["animal"] > 0.5  # no prediction is "animal"
    assert abs(rows["all"] - rows["level 1"]) < 0.1


def test_saved_hierarchy_on_images_labelled_by_groups(small_folder, run, rows, tmp_path):
    """Subfolders may have the names of groups, also if the hierarchy is that of the model."""
    labels = tmp_path / "labels.json"
    labels.write_text('{"living": {"animal": null, "food": null}, "travel": ["a vehicle"]}')
    options = ("--labels-file", labels, "--captions", "filename", "--method", "cca")
    run("fit", small_folder, "-o", tmp_path / "model", *options)
    (small_folder / "animal").rename(small_folder / "living")
    by_file = rows("evaluate", small_folder, "--aligner", tmp_path / "model", *options[:2])
    by_model = rows("evaluate", small_folder, "--aligner", tmp_path / "model")
    assert by_model == by_file
    n = {row["of"]: int(row["n"]) for row in by_model}
    # The four images of "living" are not counted at the level of its classes.
    assert (n["level 1"], n["level 2"]) == (12, 8)


def test_saved_hierarchy_whose_labels_are_numbers(small_folder, rows, tmp_path):
    """The labels of a table are texts. An error was raised after all images were encoded."""
    labels = {1: {10: ["an animal"], 11: ["food"]}, 2: ["a vehicle"]}
    ZeroShotClassifier(labels).save_pretrained(tmp_path / "model")
    number_of = {"animal": 10, "food": 11, "travel": 2}
    images = sorted(map(str, small_folder.rglob("*.png")))
    y = [number_of[Path(image).parent.name] for image in images]
    pd.DataFrame({"image": images, "label": y}).to_csv(tmp_path / "t.csv", index=False)
    scores = rows(
        *("evaluate", tmp_path / "t.csv", "--label", "label", "--aligner", tmp_path / "model")
    )
    values = [float(row["value"]) for row in scores if row["of"].startswith("level")]
    assert values == pytest.approx(ZeroShotClassifier(labels).score_levels(images, y), abs=1e-4)


def test_images_of_no_class_of_a_saved_classifier(small_folder, rows, tmp_path):
    """They have the label that is predicted below the threshold, as in `score`."""
    labels = {"living": {"animal": ["an animal"]}, "food": None}
    classifier = ZeroShotClassifier(labels, threshold=0.9)
    classifier.save_pretrained(tmp_path / "model")
    (small_folder / "travel").rename(small_folder / "unknown")
    images = sorted(map(str, small_folder.rglob("*.png")))
    y = [Path(image).parent.name for image in images]
    score_of = {
        row["of"]: row for row in rows("evaluate", small_folder, "--aligner", tmp_path / "model")
    }
    assert float(score_of["all"]["value"]) == pytest.approx(classifier.score(images, y), abs=1e-4)
    assert float(score_of["unknown"]["value"]) > 0
    assert (score_of["all"]["n"], score_of["level 2"]["n"]) == ("12", "8")


@pytest.mark.exhaustive
def test_few_shot_classifier_on_its_own_images_warns(photos, run, tmp_path):
    run("fit", photos, "-o", tmp_path / "model", "--quiet", "--test-size", "0")
    result = run("evaluate", photos, "--aligner", tmp_path / "model")
    assert "60 of 60 images were used to fit" in result.stderr
    rows = {row["of"]: float(row["value"]) for row in csv.DictReader(io.StringIO(result.stdout))}
    assert rows["all"] > 0.9


def test_labels_that_the_model_lacks_are_a_message(photos, small_folder, run, tmp_path):
    """The error said to remove --labels, which was not set."""
    for label in ("animal", "food"):
        shutil.copytree(small_folder / label, tmp_path / "train" / label)
    model = tmp_path / "model"
    run("fit", tmp_path / "train", "-o", model, "--quiet", "--test-size", "0")
    result = run("evaluate", photos, "--aligner", model, code=1)
    message = " ".join(result.stderr.split())
    assert "The model does not contain these labels of the images: 'travel'" in message
    assert "set --labels with all labels of the images to classify by the names alone" in message
    labels = ("--labels", "animal,food,travel")
    assert "accuracy,travel" in run("evaluate", photos, "--aligner", model, *labels).stdout
