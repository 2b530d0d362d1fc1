"""The model card: true, complete, and safe from what labels and names say."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from sklearn_ape import APEAligner, KernelAligner, ZeroShotClassifier
from sklearn_ape.encoders._registry import PACKAGED


def card(model, folder, **options):
    model.save_pretrained(folder / "model", **options)
    return (folder / "model" / "README.md").read_text(encoding="utf-8")


def rows(text):
    """Return the cells of all tables."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in cells if len(row) == 2}


def test_tells_what_is_known(concepts, tmp_path):
    model = APEAligner(width=16, max_epochs=3, random_state=0)
    model.fit(concepts.image, concepts.text)
    text = card(model, tmp_path, scores={"recall@1 of stamps": np.float32(0.25)})
    found = rows(text)
    assert found["pairs fitted on"] == "300"
    assert found["numbers learned"] == f"{model.n_parameters_:,}"
    assert found["recall@1 of stamps"] == "0.25"
    (kept,) = (row["valid_recall"] for row in model.history_ if row["epoch"] == model.best_epoch_)
    name = "recall on the pairs held out, mean of @1, @5 and @10 both ways"
    assert float(found[name]) == pytest.approx(kept, abs=1e-4)
    assert "width=16" in text
    assert "## Limits" in text
    assert text.startswith("---\nlibrary_name: sklearn-ape\ntags:\n- sklearn-ape\n")
    assert "# license:" in text.split("---")[1]


def test_nothing_measured_is_said(concepts, tmp_path):
    assert "Nothing was given" in card(
        KernelAligner().fit(concepts.image, concepts.text), tmp_path
    )


def test_encoders_by_name_and_digest(pictures, image_encoder, text_encoder, features, tmp_path):
    aligner = KernelAligner(text_encoder=text_encoder)
    aligner.fit(features.image[:50], pictures.captions[:50])
    model = make_pipeline(image_encoder, aligner)
    text = card(ZeroShotClassifier(["cat", "pizza"], aligner=model, threshold=0.3), tmp_path)
    for name in ("efficientnet_lite0", "all-MiniLM-L6-v2"):
        assert name in rows(text)["encoders"]
        assert PACKAGED[name].sha256[:24] in rows(text)["encoders"]
    assert rows(text)["classes"] == "2: cat, pizza"
    assert "model.predict(['picture.jpg'])" in text
    assert "below the threshold, unknown" in text


def test_encoders_of_the_starter_model(tmp_path):
    """They are not in the file, and yet it takes pictures."""
    found = rows(card(ZeroShotClassifier(["cat", "dog"]), tmp_path))
    assert found["encoders"].startswith("those of the starter model")


def test_labels_cannot_break_out_of_their_cell(features, pictures, text_encoder, tmp_path):
    aligner = KernelAligner(text_encoder=text_encoder)
    aligner.fit(features.image[:50], pictures.captions[:50])
    labels = ["a\n---\n# title", "b | c", "`d`\n```\n", "<script>alert(1)</script>"]
    text = card(ZeroShotClassifier(labels, aligner=aligner, unknown_label="\n```\nx"), tmp_path)
    assert "<script>" not in text
    assert text.count("\n---\n") == 1
    assert "\n# title" not in text
    assert text.count("```") == 4
    assert "b \\| c" in text
