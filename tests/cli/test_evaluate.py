"""evaluate: accuracy and recall with intervals, as a table, a report and a figure."""

import json
import shutil

import pytest
from PIL import Image

from sklearn_ape import ZeroShotClassifier


class TestScores:
    def test_accuracy_of_folders_is_that_of_the_classifier(self, few, rows):
        (few / "animal" / "zz.jpg").write_text("no image")
        found = rows("evaluate", few)
        assert {row["measure"] for row in found} == {"accuracy"}
        assert [row["of"] for row in found] == ["all", "animal", "food", "travel"]
        images = sorted(few.rglob("*.png"))
        truth = [path.parent.name for path in images]
        score = ZeroShotClassifier(["animal", "food", "travel"]).score(images, truth)
        assert float(found[0]["value"]) == pytest.approx(score, abs=1e-4)
        assert int(found[0]["n"]) == 12
        assert float(found[0]["low"]) <= score <= float(found[0]["high"])

    def test_recall_of_captions_and_accuracy_with_a_figure_and_a_report(
        self, photos, rows, tmp_path
    ):
        figure, report = tmp_path / "f.png", tmp_path / "r.json"
        found = rows(
            *("evaluate", photos, "--captions", "filename"),
            *("--figure", figure, "-o", report),
        )
        measures = {(row["measure"], row["of"]): float(row["value"]) for row in found}
        # The starter model has seen these captions.
        assert measures["recall@1", "caption to image"] > 0.8
        assert measures["recall@1", "image to caption"] <= measures["recall@5", "image to caption"]
        assert measures["accuracy", "all"] > 0.5
        assert Image.open(figure).width > 1000
        written = json.loads(report.read_text())
        assert written["images"] == 60
        assert [score["n"] for score in written["scores"]] == [int(row["n"]) for row in found]

    def test_other_names_for_folders(self, few, rows, tmp_path):
        names = tmp_path / "labels.json"
        names.write_text(
            json.dumps(
                {"animal": ["an animal"], "food": ["food"], "travel": ["a vehicle", "house"]}
            )
        )
        assert len(rows("evaluate", few, "--labels-file", names)) == 4

    def test_table_with_labels(self, few, rows):
        lines = ["image,caption,kind"]
        lines += [
            f"{path.relative_to(few)},{path.stem},{path.parent.name}"
            for path in few.rglob("*.png")
        ]
        (few / "pairs.csv").write_text("\n".join(lines))
        found = rows("evaluate", few / "pairs.csv", "--label", "kind")
        assert {row["measure"] for row in found} >= {"accuracy", "recall@1"}


class TestImagesUsedForFitting:
    def test_are_reported(self, few, photos, rows, run, tmp_path):
        run("fit", few, "-o", tmp_path / "model", "--method", "cca", "--captions", "filename")
        report = tmp_path / "report.json"
        options = ("--aligner", tmp_path / "model", "--captions", "filename", "-o", report)
        result = run("evaluate", few, *options)
        assert "Warning: 12 of 12 images were used to fit this aligner" in result.stderr
        assert json.loads(report.read_text())["used_for_fitting"] == 12
        result = run("evaluate", photos, *options)
        assert "Warning: 12 of 60 images were used to fit this aligner" in result.stderr

    def test_new_images_are_not_reported(self, few, photos, run, tmp_path):
        run("fit", few, "-o", tmp_path / "model", "--method", "cca", "--captions", "filename")
        known = {path.name for path in few.rglob("*.png")}
        for image in photos.rglob("*.png"):
            if image.name not in known:
                target = tmp_path / "new" / image.parent.name / image.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(image, target)
        result = run("evaluate", tmp_path / "new", "--aligner", tmp_path / "model")
        assert "used to fit" not in result.stderr

    def test_images_of_the_starter_model_are_reported(self, few, run):
        assert "12 of 12 images were used to fit" in run("evaluate", few).stderr


class TestErrors:
    def test_nothing_to_compare_with(self, few, run):
        for image in few.rglob("*.png"):
            shutil.move(image, few)
        result = run("evaluate", few, code=1)
        assert "neither labels nor captions" in result.stderr

    def test_labels_that_images_have_and_the_option_has_not(self, few, run):
        result = run("evaluate", few, "--labels", "animal,food", code=1)
        assert "'travel'" in result.stderr

    def test_strict(self, few, run):
        (few / "animal" / "zz.jpg").write_text("no image")
        assert "zz.jpg" in run("evaluate", few, "--strict", code=1).stderr

    def test_a_figure_of_no_known_kind(self, few, run):
        assert ".png" in run("evaluate", few, "--figure", "x.docx", code=2).stderr
