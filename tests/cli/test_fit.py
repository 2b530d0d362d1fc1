"""The command `fit`."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from sklearn_ape import (
    APEAligner,
    FewShotClassifier,
    KernelAligner,
    ZeroShotClassifier,
    load_pretrained,
)
from sklearn_ape.encoders import _encoding
from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.training.callbacks import StopWhenPatient
from sklearn_ape.utils.messages import HiddenBar
from tests.encoders.test_open_clip import save_model as save_clip
from tests.encoders.tiny_networks import text_folder

DIRECTIONS = ("image to caption", "caption to image")
QUICK = ("--method", "kernel", "--quiet")


@pytest.fixture
def captioned(photos, tmp_path):
    """Return a folder of the photos with sidecar captions."""
    folder = tmp_path / "captioned"
    folder.mkdir()
    for image in photos.rglob("*.png"):
        shutil.copy(image, folder)
        (folder / f"{image.stem}.txt").write_text(image.stem.replace("_", " "))
    return folder


def captions_of(images):
    return [Path(image).stem.replace("_", " ") for image in images]


class TestFit:
    def test_sidecar_captions_are_fitted_and_scored(self, captioned, rows, run, tmp_path):
        (captioned / "zz.png").write_text("no image")
        (captioned / "zz.txt").write_text("a caption of no image")
        out = tmp_path / "models" / "mine"
        table_rows = rows("fit", captioned, "-o", out, *QUICK)
        assert [row["measure"] for row in table_rows] == ["recall@1", "recall@5", "recall@10"] * 4
        n_held_out = int(table_rows[0]["n"])
        assert 10 <= n_held_out <= 14
        aligner = load_pretrained(out)
        assert isinstance(aligner, KernelAligner)
        card = (out / "README.md").read_text()
        assert f"recall@1 on held-out images, image to caption (n={n_held_out}, 95 %" in card
        # The saved aligner was fitted on all pairs, including the held-out ones.
        images = sorted(str(path) for path in captioned.glob("*.png"))[:-1]
        assert aligner.score(images, captions_of(images)) > 0.9
        said = run("classify", images[0], "--labels", "animal,food", "--aligner", out).stdout
        assert "animal" in said or "food" in said

    @pytest.mark.exhaustive
    def test_captions_extend_the_starter_model_or_another_aligner(
        self, captioned, rows, run, tmp_path
    ):
        """A new aligner of so few pairs would be worse than the starter model."""
        names = [f"{d}{of}" for of in ("", ", starter model") for d in DIRECTIONS]
        scores = rows("fit", captioned, "-o", tmp_path / "first", "--quiet")
        assert [row["of"] for row in scores[::3]] == names
        values = [float(row["value"]) for row in scores]
        assert sum(values[:6]) > sum(values[6:]) - 0.5 > 3
        first = load_pretrained(tmp_path / "first")
        assert isinstance(first, APEAligner)
        images = sorted(str(path) for path in captioned.glob("*.png"))
        assert first.was_fitted_on(images).all()
        options = ("-o", tmp_path / "second", "--aligner", tmp_path / "first", "--quiet")
        result = run("fit", captioned, *options)
        assert "held-out images were used to fit the aligner of the rows 'not ext" in result.stderr
        assert '"caption to image, not extended"' in result.stdout
        second = load_pretrained(tmp_path / "second")
        expected = APEAligner(init=first).fit(images, captions_of(images))
        np.testing.assert_allclose(
            second.transform_text(["a cat"]), expected.transform_text(["a cat"]), atol=1e-4
        )

    @pytest.mark.exhaustive
    def test_aligner_in_a_pipeline_is_extended(
        self, captioned, rows, tmp_path, image_encoder, text_encoder
    ):
        """A Pipeline does not have the methods of its aligner that compute recall."""
        images = sorted(str(path) for path in captioned.glob("*.png"))
        base = make_pipeline(image_encoder, KernelAligner(text_encoder=text_encoder))
        classifier = ZeroShotClassifier(["a", "b"], aligner=base.fit(images, captions_of(images)))
        classifier.save_pretrained(tmp_path / "base")
        options = ("--aligner", tmp_path / "base", "-o", tmp_path / "extended", "--no-refit")
        scores = rows("fit", captioned, *options)
        names = [f"{d}{of}" for of in ("", ", not extended") for d in DIRECTIONS]
        assert [row["of"] for row in scores[::3]] == names

    def test_captions_with_an_aligner_that_cannot_be_extended_raise(
        self, captioned, run, tmp_path
    ):
        (tmp_path / "clip").mkdir()
        save_clip(tmp_path / "clip")
        options = ("--aligner", f"open_clip:{tmp_path / 'clip'}", "-o", tmp_path / "out")
        result = run("fit", captioned, *options, code=2)
        message = " ".join(result.stderr.split())
        assert "--aligner: the aligner is a CLIPAligner, but captions can only extend" in message

    def test_labels_save_classifier(self, photos, run, rows, tmp_path):
        out = tmp_path / "mine"
        result = run("fit", photos, "-o", out, "--labels", "animal,food,travel", *QUICK)
        assert "accuracy,all,0." in result.stdout
        assert isinstance(load_pretrained(out), ZeroShotClassifier)
        table_rows = rows("classify", photos / "food", "--aligner", out)
        assert np.mean([row["label"] == "food" for row in table_rows]) > 0.8
        assert len(rows("classify", photos / "food", "--aligner", out, "--labels", "a,b")) > 10

    def test_table_is_fitted_and_scored(self, photos, rows, tmp_path):
        lines = [f"{path};{path.stem}" for path in photos.rglob("*.png")]
        table = tmp_path / "pairs.csv"
        table.write_text("\ufefffile;text\n" + "\n".join([*lines, "gone.png;gone"]))
        arguments = ("fit", table, "--image", "file", "--caption", "text", *QUICK)
        scores = rows(*arguments, "-o", tmp_path / "a")
        names = [f"{d}{of}" for of in ("", ", starter model") for d in DIRECTIONS]
        assert [row["of"] for row in scores[::3]] == names
        assert rows(*arguments, "-o", tmp_path / "b", "--test-size", "0") == []

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("method", ["cca", "ape", "asif"])
    def test_each_method_is_saved(self, photos, run, tmp_path, method):
        depth = ("--depth", "3") if method == "ape" else ()
        run(
            *("fit", photos, "--captions", "filename", "-o", tmp_path / "m", "--quiet"),
            *("--method", method, "--test-size", "0", *depth),
        )
        model = json.loads((tmp_path / "m" / "config.json").read_text())["model"]
        assert method in json.dumps(model).lower()
        if depth:
            assert load_pretrained(tmp_path / "m").depth == 3

    @pytest.mark.exhaustive
    def test_lit_saves_trained_text_encoder(self, photos, rows, run, tmp_path):
        tower = f"transformers:{text_folder(tmp_path / 'tower')}"
        arguments = ("fit", photos, "--captions", "filename", "--method", "lit", "--quiet")
        table_rows = rows(*arguments, "--text-encoder", tower, "-o", tmp_path / "m")
        assert [row["measure"] for row in table_rows] == ["recall@1", "recall@5", "recall@10"] * 2
        image = next(photos.rglob("*.png"))
        (answer,) = rows("classify", image, "--labels", "cat,dog", "--aligner", tmp_path / "m")
        assert answer["label"] in ("cat", "dog")

    @pytest.mark.exhaustive
    def test_checkpoint_resumes_to_same_aligner(self, photos, run, tmp_path):
        for name in ("a", "b"):
            run(
                *("fit", photos, "--captions", "filename", "-o", tmp_path / name, "--quiet"),
                *("--checkpoint", tmp_path / "training", "--test-size", "0"),
            )
        assert len(list((tmp_path / "training").glob("APEAligner-*.trained.safetensors"))) == 1
        one, other = (load_pretrained(tmp_path / name) for name in ("a", "b"))
        assert one.fingerprint_ == other.fingerprint_
        assert one.checkpoint is None

    def test_interrupted_training_saves_no_model(self, photos, run, tmp_path, monkeypatch):
        """`fit` of an aligner returns the best epoch so far, which is not saved."""

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(StopWhenPatient, "on_epoch_end", interrupt)
        arguments = ("fit", photos, "--captions", "filename", "--method", "ape", "--quiet")
        result = run(*arguments, "-o", tmp_path / "m", "--checkpoint", tmp_path / "c", code=130)
        assert result.stderr.splitlines()[-1] == "sklearn-ape: Interrupted."
        assert not (tmp_path / "m").exists()
        assert len(list((tmp_path / "c").glob("APEAligner-*.training.safetensors"))) == 1

    @pytest.mark.parametrize("method", ["few-shot", "extend"])
    def test_progress_is_shown_if_features_are_not_cached(
        self, photos, run, tmp_path, monkeypatch, method
    ):
        """If the disk was full, the images were encoded several times with one progress bar."""
        bars = []
        monkeypatch.setattr(DiskFeatureCache, "put_many", lambda cache, features: None)
        monkeypatch.setattr(
            _encoding,
            "_make_encoder_bar",
            lambda _, identity, total, verbose: bars.append((total, verbose)) or HiddenBar(),
        )
        cache = ("--cache", tmp_path / "features")
        run("fit", photos, "-o", tmp_path / "out", "--method", method, "--test-size", 0, *cache)
        assert [verbose for total, verbose in bars if total == 60] == [1, 1]


class TestErrors:
    def test_strict_raises_for_unreadable_image(self, captioned, run, tmp_path):
        (captioned / "zz.png").write_text("no image")
        (captioned / "zz.txt").write_text("a caption of no image")
        result = run("fit", captioned, "-o", tmp_path / "m", "--strict", *QUICK, code=1)
        assert "zz.png" in result.stderr
        assert not (tmp_path / "m").exists()

    @pytest.mark.parametrize("captions", ["folder", "filename", "sidecar"])
    def test_skipped_files_are_reported_beside_captions(
        self, photos, captioned, run, tmp_path, captions
    ):
        """They were reported only if there were no captions."""
        folder = captioned if captions == "sidecar" else shutil.copytree(photos, tmp_path / "p")
        (folder / "scan.heic").write_bytes(b"")
        arguments = ("--captions", captions, "--method", "kernel", "--test-size", 0)
        result = run("fit", folder, "-o", tmp_path / "model", *arguments)
        assert "Skipped 1 file of other formats (1 '.heic')." in result.stderr

    def test_model_of_another_class_is_not_replaced(self, photos, run, tmp_path):
        """A classifier with labelled images was replaced by an aligner without a message."""
        out = tmp_path / "model"
        run("fit", photos, "-o", out, "--test-size", 0, "--quiet")
        for options in ((), ("--labels", "an animal,food")):
            arguments = ("--captions", "filename", *QUICK, *options)
            result = run("fit", photos, "-o", out, *arguments, code=1)
            assert "has a model of class FewShotClassifier, which would" in result.stderr
            assert isinstance(load_pretrained(out), FewShotClassifier)
        run("fit", photos, "-o", out, "--test-size", 0, "--quiet")  # the same class

    def test_aligner_is_replaced_by_another_aligner(self, photos, run, tmp_path):
        out = tmp_path / "model"
        for method in ("asif", "kernel"):
            run("fit", photos, "-o", out, "--captions", "filename", "--method", method)
        assert isinstance(load_pretrained(out), KernelAligner)

    def test_missing_captions_raise(self, captioned, run, tmp_path):
        for text in captioned.glob("*.txt"):
            text.unlink()
        result = run("fit", captioned, "-o", tmp_path / "m", *QUICK, code=1)
        assert "--captions filename" in result.stderr

    def test_output_folder_with_other_files_raises_before_encoding(
        self, photos, small_folder, run
    ):
        result = run("fit", photos, "-o", small_folder, *QUICK, code=1)
        assert "no model of sklearn-ape" in result.stderr
        assert "image/s" not in result.stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--method", "cca", "--depth", "2"), "ape"),
            (("--method", "lit", "--head-pairs"), "lit"),
            (("--method", "clip"), "asif"),
            (("--method", "kernel", "--checkpoint", "c"), "--checkpoint"),
            (("--method", "lit", "--text-encoder", "open_clip:RN50/openai"), "cannot be trained"),
        ],
    )
    def test_incompatible_options_raise(self, photos, run, tmp_path, arguments, message):
        assert message in run("fit", photos, "-o", tmp_path / "m", *arguments, code=2).stderr

    def test_checkpoint_in_output_raises_before_training(self, photos, run, tmp_path):
        """Saving failed after the training, since the folder then had other files."""
        same = (tmp_path / "m", "--checkpoint", tmp_path / "x" / ".." / "m")
        result = run("fit", photos, "--method", "ape", "-o", *same, code=2)
        assert "is the folder of --output. Pass another" in " ".join(result.stderr.split())


class TestFewShot:
    def test_labelled_folders_give_a_few_shot_classifier(self, photos, run, tmp_path):
        """The command compares it with the names alone and with LogisticRegression."""
        result = run("fit", photos, "-o", tmp_path / "model")
        rows = list(csv.DictReader(io.StringIO(result.stdout)))
        assert [row["of"] for row in rows] == ["few-shot", "names alone", "LogisticRegression"]
        assert len({row["n"] for row in rows}) == 1
        model = load_pretrained(tmp_path / "model")
        assert type(model) is FewShotClassifier
        assert model.classes_.tolist() == ["animal", "food", "travel"]
        assert model.class_count_.sum() == 60
        assert float(rows[0]["value"]) >= float(rows[1]["value"]) - 0.1
        classify = ("classify", photos / "food", "--aligner", tmp_path / "model")
        answers = run(*classify)
        assert "food" in answers.stdout
        assert "without the labelled images" not in answers.stderr
        assert "without the labelled images" in run(*classify, "--labels", "food,cars").stderr

    def test_table_on_a_terminal_explains_its_columns(self, photos, run, tmp_path):
        out = tmp_path / "model"
        result = run("fit", photos, "-o", out, "--format", "table")
        assert "low to high is the 95 % confidence interval" in result.stdout
        assert "number of held-out images" in result.stdout
        assert f"Saved in {str(out)!r}, which other commands use as --aligner." in result.stderr

    def test_names_that_do_not_describe_the_images_are_reported(self, photos, run, tmp_path):
        out, note = ("-o", tmp_path / "model"), "of the held-out images correctly, which is not"
        folder = tmp_path / "renamed"
        for name, other in (("animal", "food"), ("food", "travel"), ("travel", "animal")):
            shutil.copytree(photos / name, folder / other)
        message = run("fit", folder, *out).stderr
        assert f"{note} better than guessing. Describe the classes by other names in" in message
        (example,) = re.findall(r"--labels-file labels.json with (\{.*), \.\.\.\}\.", message)
        assert json.loads(example + "}") == {"animal": "a name"}
        names = {"animal": "a meal", "food": "a vehicle", "travel": "an animal"}
        (tmp_path / "names.json").write_text(json.dumps(names))
        message = run("fit", photos, *out, "--labels-file", tmp_path / "names.json").stderr
        assert f"{note} better than guessing" in message
        assert "names in --labels-file." in message
        assert note not in run("fit", photos, *out).stderr

    def test_captions_from_folders_suggest_few_shot(self, photos, run, tmp_path):
        """Three different captions are too few for a held-out test, but not three labels."""
        options = ("fit", photos, "-o", tmp_path / "m", "--captions", "folder")
        result = run(*options)
        assert "Not evaluated: at least 50 pairs with distinct" in result.stderr
        assert "To learn the labels and evaluate them, set --method few-shot." in result.stderr
        assert "--method few-shot" not in run(*options, "--test-size", "0").stderr

    @pytest.mark.parametrize("strict", [(), ("--strict",)])
    def test_table_in_another_folder_names_the_start_of_paths(self, run, tmp_path, strict):
        """As the output of `classify photos -o labels/new.csv`, which has paths from elsewhere."""
        table = tmp_path / "new.csv"
        table.write_text("path,label\nphotos/a.png,cat\nphotos/b.png,dog\n")
        options = ("--image", "path", "--label", "label", "-o", tmp_path / "m")
        message = run("fit", table, *options, *strict, code=1).stderr
        assert "lists 2 of 2 images that do not exist" in message
        assert f"Relative paths refer to {str(tmp_path)!r}" in message

    @pytest.mark.exhaustive
    def test_captions_of_some_images_can_be_left_out(self, photos, run, tmp_path):
        """Half of the images have text files, which are incomplete as captions."""
        folder = tmp_path / "photos"
        shutil.copytree(photos, folder)
        for image in sorted(folder.rglob("*.png"))[::2]:
            image.with_suffix(".txt").write_text("a note")
        options = ("fit", folder, "-o", tmp_path / "m", "--test-size", "0", "--quiet")
        expected = "pass --captions folder, --captions filename or --captions none."
        assert expected in run(*options, code=1).stderr
        run(*options, "--captions", "none")
        assert type(load_pretrained(tmp_path / "m")) is FewShotClassifier

    @pytest.mark.exhaustive
    def test_labels_may_have_other_names_and_more_classes(self, photos, run, tmp_path):
        labels = tmp_path / "labels.json"
        labels.write_text(
            '{"animal": ["an animal"], "food": null, "travel": ["a vehicle"], "tool": null}'
        )
        options = ("--labels-file", labels, "--test-size", "0", "--quiet")
        run("fit", photos, "-o", tmp_path / "model", *options)
        model = load_pretrained(tmp_path / "model")
        counts = [len(list((photos / name).iterdir())) for name in ("animal", "food", "travel")]
        assert model.class_count_.tolist() == [*counts[:2], 0, counts[2]]

    def test_column_of_labels_beside_captions_is_not_used(self, photos, run, tmp_path):
        rows = [f"{path},{path.stem},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
        table = tmp_path / "both.csv"
        table.write_text("\n".join(["image,caption,label", *rows]), encoding="utf-8")
        options = ("--label", "label", "--method", "kernel", "--test-size", "0")
        result = run("fit", table, "-o", tmp_path / "model", *options)
        assert "Column 'label' is not used. Set --method few-shot" in result.stderr

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("method", ["few-shot", "kernel"])
    def test_reason_is_named_if_no_images_are_held_out(self, small_folder, run, tmp_path, method):
        fit = ("fit", small_folder, "-o", tmp_path / "model", "--method", method)
        result = run(*fit)
        assert "--test-size 0.2 splits 12 distinct images into 10 and 2, and both" in result.stderr
        for kind in ("animal", "food"):
            for image in sorted((small_folder / kind).iterdir())[1:]:
                image.unlink()
        message = "there is only one image of some classes ('animal', 'food'). Add images."
        assert message in run(*fit).stderr

    def test_class_with_one_image_is_fitted_but_not_evaluated(self, photos, run, tmp_path):
        """A table with a rare class had no scores."""
        folders = [list((photos / name).iterdir()) for name in ("animal", "food", "travel")]
        folders[2] = folders[2][:1]
        lines = [f"{path},{path.parent.name}" for folder in folders for path in folder]
        table = tmp_path / "labels.csv"
        table.write_text("\n".join(["image,label", *lines]), encoding="utf-8")
        options = ("--label", "label", "--test-size", "0.4", "-o", tmp_path / "model")
        result = run("fit", table, *options)
        assert "Classes with one image ('travel') are fitted, but not evaluated." in result.stderr
        scores = list(csv.DictReader(io.StringIO(result.stdout)))
        assert {row["n"] for row in scores} == {str(round(0.4 * (len(lines) - 1)))}
        counts = load_pretrained(tmp_path / "model").class_count_.tolist()
        assert counts == list(map(len, folders))

    def test_held_out_image_of_several_rows_counts_once(self, photos, rows, tmp_path):
        lines = [f"{path},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
        table = tmp_path / "labels.csv"
        table.write_text("\n".join(["image,label", *lines, *lines]), encoding="utf-8")
        table_rows = rows("fit", table, "--label", "label", "-o", tmp_path / "model")
        assert {row["n"] for row in table_rows} == {"12"}

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("method", ["few-shot", "kernel"])
    def test_image_of_several_rows_is_used_once(self, small_folder, run, tmp_path, method):
        """Images with many captions would have a larger weight, and be counted several times."""
        lines = [f"{path},{path.parent.name}" for path in sorted(small_folder.rglob("*.png"))]
        other_paths = [line.replace("small_folder", "./small_folder") for line in lines]
        table, results = tmp_path / "labels.csv", []
        options = ("--label", "label", "--method", method, "-o", tmp_path / "model")
        for repeated in ([], 5 * lines[:4], other_paths[:4]):
            table.write_text("\n".join(["image,label", *lines, *repeated]), encoding="utf-8")
            assert "Fitted on 12 images." in run("fit", table, *options).stderr
            model = load_pretrained(tmp_path / "model")
            predict = model.predict_proba if method == "few-shot" else model.transform
            results.append(predict([lines[4].split(",")[0]]))
            result = run("evaluate", table, "--label", "label", "--aligner", tmp_path / "model")
            assert "12 of 12 images were used to fit" in result.stderr
        for other in results[1:]:
            np.testing.assert_allclose(other, results[0], atol=1e-6)

    def test_files_of_an_image_with_different_labels_are_named(self, photos, run, tmp_path):
        """The training part, which is fitted first, would be described by its rows."""
        paths = sorted(photos.rglob("*.png"))
        copy = shutil.copy(paths[0], tmp_path / "copy.png")
        lines = [*(f"{path},{path.parent.name}" for path in paths), f"{copy},travel"]
        table = tmp_path / "labels.csv"
        table.write_text("\n".join(["image,label", *lines]), encoding="utf-8")
        result = run("fit", table, "--label", "label", "-o", tmp_path / "model", code=1)
        message = " ".join(result.stderr.split())
        assert f"An image has different labels: 'animal' for '{paths[0]}'" in message
        assert f"and 'travel' for '{copy}'. Correct the labels" in message

    def test_table_of_labels_without_captions(self, photos, run, tmp_path):
        """Such as a corrected table of `classify`."""
        rows = [f"{path},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
        table = tmp_path / "labels.csv"
        table.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
        options = ("--image", "path", "--label", "label", "--test-size", "0", "--quiet")
        run("fit", table, "-o", tmp_path / "model", *options)
        assert load_pretrained(tmp_path / "model").class_count_.sum() == len(rows)

    @pytest.mark.parametrize(
        ("arguments", "message", "code"),
        [
            (("--labels", "animal,food"), "these labels of the images: 'travel'", 1),
            (("--method", "kernel", "--aligner", "x"), "the methods few-shot, extend.", 2),
            (("--checkpoint", "c"), "use one of the methods ape, lit.", 2),
            (("--head-pairs",), "use one of the methods ape, kernel, cca, asif.", 2),
            (("--image-encoder", "efficientnet_lite2"), "for --image-encoder: has no effect", 2),
            (("--method", "few-shot", "--captions", "filename"), "has no labels", 1),
        ],
    )
    def test_invalid_options_are_messages(self, photos, run, tmp_path, arguments, message, code):
        data = photos / "food" if "filename" in arguments else photos
        result = run("fit", data, "-o", tmp_path / "model", *arguments, code=code)
        assert message in " ".join(result.stderr.split())


class TestNamesOfFolders:
    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("method", ["kernel", "few-shot"])
    def test_accuracy_is_that_of_the_saved_classifier(self, photos, run, tmp_path, method):
        """Folders have codes, and the names are in a file."""
        names = {"A1": ["an animal"], "B2": ["food"], "C3": ["a vehicle", "a building"]}
        folders = dict(zip(("animal", "food", "travel"), names, strict=True))
        for folder, code in folders.items():
            shutil.copytree(photos / folder, tmp_path / "codes" / code)
        file = tmp_path / "names.json"
        file.write_text(json.dumps(names), encoding="utf-8")
        options = ("--method", method, "--labels-file", file)
        stdout = run("fit", tmp_path / "codes", "-o", tmp_path / "model", *options).stdout
        scores = list(csv.DictReader(io.StringIO(stdout)))
        assert float(scores[0]["value"]) > 0.5
        evaluated = run("evaluate", tmp_path / "codes", "--aligner", tmp_path / "model").stdout
        assert float(next(csv.DictReader(io.StringIO(evaluated)))["value"]) > 0.8
        wrong = ("--method", method, "--labels", "x,y")
        result = run("fit", tmp_path / "codes", "-o", tmp_path / "other", *wrong, code=1)
        message = " ".join(result.stderr.split())
        assert "does not contain these labels of the images: 'A1'" in message

    def test_scores_are_named_as_in_evaluate(self, photos, run, tmp_path):
        """With names as captions, the score of this folder was that of "wild animal"."""
        shutil.copytree(photos, tmp_path / "photos")
        (tmp_path / "photos" / "animal").rename(tmp_path / "photos" / "wild_animal")
        options = ("-o", tmp_path / "model", "--method", "kernel", "--no-refit")
        fitted = run("fit", tmp_path / "photos", *options).stdout
        evaluated = run("evaluate", tmp_path / "photos", "--aligner", tmp_path / "model").stdout
        for stdout in (fitted, evaluated):
            names = {row["of"] for row in csv.DictReader(io.StringIO(stdout))}
            assert names == {"all", "food", "travel", "wild_animal"}

    @pytest.mark.parametrize("method", ["kernel", "few-shot"])
    def test_images_labelled_by_a_group_raise(self, small_folder, run, tmp_path, method):
        """They do not say which class of the group they show."""
        file = tmp_path / "names.json"
        file.write_text('{"animal": {"bird": null, "mammal": null}, "food": null, "travel": null}')
        options = ("-o", tmp_path / "model", "--method", method, "--labels-file", file)
        message = " ".join(run("fit", small_folder, *options, code=1).stderr.split())
        assert "the labels 'animal', which are groups of the hierarchy" in message
        assert "innermost classes: 'bird', 'mammal', 'food', 'travel'." in message
