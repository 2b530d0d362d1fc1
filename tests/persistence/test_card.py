"""The model card: true, complete, and safe from what labels and names say."""

import numpy as np
import pytest
from markdown_it import MarkdownIt
from sklearn.pipeline import make_pipeline

from sklearn_ape import (
    APEAligner,
    CLIPAligner,
    CrossModalRetriever,
    KernelAligner,
    ZeroShotClassifier,
)
from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.encoders.weights import PACKAGED
from sklearn_ape.persistence.hub import Facts, write_card
from sklearn_ape.persistence.serialize import Serializer


def card(model, folder, **options):
    model.save_pretrained(folder / "model", **options)
    return (folder / "model" / "README.md").read_text(encoding="utf-8")


def rows(text):
    """Return the cells of all tables."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in cells if len(row) == 2}


def test_card_has_facts_and_scores(concepts, tmp_path):
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
    assert "## Limitations" in text
    assert text.startswith("---\nlibrary_name: sklearn-ape\ntags:\n- sklearn-ape\n")
    assert "# license:" in text.split("---")[1]


def test_card_without_scores_says_so(concepts, tmp_path):
    assert "No scores were passed" in card(
        KernelAligner().fit(concepts.image, concepts.text), tmp_path
    )


def test_card_has_encoders_with_digests(
    captioned_images, image_encoder, text_encoder, features, tmp_path
):
    aligner = KernelAligner(text_encoder=text_encoder)
    aligner.fit(features.image[:50], captioned_images.captions[:50])
    model = make_pipeline(image_encoder, aligner)
    text = card(ZeroShotClassifier(["cat", "pizza"], aligner=model, threshold=0.3), tmp_path)
    for name in ("efficientnet_lite0", "all-MiniLM-L6-v2"):
        assert name in rows(text)["encoders"]
        assert PACKAGED[name].sha256[:24] in rows(text)["encoders"]
    assert rows(text)["classes"] == "2: cat, pizza"
    assert "model.predict(['image.jpg'])" in text
    assert "below the threshold, unknown" in text


def test_card_of_starter_model_has_encoders(tmp_path):
    """They are not in the file, and yet it takes images."""
    found = rows(card(ZeroShotClassifier(["cat", "dog"]), tmp_path))
    assert found["encoders"].startswith("those of the starter model")


def test_labels_are_escaped_in_cells(features, captioned_images, text_encoder, tmp_path):
    aligner = KernelAligner(text_encoder=text_encoder)
    aligner.fit(features.image[:50], captioned_images.captions[:50])
    labels = ["a\n---\n# title", "b | c", "`d`\n```\n", "<script>alert(1)</script>"]
    text = card(ZeroShotClassifier(labels, aligner=aligner, unknown_label="\n```\nx"), tmp_path)
    assert "<script>" not in text
    assert text.count("\n---\n") == 1
    assert "\n# title" not in text
    assert text.count("```") == 4
    assert "b \\| c" in text


HOSTILE = (
    "![t](http://evil/x.png)",
    "[click](javascript:alert(1))",
    "<img src=http://evil onerror=alert(1)>",
    "<http://evil.org> http://evil.org www.evil.org me@evil.org",
    "a | b ||",
    "`code` ``` ~~~",
    "*a* _b_ ~~c~~ **d** &lt;e&gt; \\[f](g) $h$",
    "x\n---\n# title\n```\n- list\n<script>alert(1)</script>",
    "red\x1b[31m\u202e\x85\u2028",
)


def shown(text):
    """Return the texts that a card shows, after asserting that none of them is markup."""
    front, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert all(
        line.startswith(("library_name: ", "tags:", "- ", "#")) for line in front.split("\n")
    )
    assert all(character == "\n" or character.isprintable() for character in text)
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    assert not {token.type for token in tokens} & {"html_block", "hr", "code_block"}
    children = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in children} <= {
        *("text", "text_special", "code_inline", "softbreak"),
    }
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert headings[1:] == ["Usage", "Scores", "Parameters", "Limitations"]
    assert sum(token.type == "fence" for token in tokens) == 2
    inline = [token for token in tokens if token.type == "inline"]
    return ["".join(child.content for child in token.children) for token in inline]


@pytest.mark.parametrize("kind", ["classifier", "retriever"])
def test_user_names_are_escaped_in_rendered_card(concepts, tmp_path, kind):
    aligner = KernelAligner(text_encoder=None).fit(concepts.image, concepts.text)
    scores = dict.fromkeys(HOSTILE, 0.5)
    if kind == "classifier":
        aligner = KernelAligner(text_encoder=TransformersTextEncoder()).fit(
            concepts.image[:9], list(HOSTILE)
        )
        model = ZeroShotClassifier(HOSTILE, aligner=aligner, unknown_label=HOSTILE[7])
    else:
        model = CrossModalRetriever(aligner).fit(concepts.image, [HOSTILE[7]] * 300)
    texts = shown(card(model, tmp_path, scores=scores))
    for name in HOSTILE[:7]:
        assert name in texts
    if kind == "classifier":
        assert any(text.startswith("9: " + ", ".join(sorted(HOSTILE)[:4])) for text in texts)


@pytest.mark.parametrize("name", HOSTILE)
def test_encoder_names_are_escaped_in_rendered_card(name):
    record = {
        "$class": "KernelAligner",
        "params": {
            "text_encoder": {
                "$class": "TransformersTextEncoder",
                "params": {"model_name": name},
                "state": {"weights": name},
            }
        },
        "state": None,
    }
    tags = ["a: b", "- c", name]
    text = write_card(record, Facts(what="It aligns.", tags=tags), {}, Serializer(), "1")
    assert any("TransformersTextEncoder(" in cell for cell in shown(text))
    clip = CLIPAligner(name.replace("/", ""), name)
    shown(write_card(record, clip._card_facts(), {}, Serializer(), "1"))


def test_parameters_in_code_block_evaluate_to_the_same(features, captioned_images, tmp_path):
    aligner = KernelAligner(text_encoder=TransformersTextEncoder())
    aligner.fit(features.image[:50], captioned_images.captions[:50])
    labels = ["<b>", "```\n```"]
    text = card(ZeroShotClassifier(labels, aligner=aligner), tmp_path)
    (line,) = (line for line in text.splitlines() if line.startswith("    labels="))
    assert eval(line.strip().removeprefix("labels=").removesuffix(",")) == labels
