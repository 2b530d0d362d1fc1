"""Aligners exported to ONNX and as models of open_clip."""

import errno
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline

from sklearn_ape import APEAligner, ASIFAligner, CLIPAligner, KernelAligner, ZeroShotClassifier
from sklearn_ape.aligners import as_open_clip, export_onnx
from sklearn_ape.encoders import TimmImageEncoder
from sklearn_ape.heads import KernelMap
from tests.aligners.test_clip import IMAGES, TEXTS
from tests.aligners.test_clip import save_model as save_clip
from tests.persistence.conftest import ALIGNERS


@pytest.fixture(scope="module")
def onnxruntime():
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name",
    ["cca", "ape-blend", "ape-residual-of-kernel", "ape-batchnorm", "ape-linear-start"],
)
def test_onnxruntime_gives_equal_embeddings(name, onnxruntime, concepts, tmp_path):
    aligner = clone(ALIGNERS[name]).fit(concepts.image, concepts.text)
    export_onnx(aligner, tmp_path / "heads")
    for side, features, embed in (
        ("image", concepts.image, aligner.transform),
        ("text", concepts.text, aligner.transform_text),
    ):
        session = onnxruntime.InferenceSession(tmp_path / "heads" / f"{side}_head.onnx")
        for rows in (features, features[:1]):
            embeddings = session.run(["embeddings"], {"features": rows})[0]
            np.testing.assert_allclose(embeddings, embed(rows), atol=1e-5)
    assert len(list((tmp_path / "heads").iterdir())) == 2


@pytest.mark.usefixtures("onnxruntime")
def test_wrong_export_raises_and_writes_nothing(concepts, tmp_path, monkeypatch):
    aligner = clone(ALIGNERS["kernel"]).fit(concepts.image, concepts.text)
    monkeypatch.setattr(aligner, "_embed", lambda side, rows: np.ones((len(rows), 6)))
    with pytest.raises(ValueError, match="differ from the aligner"):
        export_onnx(aligner, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("onnxruntime")
def test_full_disk_leaves_no_new_folder(concepts, tmp_path, monkeypatch):
    aligner = clone(ALIGNERS["kernel"]).fit(concepts.image, concepts.text)

    def fails(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", fails)
    (tmp_path / "old").mkdir()
    for name in ("old", "new"):
        with pytest.raises(OSError, match="No space left"):
            export_onnx(aligner, tmp_path / name)
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


def test_aligner_without_heads_raises(concepts, tmp_path):
    with pytest.raises(TypeError, match="not ASIFAligner"):
        export_onnx(ASIFAligner().fit(concepts.image, concepts.text), tmp_path)


@pytest.mark.exhaustive
def test_kernel_tiles_do_not_change_the_export(onnxruntime, concepts, tmp_path, monkeypatch):
    """Python code maps rows in tiles; the exported graph must not depend on their size."""
    monkeypatch.setattr("sklearn_ape.heads._closed_form._BLOCK_VALUES", 1000)
    aligner = APEAligner(init="kernel", width=8, max_epochs=1, early_stopping=False)
    aligner.fit(concepts.image, concepts.text)
    assert isinstance(aligner.module_.text_head.base, KernelMap)
    export_onnx(aligner, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "text_head.onnx")
    embeddings = session.run(None, {"features": concepts.text})[0]
    np.testing.assert_allclose(embeddings, aligner.transform_text(concepts.text), atol=1e-5)


NAMES = ["animal", "food", "travel"]


@pytest.fixture(scope="module")
def model(captioned_images, features, image_encoder, text_encoder):
    aligner = KernelAligner(text_encoder=text_encoder)
    return make_pipeline(
        clone(image_encoder).set_params(engine="torch"),
        aligner.fit(features.image[:200], captioned_images.captions[:200]),
    )


class Images(torch.utils.data.Dataset):
    """Dataset of real images and targets, as those of torchvision."""

    def __init__(self, images, targets, transform, classes):
        self.images, self.targets, self.transform = images, targets, transform
        self.classes = classes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.transform(self.images[row]), self.targets[row]


def collate_captions(batch):
    return torch.stack([pixels for pixels, _ in batch]), [texts for _, texts in batch]


def top_1(output, target, topk=(1,)):
    """Replace the `accuracy` of clip_benchmark, which fails with numpy 2.4 and later."""
    ranked = output.topk(max(topk), dim=1).indices
    return [(ranked[:, :k] == target[:, None]).any(1).float().mean().item() for k in topk]


@pytest.fixture
def evaluate(model, monkeypatch):
    """Return a function that evaluates the exported model with clip_benchmark."""
    pytest.importorskip("clip_benchmark")
    from clip_benchmark.metrics import zeroshot_classification

    try:
        zeroshot_classification.accuracy(torch.eye(2), torch.arange(2))
    except TypeError:
        monkeypatch.setattr(zeroshot_classification, "accuracy", top_1)
    exported = as_open_clip(model)

    def evaluate(X, y, classes, templates, amp):
        data = Images(X, [classes.index(name) for name in y], exported.transform, classes)
        loader = torch.utils.data.DataLoader(data, batch_size=32)
        return zeroshot_classification.evaluate(
            exported.model, loader, exported.tokenizer, classes, templates, device="cpu", amp=amp
        )

    return evaluate


@pytest.mark.exhaustive
@pytest.mark.parametrize("amp", [False, True])
def test_zero_shot_accuracy_equals_classifier(amp, evaluate, model, captioned_images):
    X, y = captioned_images.images[240:], captioned_images.categories[240:]
    measures = evaluate(X, y, NAMES, ["a photo of a {c}", "a drawing of a {c}"], amp)
    classifier = ZeroShotClassifier(
        NAMES, aligner=model, templates=["a photo of a {}", "a drawing of a {}"]
    )
    # With amp, clip_benchmark multiplies the embeddings in bfloat16.
    tolerance = 0.02 if amp else 1e-6
    assert measures["acc1"] == pytest.approx(classifier.score(X, y), abs=tolerance)
    assert measures["acc1"] > 0.5
    expected = balanced_accuracy_score(y, classifier.predict(X))
    assert measures["mean_per_class_recall"] == pytest.approx(expected, abs=tolerance)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "amp"), [("templates", False), ("templates", True), ("prompts per class", False)]
)
def test_measures_of_many_classes_equal_classifier(kind, amp, evaluate, model, captioned_images):
    """Each caption is a class, and the classes are not sorted."""
    X, y = captioned_images.images[240:], captioned_images.captions[240:]
    classes = list(dict.fromkeys(y))
    assert classes != sorted(classes)
    if kind == "templates":
        templates = ["{c}", "a drawing of a {c}"]
        classifier = ZeroShotClassifier(
            classes, aligner=model, templates=["{}", "a drawing of a {}"]
        )
    else:
        templates = {name: [name, f"one {name}, drawn"] for name in classes}
        classifier = ZeroShotClassifier(templates, aligner=model, templates="none")
    measures = evaluate(X, y, classes, templates, amp)
    top_5 = classifier.predict_top_k(X, 5)[0]
    predicted = classifier.predict(X)
    expected = {
        "acc1": np.mean(predicted == y),
        "acc5": np.mean((top_5 == np.array(y)[:, None]).any(axis=1)),
        "mean_per_class_recall": balanced_accuracy_score(y, predicted),
    }
    assert expected["acc5"] > expected["acc1"] > 0.1
    assert measures == pytest.approx(expected, abs=0.05 if amp else 1e-6)


def test_retrieval_measures_equal_aligner(model, captioned_images):
    pytest.importorskip("clip_benchmark")
    from clip_benchmark.metrics import zeroshot_retrieval

    exported = as_open_clip(FrozenEstimator(model))
    X, y = captioned_images.images[240:], captioned_images.captions[240:]
    data = Images(X, [[caption] for caption in y], exported.transform, NAMES)
    loader = torch.utils.data.DataLoader(data, batch_size=25, collate_fn=collate_captions)
    theirs = zeroshot_retrieval.evaluate(
        exported.model, loader, exported.tokenizer, "cpu", amp=False, recall_k_list=[1, 5]
    )
    assert len(set(y)) == len(y)
    ours = model[-1].retrieval_report(model[0].transform(X), y, ks=(1, 5))
    for k in (1, 5):
        assert theirs[f"image_retrieval_recall@{k}"] == pytest.approx(ours["text_to_image"][k])
        assert theirs[f"text_retrieval_recall@{k}"] == pytest.approx(ours["image_to_text"][k])
    assert theirs["text_retrieval_recall@5"] > 0.1


class TestOpenClip:
    @pytest.mark.sampled(4)
    @pytest.mark.parametrize(
        "options",
        [{}, {"crop": "pad", "pooling": "gem"}, {"views": 4}, {"dtype": "bfloat16"}],
    )
    def test_pixels_and_embeddings_equal_encoder(self, options, captioned_images, text_encoder):
        encoder = TimmImageEncoder(engine="torch", cache=None, **options)
        # Processors without instructions for bfloat16 need a second per image.
        X, y = captioned_images.images[:4], captioned_images.captions[:4]
        aligner = KernelAligner(image_encoder=encoder, text_encoder=text_encoder).fit(X, y)
        exported = as_open_clip(aligner)
        pixels = [exported.transform(image) for image in X]
        network = encoder._get_network()
        prepared = torch.stack([encoder._prepare_item(network.prepare, image) for image in X])
        module = encoder._make_module(network)
        expected = module.normalize(prepared.flatten(0, 1) if encoder.views > 1 else prepared)
        torch.testing.assert_close(
            torch.stack(pixels).reshape(expected.shape),
            expected,
            rtol=0,
            atol=0,
            check_stride=False,
        )
        embeddings = exported.model.encode_image(pixels)
        np.testing.assert_allclose(embeddings, aligner.transform(X), atol=1e-5)
        np.testing.assert_array_equal(
            exported.model.encode_text(exported.tokenizer(y)), aligner.transform_text(y)
        )
        assert exported.model.logit_scale.exp().item() == pytest.approx(aligner.logit_scale_)

    def test_clip_aligner_equals_open_clip(self, tmp_path):
        import open_clip
        from PIL import Image

        save_clip(tmp_path)
        name = f"local-dir:{tmp_path}"
        theirs, transform = open_clip.create_model_from_pretrained(name)
        exported = as_open_clip(CLIPAligner(str(tmp_path)))
        images = [Image.fromarray(pixels) for pixels in IMAGES]
        with torch.no_grad():
            image = theirs.encode_image(
                torch.stack([transform(image) for image in images]), normalize=True
            )
            text = theirs.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)
        ours = exported.model.encode_image([exported.transform(image) for image in images])
        torch.testing.assert_close(ours, image, atol=2e-3, rtol=0)
        ours = exported.model.encode_text(exported.tokenizer(TEXTS))
        torch.testing.assert_close(ours, text, atol=1e-5, rtol=0)
        assert exported.model.logit_scale.item() == pytest.approx(theirs.logit_scale.item())

    def test_any_text_is_restored_from_tokens(self):
        from sklearn_ape.aligners._export import _decode, _tokenize

        texts = ["a", "naïve 猫 🐈", "x" * 500, "a\0b"]
        assert [_decode(row) for row in _tokenize(texts).numpy()] == texts
        assert _tokenize("a").shape == (1, 1)

    def test_transform_can_be_pickled(self, model, captioned_images):
        transform = as_open_clip(model).transform
        restored = pickle.loads(pickle.dumps(transform))
        image = captioned_images.images[0]
        assert torch.equal(restored(image), transform(image))

    def test_aligners_of_features_raise(self, concepts, image_encoder, captioned_images):
        aligner = KernelAligner().fit(concepts.image, concepts.text)
        with pytest.raises(ValueError, match="without an image encoder"):
            as_open_clip(aligner)
        with pytest.raises(ValueError, match="features of texts"):
            as_open_clip(make_pipeline(image_encoder, aligner))
        with pytest.raises(TypeError, match="not SimpleNamespace"):
            as_open_clip(SimpleNamespace())

    def test_unused_encoders_are_not_exported(
        self, features, image_encoder, text_encoder, captioned_images
    ):
        """An aligner that was fitted on features rejects texts, although it has an encoder."""
        aligner = KernelAligner(image_encoder=image_encoder, text_encoder=text_encoder)
        aligner.fit(captioned_images.images[:20], features.text[:20])
        with pytest.raises(ValueError, match="fitted on features of texts"):
            as_open_clip(aligner)
        aligner = KernelAligner(text_encoder=text_encoder)
        aligner.fit(features.image[:20], captioned_images.captions[:20])
        with pytest.raises(ValueError, match="without an image encoder"):
            as_open_clip(aligner.set_params(image_encoder=image_encoder))
