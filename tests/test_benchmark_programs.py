"""Programs of the benchmarks: each can be imported, and its measurements run on little data."""

import importlib
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from sklearn.utils import Bunch

from benchmarks import build_starter, few_labels, gpu, scale
from benchmarks._process import ROOT
from benchmarks.studies import broad_words, encode_stages, starter
from sklearn_ape import APEAligner, KernelAligner
from sklearn_ape.aligners.starter import STARTER_FOLDER, make_starter_encoders, unpack_starter
from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import HeadPairs, TimmImageEncoder, classifier_head_pairs

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "benchmarks").rglob("*.py")
)
PROGRAMS = [
    name
    for name in MODULES
    if re.fullmatch(r"benchmarks(\.studies)?\.[a-z]\w*|benchmarks\.\w+\.__main__", name)
]


def import_or_skip(name):
    """Import a module of the benchmarks, or skip the test if a package is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("benchmarks", "sklearn_ape", "tests"):
            raise
        pytest.skip(f"{error.name} is not installed")


@pytest.fixture
def aligner(feature_cache):
    """Return a copy of the starter model, which a test may change."""
    aligner = unpack_starter(STARTER_FOLDER / "model.safetensors")
    aligner.image_encoder_, aligner.text_encoder_ = make_starter_encoders(
        cache=feature_cache, engine="torch"
    )
    return aligner


@pytest.fixture
def emoji():
    """Return some emoji and their captions."""
    data = load_openmoji()
    return Bunch(images=data.images[::60], captions=data.captions[::60])


@pytest.mark.parametrize("name", MODULES)
def test_module_can_be_imported(name):
    """Names that a program imports from the package have not been renamed."""
    import_or_skip(name)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_is_the_docstring(name, monkeypatch, capsys):
    """It says which data a program needs, and must not start the measurements."""
    description = import_or_skip(name).__doc__
    monkeypatch.delitem(sys.modules, name)  # of which runpy would warn
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module(name, run_name="__main__")
    assert description.strip() in capsys.readouterr().out


@pytest.mark.exhaustive
def test_stages_of_encoding_add_up(monkeypatch):
    monkeypatch.setattr(encode_stages, "N_ROUNDS", 1)
    encoder = TimmImageEncoder(engine="torch", cache=None)
    times = encode_stages.measure_stages(encoder, load_sample_images().filenames, 1)
    assert list(times) == [
        *("read and digest", "decode", "resize and crop", "network", "rest", "transform")
    ]
    total = times.pop("transform")
    assert sum(times.values()) == pytest.approx(total)
    assert times["network"] > times["read and digest"]


@pytest.mark.exhaustive
def test_few_labels_has_a_row_per_method(aligner, monkeypatch):
    """Classes that are far apart are learned from one image by all methods that learn."""
    monkeypatch.setattr(few_labels, "SHOTS", (0, 1))
    rng = np.random.default_rng(0)
    y = np.repeat(["a car", "a cat", "a flower", "food"], 12)
    centers = 10 * rng.random((4, 1280))
    features = np.repeat(centers, 12, axis=0) + rng.random((48, 1280))
    aligner.image_encoder_ = None
    data = {"clusters": few_labels.Data(features.astype(np.float32), y)}
    few = list(few_labels.measure_few_labels(aligner, data, 1))
    assert [row["method"] for row in few if row["case"] == 1] == list(few_labels.METHODS)
    assert all(set(row) <= set(few_labels.COLUMNS) for row in few)
    accuracies = {row["method"]: row["accuracy"] for row in few if row["case"] == 1}
    assert accuracies["FewShotClassifier"] == accuracies["LogisticRegression"] == 100
    half = list(few_labels.measure_half_of_classes(aligner, data, 1))
    assert [row["method"] for row in half] == [
        *("names alone", "LogisticRegression", "FewShotClassifier")
    ]
    rows = list(few_labels.measure_collections(aligner, data, 1))
    assert len({row["method"] for row in rows}) == 4
    assert all(0 <= row["accuracy"] <= 100 for row in rows)


@pytest.mark.exhaustive
def test_study_of_starter_model_restores_its_parts(aligner, emoji, monkeypatch, capsys):
    """Recall is printed of the blend, of its parts, and of the blend without names of classes."""
    monkeypatch.setattr(starter, "N_OWN_PAIRS", (10,))
    monkeypatch.setattr(starter, "N_DRAWS", 1)
    before = aligner.transform(emoji.images), aligner.transform_text(emoji.captions)
    starter.print_parts(aligner, {"emoji": emoji})
    starter.print_templates(aligner, {"emoji": emoji})
    starter.print_extensions(aligner, {"emoji": emoji})
    after = aligner.transform(emoji.images), aligner.transform_text(emoji.captions)
    np.testing.assert_allclose(after[0], before[0], atol=1e-6)
    np.testing.assert_allclose(after[1], before[1], atol=1e-6)
    lines = capsys.readouterr().out.splitlines()
    parts = [line.split(" | ")[2] for line in lines if line.startswith("| emoji | image to")]
    assert parts == [name for name, _ in starter.PARTS] + ["without names of classes"]
    assert lines[-1].count("±") == 6


@pytest.mark.exhaustive
def test_article_precedes_names_of_broad_words(aligner, emoji):
    """Predictions are compared with words, whatever the prompts are."""
    images, y = emoji.images[:4], np.array(emoji.captions[:4])
    for prompts in broad_words.PROMPTS:
        assert broad_words.find_hits(aligner, images, y, prompts).mean() > 0.5


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["ape", "kernel", "asif", "cca", "lit", "head-1"])
def test_scale_measures_recall_of_each_method(method, emoji, aligner, monkeypatch):
    monkeypatch.setitem(
        scale.METHODS,
        "lit",
        lambda seed: scale.LiTAligner(
            text_encoder="all-MiniLM-L6-v2", max_epochs=1, random_state=seed
        ),
    )
    captions = np.array(emoji.captions, dtype=object)
    image = aligner.image_encoder_.transform(emoji.images)
    pairs = scale.Pairs(image, aligner.text_encoder_.transform(emoji.captions), captions)
    rows = scale.measure(method, pairs, {"emoji": pairs}, seed=0)
    assert [row["test_set"] for row in rows] == ["emoji", scale.TRAINING]
    assert set(rows[0]) == set(scale.COLUMNS)
    assert float(rows[0]["image_to_text"]) > 100 / len(captions)
    assert bool(rows[0]["summary"]) == (method == "ape")


def make_few_head_pairs(encoder, definitions):
    pairs = classifier_head_pairs(encoder, definitions=definitions)
    return HeadPairs(pairs.weights[:100], pairs.texts[:100])


@pytest.mark.exhaustive
def test_parts_of_the_starter_model_can_be_built(aligner, emoji, tmp_path, monkeypatch):
    """A small model is built as `build_starter` does, and read from its file."""
    monkeypatch.setattr(build_starter, "N_COMPONENTS", 24)
    # The texts of each of 1,000 classes are embedded in a call of its own.
    monkeypatch.setattr(build_starter, "classifier_head_pairs", make_few_head_pairs)
    encoders = {
        "image_encoder": aligner.image_encoder_,
        "text_encoder": aligner.text_encoder_,
        "head_pairs": classifier_head_pairs(aligner.image_encoder_, definitions=False),
        "n_components": build_starter.N_COMPONENTS,
    }
    captions = [[name] for name in emoji.captions]
    small = APEAligner(depth=1, early_stopping=False, max_epochs=1, random_state=0, **encoders)
    small.fit(emoji.images, captions)
    texts = torch.as_tensor(aligner.text_encoder_.transform(build_starter.list_texts(captions)))
    student = build_starter.distill(small.module_.text_head, texts)
    embeddings = [head(texts).detach() for head in (student, small.module_.text_head)]
    assert torch.cosine_similarity(*embeddings).mean() > 0.8
    kernel = KernelAligner(gamma="scale", **encoders)
    small.module_.text_head = build_starter.BlendedHead(
        build_starter.solve_closed_form(kernel, emoji.images, captions, small),
        student,
        build_starter.HEAD_WEIGHT,
    )
    build_starter.add_classes(small)
    build_starter.set_bank(small, emoji.images, captions)
    small.set_params(head_pairs=None)
    small.image_encoder, small.text_encoder = make_starter_encoders()
    small.image_encoder_, small.text_encoder_ = make_starter_encoders()
    build_starter.pack_starter(small, tmp_path / "model.safetensors")
    unpacked = unpack_starter(tmp_path / "model.safetensors")
    unpacked.image_encoder_ = aligner.image_encoder_
    unpacked.text_encoder_ = aligner.text_encoder_
    cells = build_starter.measure_starter(unpacked, emoji.images, emoji.captions)
    assert all(float(cell.partition(" ")[0]) > 20 for cell in cells.values())


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", ["images", "texts"])
def test_gpu_program_encodes_on_the_cpu(part, monkeypatch):
    if part == "texts":
        pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(gpu, "_N_ROUNDS", 1)
    (row,) = gpu.PARTS[part]("cpu", True)
    assert row.value > 0
    assert row.ratio > 0
