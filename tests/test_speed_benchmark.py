"""Speed benchmarks: engines and precisions of an encoder, peers, the GPU program on a CPU."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks import gpu
from benchmarks.speed import encode, indexes, libraries, precision, trainers
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder, _engine


def test_errors_are_one_minus_cosine():
    errors = encode.compute_errors(np.array([[1.0, 0], [1, 1]]), np.array([[2.0, 0], [-1, 1]]))
    np.testing.assert_allclose(errors, [0, 1])


def test_network_of_plain_loop_has_the_weights_of_the_encoder():
    """The plain loop, embetter and the GPU program encode with this network."""
    image = Image.fromarray(load_sample_images().images[0])
    network, transform = encode.load_timm_model()
    with torch.inference_mode():
        features = network(transform(image)[None]).numpy()
    encoder = TimmImageEncoder(engine="torch", cache=None)
    assert encode.compute_errors(features, encoder.transform([image])).max() < 1e-4


@pytest.mark.exhaustive
@pytest.mark.parametrize("contender", encode.CONTENDERS)
def test_contenders_give_the_same_features(contender, tmp_path, monkeypatch):
    """All encode the same items; features in bfloat16 differ more."""
    for name, module in (
        *(("openvino", "openvino"), ("onnx", "onnxruntime"), ("embetter", "embetter")),
        ("sentence-transformers", "sentence_transformers"),
    ):
        if name in contender:
            pytest.importorskip(module)
    if not encode.is_supported(contender):
        pytest.skip("OpenVINO does not compute in bfloat16 on this processor")
    monkeypatch.setenv("SKLEARN_APE_DATA", str(tmp_path))
    encoder = TimmImageEncoder(engine="torch", cache=None)
    items = load_sample_images().filenames
    if "texts" in contender or contender == "sentence-transformers":
        encoder = TransformersTextEncoder(engine="torch", cache=None)
        items = ["a cat", "a red apple on a table"]
    path = tmp_path / "items.txt"
    path.write_text("\n".join(items), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["", contender, str(path)])
    features = encode.CONTENDERS[contender](tmp_path)(items)
    limit = 2e-2 if "bf16" in contender else 1e-4
    assert encode.compute_errors(features, encoder.transform(items)).max() < limit


@pytest.mark.parametrize("is_there", [True, False])
def test_only_precisions_of_the_processor_are_measured(is_there, monkeypatch):
    """Without bfloat16, both parts of the benchmark stopped with an error."""
    pytest.importorskip("openvino")
    precisions = ("float32", "bfloat16")[: 1 + is_there]
    monkeypatch.setattr(_engine, "_list_precisions", lambda engine: precisions)
    lacking = [name for name in encode.CONTENDERS if not encode.is_supported(name)]
    lacking += [key for key in precision.CONFIGURATIONS if not encode.is_supported(" ".join(key))]
    expected = [encode.APE_BF16, "texts openvino bf16", ("openvino", "bfloat16")]
    assert lacking == ([] if is_there else expected)


@pytest.mark.exhaustive
def test_precision_part_measures_rate_and_errors(monkeypatch):
    """Each configuration has a rate, and errors that are those of its precision."""
    pytest.importorskip("openvino")
    configurations = (precision.REFERENCE, ("openvino", "float32"))
    monkeypatch.setattr(precision, "CONFIGURATIONS", configurations)
    name = "all-MiniLM-L6-v2"
    monkeypatch.setattr(precision, "ENCODERS", {name: precision.ENCODERS[name]})
    rows = precision.measure(quick=True)
    suffixes = ("", ": largest 1 - cosine", ": mean 1 - cosine", ": recall@1")
    assert [row.name for row in rows] == [
        f"{name}, {engine} {dtype}{suffix}"
        for engine, dtype in configurations
        for suffix in suffixes
    ]
    rates, largest, mean, recalls = (rows[start::4] for start in range(4))
    assert all(row.value > 0 and row.unit == "texts/s" for row in rates)
    assert [row.peer for row in rates] == ["torch float32"] * 2
    assert rates[0].ratio == 1
    assert abs(largest[0].value) < 1e-6
    assert mean[1].value <= largest[1].value < 1e-5
    assert recalls[0].value == recalls[1].value > 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", ["training", "loss", "kernel"])
def test_gpu_program_compares_with_a_peer(part):
    """Without a GPU, its parts that need no files run on the CPU."""
    rows = list(gpu.PARTS[part]("cpu", True))
    assert rows
    assert all(row.value > 0 and math.isfinite(row.ratio) for row in rows)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "batch_size", "n_epochs"), [("sharelock", 40, 4), ("sail", 20, 20)]
)
def test_plain_loop_trains_the_network_of_the_recipe(name, batch_size, n_epochs):
    """Both have the same numbers of parameters, and learn random pairs in a few steps."""
    rng = np.random.default_rng(0)
    pairs = trainers.Pairs(
        *(rng.standard_normal((40, width), dtype=np.float32) for width in (24, 16))
    )
    loop = trainers.LOOPS[name]
    peer = loop(24, 16)
    aligner = trainers.make_aligner(name, max_epochs=1, early_stopping=False, device="cpu")
    module = aligner.fit(*pairs).module_
    sizes = [
        sum(parameter.numel() for head in heads for parameter in head.parameters())
        for heads in (
            (peer.embed_image, peer.embed_text),
            (module.image_head, module.text_head),
        )
    ]
    assert sizes[0] == sizes[1]
    for fit in (trainers.fit_recipe, trainers.fit_by_hand):
        fitted = fit(name, loop, pairs, batch_size, n_epochs, 0)
        assert len(fitted.seconds) == n_epochs
        assert trainers.compute_recall(fitted, pairs) > 0.5


@pytest.mark.exhaustive
def test_classifier_agrees_with_open_clip():
    """Label embeddings and predictions are those of open_clip."""
    pytest.importorskip("open_clip")
    rows = libraries._compare_with_open_clip(quick=True)
    labels, label_error, images, logit_error, agreement = rows
    assert labels.ratio > 0
    assert images.ratio > 0
    assert label_error.value < 1e-5
    assert logit_error.value < 1e-3
    assert agreement.value == 100


@pytest.mark.exhaustive
def test_missing_autofaiss_is_reported(monkeypatch, capsys):
    """The other comparisons of graphs are made."""
    pytest.importorskip("faiss")
    pytest.importorskip("usearch")
    monkeypatch.delenv("BENCHMARK_AUTOFAISS", raising=False)
    rows = indexes._compare_graphs(2000, 16, 1)
    assert "skipped autofaiss" in capsys.readouterr().out
    assert {row.peer for row in rows} == {"faiss, HNSW of the same size"}
    recall = rows[-1]
    assert recall.value > 95
    assert recall.peer_value > 95
