"""Models on the Hugging Face hub, and model cards."""

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
from tests.persistence import hub_clients
from tests.persistence.local_hub import Hub


@pytest.fixture
def hub():
    with Hub() as server:
        yield server
        server.shutdown()


@pytest.mark.exhaustive
def test_pushed_model_can_be_loaded_and_errors_are_informative(hub, tmp_path):
    hub.repos["me/bert"] = [{"config.json": b'{"model_type": "bert"}', "evil.pkl": b"\x80"}]
    commit_1 = "356a192b7913b04c54574d18c28d46e6395428ab"  # sha1 of "1"
    outputs = hub_clients.run(hub_clients.upload_and_download, hub, tmp_path / "cache", commit_1)
    assert outputs["address"] == f"{hub.address}/me/aligner"
    assert outputs["first"]
    assert outputs["second"]
    assert outputs["old"]
    assert outputs["missing"].startswith("FileNotFoundError: 'me/")
    assert outputs["revision"].startswith("OSError: 'me/aligner' is not a folder")
    assert "no-such" in outputs["revision"]
    assert "has a model of the class KernelAligner" in outputs["class"]
    assert outputs["other"].startswith("ValueError")
    assert "has no model of sklearn-ape" in outputs["other"]
    assert not list((tmp_path / "cache").rglob("*.pkl"))  # never downloaded
    assert "Bearer hf_secret" in hub.tokens
    files = hub.repos["me/aligner"][-1]
    assert files.keys() == {"config.json", "model.safetensors", "README.md"}
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: sklearn-ape\n")
    assert b"hf_secret" not in b"".join(files.values())


@pytest.mark.exhaustive
def test_load_without_network_uses_cache(hub, tmp_path):
    """A downloaded model is loaded from the cache; otherwise the error names what is missing."""
    rng = np.random.default_rng(0)
    model = KernelAligner().fit(rng.standard_normal((30, 5)), rng.standard_normal((30, 4)))
    model.save_pretrained(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    hub.repos["me/aligner"] = [files]
    cache = tmp_path / "cache"
    offline = {"HF_HUB_OFFLINE": "1"}
    error = hub_clients.run(hub_clients.download, hub, cache, **offline)
    assert error.startswith("OSError: 'me/aligner' is not a folder, and cannot be lo")
    for settings in ({}, offline):
        found = hub_clients.run(hub_clients.download, hub, cache, **settings)
        assert found == model.fingerprint_


@pytest.mark.exhaustive
def test_upload_without_network_raises(hub, tmp_path):
    """The error is one line, whichever HTTP library the hub client uses."""
    for settings in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        error = hub_clients.run(hub_clients.upload, hub, tmp_path, **settings)
        assert error.startswith("OSError: 'me/aligner' was not uploaded: ")
        assert "save_pretrained saves the model" in error


@pytest.mark.parametrize("name", ["", None, "../x", "/abs"])
def test_invalid_repo_id_raises(name, concepts):
    model = KernelAligner().fit(concepts.image, concepts.text)
    with pytest.raises(ValueError, match="owner/name"):
        model.push_to_hub(name)


def card(model, folder, **options):
    model.save_pretrained(folder / "model", **options)
    return (folder / "model" / "README.md").read_text(encoding="utf-8")


def rows(text):
    """Return the cells of all tables."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in cells if len(row) == 2}


def test_card_contains_scores_and_parameters(concepts, tmp_path):
    model = APEAligner(width=16, max_epochs=3, random_state=0)
    model.fit(concepts.image, concepts.text)
    text = card(model, tmp_path, scores={"recall@1 of stamps": np.float32(0.25)})
    cells = rows(text)
    assert cells["training pairs"] == "300"
    assert cells["parameters"] == f"{model.n_parameters_:,}"
    assert cells["recall@1 of stamps"] == "0.25"
    (recall,) = (
        row["valid_recall"] for row in model.history_ if row["epoch"] == model.best_epoch_
    )
    name = "validation recall, mean of recall@1, @5 and @10 in both directions"
    assert float(cells[name]) == pytest.approx(recall, abs=1e-4)
    assert "width=16" in text
    assert "## Limitations" in text
    assert text.startswith("---\nlibrary_name: sklearn-ape\ntags:\n- sklearn-ape\n")
    assert "# license:" in text.split("---")[1]


def test_card_without_scores_says_so(concepts, tmp_path):
    assert "No scores were passed" in card(
        KernelAligner().fit(concepts.image, concepts.text), tmp_path
    )


def test_card_lists_encoders_by_name_and_digest(
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


def test_card_lists_encoders_of_starter_model(tmp_path):
    """The encoders of the starter model are not in the file, but the model takes images."""
    text = card(ZeroShotClassifier(["cat", "dog"]), tmp_path)
    assert rows(text)["encoders"].startswith("those of the starter model")
    assert "model.predict(['image.jpg'])" in text
    assert "Says which of the classes an image shows" in text


@pytest.mark.parametrize(("n_classes", "end"), [(20, ", 119"), (21, ", 119, ...")])
def test_card_of_features_lists_the_first_20_classes(concepts, tmp_path, n_classes, end):
    aligner = KernelAligner(text_encoder=None).fit(concepts.image, concepts.text)
    text = card(ZeroShotClassifier(range(100, 100 + n_classes), aligner=aligner), tmp_path)
    assert rows(text)["classes"].startswith(f"{n_classes}: 100, 101, ")
    assert rows(text)["classes"].endswith(end)
    assert "model.predict(image_features)" in text


def test_labels_in_card_are_escaped(features, captioned_images, text_encoder, tmp_path):
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


def rendered_texts(text):
    """Return the texts of a rendered card after checking that none of them is markup."""
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
def test_user_names_in_card_are_not_markup(concepts, tmp_path, kind):
    aligner = KernelAligner(text_encoder=None).fit(concepts.image, concepts.text)
    scores = dict.fromkeys(HOSTILE, 0.5)
    if kind == "classifier":
        aligner = KernelAligner(text_encoder=TransformersTextEncoder()).fit(
            concepts.image[:9], list(HOSTILE)
        )
        model = ZeroShotClassifier(HOSTILE, aligner=aligner, unknown_label=HOSTILE[7])
    else:
        model = CrossModalRetriever(aligner).fit(concepts.image, [HOSTILE[7]] * 300)
    texts = rendered_texts(card(model, tmp_path, scores=scores))
    for name in HOSTILE[:7]:
        assert name in texts
    if kind == "classifier":
        assert any(text.startswith("9: " + ", ".join(sorted(HOSTILE)[:4])) for text in texts)


@pytest.mark.parametrize("name", HOSTILE)
def test_encoder_names_in_card_are_not_markup(name):
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
    assert any("TransformersTextEncoder(" in cell for cell in rendered_texts(text))
    clip = CLIPAligner(name.replace("/", ""), name)
    rendered_texts(write_card(record, clip._get_card_facts(), {}, Serializer(), "1"))


def test_parameters_in_code_block_evaluate_to_same_values(features, captioned_images, tmp_path):
    aligner = KernelAligner(text_encoder=TransformersTextEncoder())
    aligner.fit(features.image[:50], captioned_images.captions[:50])
    labels = ["<b>", "```\n```"]
    text = card(ZeroShotClassifier(labels, aligner=aligner), tmp_path)
    (line,) = (line for line in text.splitlines() if line.startswith("    labels="))
    assert eval(line.strip().removeprefix("labels=").removesuffix(",")) == labels


def test_card_shows_dicts_of_one_key(concepts, tmp_path):
    aligner = APEAligner(loss_params={"logit_scale": 10.0}, max_epochs=1)
    aligner.fit(concepts.image, concepts.text).save_pretrained(tmp_path)
    assert "loss_params={'logit_scale': 10.0}" in (tmp_path / "README.md").read_text("utf-8")
