"""The command `encode`."""

import csv

import numpy as np
import pytest

from sklearn_ape.cli._models import RuntimeOptions, make_image_encoder, make_text_encoder
from sklearn_ape.encoders import (
    OpenCLIPImageEncoder,
    TransformersImageEncoder,
    TransformersTextEncoder,
)
from sklearn_ape.features.feature_file import FeatureFile


def listed(file):
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


class TestEncode:
    def test_csv_lists_rows_and_unreadable_images_are_nan(self, small_folder, run, tmp_path):
        (small_folder / "zz.jpg").write_text("no image")
        captions = tmp_path / "captions.txt"
        captions.write_text("a cat\n\na dog\n\n")
        out = tmp_path / "new" / "f.npy"
        result = run("encode", small_folder, "-o", out, "--texts", captions)
        assert result.stdout == ""
        assert "Skipped 1 blank line of" in result.stderr
        features, rows = np.load(out), listed(out.with_suffix(".csv"))
        assert features.shape == (13, 1280)
        bad = [bool(row["error"]) for row in rows]
        assert [row["path"].endswith("zz.jpg") for row in rows] == bad
        np.testing.assert_array_equal(np.isnan(features).all(axis=1), bad)
        encoder = make_image_encoder("efficientnet_lite0", RuntimeOptions("memory", quiet=True))
        expected = encoder.transform([row["path"] for row in rows[:3]])
        np.testing.assert_allclose(features[:3], expected, atol=1e-3)
        assert np.load(tmp_path / "new" / "f.texts.npy").shape == (2, 384)
        assert [row["text"] for row in listed(tmp_path / "new" / "f.texts.csv")] == [
            "a cat",
            "a dog",
        ]

    def test_file_of_other_images_needs_overwrite(self, run, tmp_path):
        for number, text in enumerate(["a cat\na dog\n", "a bird\n"]):
            (tmp_path / f"{number}.txt").write_text(text)
        out = tmp_path / "f.npy"
        assert "Skipped" not in run("encode", "-o", out, "--texts", tmp_path / "0.txt").stderr
        result = run("encode", "-o", out, "--texts", tmp_path / "1.txt", code=1)
        assert "--overwrite" in result.stderr
        assert np.load(out).shape == (2, 384)
        assert "overwrite=True" not in result.stderr
        run("encode", "-o", out, "--texts", tmp_path / "1.txt", "--overwrite")
        assert np.load(out).shape == (1, 384)

    def test_file_locked_by_other_process_raises(self, run, tmp_path):
        (tmp_path / "0.txt").write_text("a cat\n")
        out = tmp_path / "f.npy"
        with FeatureFile(out, "source", 1, 1, "float32") as file:
            file.write(0, np.zeros((1, 4)), "items", {})
            texts = ("--texts", tmp_path / "0.txt")
            result = run("encode", "-o", out, *texts, "--overwrite", code=1)
        assert "is being written by another process" in result.stderr

    def test_no_items_raise(self, run, tmp_path):
        assert "--texts" in run("encode", code=2).stderr
        (tmp_path / "empty.txt").write_text("\n")
        result = run("encode", "--texts", tmp_path / "empty.txt", "-o", tmp_path / "f.npy", code=1)
        assert "contains no text" in result.stderr
        assert ".npy" in run("encode", tmp_path, "-o", "features.csv", code=2).stderr

    def test_table_of_texts_raises(self, run, tmp_path):
        """Its lines, with the header and all columns, were encoded as texts."""
        (tmp_path / "captions.csv").write_text("file_name,caption\na.jpg,a cat\n")
        result = run("encode", "--texts", tmp_path / "captions.csv", code=2)
        assert "is a table, whose lines are not texts" in " ".join(result.stderr.split())


class TestMakeEncoders:
    def test_names_select_encoders_of_all_libraries(self):
        options = RuntimeOptions("memory")
        lite = make_image_encoder("efficientnet_lite0", options)
        assert (lite.pooling, lite.crop, lite.on_error) == ("gem", "pad", "nan")
        assert make_image_encoder("efficientnet_lite0", options, pooling="mean").pooling == "mean"
        assert isinstance(
            make_image_encoder("open_clip:RN50/openai", options), OpenCLIPImageEncoder
        )
        encoder = make_image_encoder("transformers:facebook/dinov2-small", options)
        assert isinstance(encoder, TransformersImageEncoder)
        assert isinstance(make_text_encoder("all-MiniLM-L6-v2", options), TransformersTextEncoder)

    def test_pooling_of_openclip_raises(self):
        with pytest.raises(ValueError, match="pooling"):
            make_image_encoder("open_clip:RN50/openai", RuntimeOptions("memory"), pooling="mean")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet_lite", "sklearn-ape: 'efficientnet_lite' is not an image encoder."),
        ("efficientnet_lite", "Did you mean 'efficientnet_lite0'"),
        ("all-MiniLM-L6-v2", "sklearn-ape: 'all-MiniLM-L6-v2' encodes texts"),
    ],
)
def test_wrong_encoders_are_named_without_the_parameter(
    small_folder, run, tmp_path, name, message
):
    """The option is not `model_name`, which errors of encoders begin with."""
    result = run("encode", small_folder, "-o", tmp_path / "a.npy", "--encoder", name, code=1)
    assert message in result.stderr


def test_table_of_the_user_is_not_replaced(run, tmp_path, monkeypatch):
    """The list of rows has the name of the features, as a table of the same images may have."""
    (tmp_path / "texts.txt").write_text("a cat\n")
    table = tmp_path / "photos.csv"
    table.write_text("file,label\na.jpg,cat\n")
    arguments = ("encode", "-o", tmp_path / "photos.npy", "--texts", tmp_path / "texts.txt")
    assert "is not a list of texts" in run(*arguments, code=1).stderr
    assert table.read_text() == "file,label\na.jpg,cat\n"
    monkeypatch.setenv("HOME", str(tmp_path))  # the shell does not expand --output=~/photos.npy
    in_home = ("encode", "--output=~/photos.npy", *arguments[3:])
    assert "is not a list of texts" in run(*in_home, code=1).stderr
    run(*arguments, "--overwrite")
    run(*arguments)  # the list that the command itself wrote
    assert listed(table) == [{"row": "0", "text": "a cat", "error": ""}]
