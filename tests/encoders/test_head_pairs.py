"""Pairs of weight vectors and class texts from classification heads."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator

from sklearn_ape.encoders import (
    HeadPairs,
    OpenCLIPImageEncoder,
    TimmImageEncoder,
    TransformersImageEncoder,
    classifier_head_pairs,
)

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

NAMES = ["cat, house cat", "dog", "ripe apple"]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def randomized(model):
    for parameter in model.parameters():  # initial zeros would hide errors
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def timm_folder(folder, names=NAMES, architecture="test_vit", **options):
    with torch.random.fork_rng():
        model = randomized(
            timm.create_model(architecture, pretrained=False, num_classes=len(names), **options)
        )
    config = {"label_names": names} if names else {}
    timm.models.save_for_hf(model, str(folder), safe_serialization=True, model_config=config)
    return str(folder), model


def transformers_folder(folder, kind, names=NAMES, with_head=True):
    t = transformers
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    config, headed, bare = {
        "vit": lambda: (
            t.ViTConfig(**SMALL, intermediate_size=24, **labels),
            t.ViTForImageClassification,
            t.ViTModel,
        ),
        "dinov2": lambda: (
            t.Dinov2Config(**SMALL, **labels),
            t.Dinov2ForImageClassification,
            t.Dinov2Model,
        ),
        "resnet": lambda: (
            t.ResNetConfig(
                embedding_size=8,
                hidden_sizes=[8, 16],
                depths=[1, 1],
                layer_type="basic",
                **labels,
            ),
            t.ResNetForImageClassification,
            t.ResNetModel,
        ),
    }[kind]()
    with torch.random.fork_rng():
        model = randomized((headed if with_head else bare)(config))
    model.save_pretrained(folder)
    t.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder), model


def test_imagenet_head_gives_weights_and_texts(image_encoder, captioned_images):
    """Weights give the encoder's logits, and texts have the order of its classes."""
    pairs = classifier_head_pairs(image_encoder)
    assert pairs.weights.shape == (1000, 1280)
    assert pairs.weights.dtype == np.float32
    features = image_encoder.transform(captioned_images.images[:5])
    logits = TimmImageEncoder(output="logits", cache=None).transform(captioned_images.images[:5])
    bias = image_encoder._get_network().model.get_classifier().bias.numpy()
    np.testing.assert_allclose(features @ pairs.weights.T + bias, logits, atol=1e-3)
    assert pairs.texts[0] == [
        "tench",
        "Tinca tinca",
        "freshwater dace-like game fish of Europe and western Asia noted for ability to survive "
        "outside water",
    ]
    # The two classes with the name crane have different definitions.
    assert [texts[0] for texts in (pairs.texts[134], pairs.texts[517])] == ["crane", "crane"]
    assert "bird" in pairs.texts[134][-1]
    assert "lifts" in pairs.texts[517][-1]


@pytest.mark.exhaustive
def test_gem_and_views_have_the_pairs_of_mean(image_encoder):
    """Poolings with the channels of the mean have the same pairs."""
    expected = classifier_head_pairs(image_encoder)
    for parameters in ({"pooling": "gem"}, {"views": 2}, {"pooling": "gem", "views": 4}):
        pairs = classifier_head_pairs(TimmImageEncoder(**parameters))
        np.testing.assert_array_equal(pairs.weights, expected.weights)
        assert pairs.texts == expected.texts


def test_synonyms_and_definitions_are_optional(image_encoder):
    def of_goldfish(**options):
        return classifier_head_pairs(image_encoder, **options).texts[1]

    assert of_goldfish(synonyms=False, definitions=False) == ["goldfish"]
    assert of_goldfish(definitions=False) == ["goldfish", "Carassius auratus"]
    assert of_goldfish(synonyms=False)[1].startswith("small golden")


def test_timm_folder_uses_its_class_names(tmp_path):
    """The texts are the class names of the folder, without definitions."""
    folder, model = timm_folder(tmp_path)
    pairs = classifier_head_pairs(FrozenEstimator(TimmImageEncoder(folder)))
    np.testing.assert_array_equal(pairs.weights, model.head.weight.detach().numpy())
    assert pairs.texts == [["cat", "house cat"], ["dog"], ["ripe apple"]]


def test_wordnet_ids_become_words(tmp_path):
    """Classes of larger ImageNets are named by WordNet ids."""
    folder, _ = timm_folder(tmp_path, names=["n01443537", "n02084071"])
    assert classifier_head_pairs(TimmImageEncoder(folder)).texts[0] == [
        "goldfish",
        "Carassius auratus",
        "small golden or orange-red freshwater fishes of Eurasia used as pond or aquarium fishes",
    ]


@pytest.mark.parametrize(
    ("kind", "pooling"), [("vit", "auto"), ("dinov2", "cls+mean"), ("resnet", "auto")]
)
def test_transformers_head_gives_pairs(tmp_path, kind, pooling):
    """The head is loaded separately and matches the encoder's features."""
    folder, model = transformers_folder(tmp_path, kind)
    before = torch.get_rng_state()
    pairs = classifier_head_pairs(TransformersImageEncoder(folder, pooling=pooling))
    assert torch.equal(before, torch.get_rng_state())
    layer = model.classifier if kind != "resnet" else model.classifier[-1]
    np.testing.assert_array_equal(pairs.weights, layer.weight.detach().numpy())
    assert pairs.texts == [["cat", "house cat"], ["dog"], ["ripe apple"]]


def test_head_in_half_precision(tmp_path):
    """The weights are those of the file, in float32."""
    folder, model = transformers_folder(tmp_path, "resnet")
    model.half().save_pretrained(folder)
    weights = classifier_head_pairs(TransformersImageEncoder(folder, cache=None)).weights
    np.testing.assert_array_equal(weights, model.classifier[-1].weight.detach().float().numpy())


class TestRefused:
    def test_features_not_of_the_head_raise(self, tmp_path, image_encoder):
        """Features of another width or meaning than the head's input raise an error."""
        with pytest.raises(ValueError, match=r"returns 1000 features, .* takes 1280"):
            classifier_head_pairs(TimmImageEncoder(output="logits"))
        folder, _ = timm_folder(tmp_path / "timm")
        with pytest.raises(ValueError, match=r"pooling='mean' .* features that are not"):
            classifier_head_pairs(TimmImageEncoder(folder, pooling="mean"))
        # The head expects the mean after a layer norm, which gem omits.
        folder, _ = timm_folder(tmp_path / "convnext", architecture="test_convnext")
        assert len(classifier_head_pairs(TimmImageEncoder(folder)).weights) == len(NAMES)
        with pytest.raises(ValueError, match=r"pooling='gem' .* features that are not"):
            classifier_head_pairs(TimmImageEncoder(folder, pooling="gem"))
        folder, _ = transformers_folder(tmp_path / "vit", "vit")
        with pytest.raises(ValueError, match=r"pooling='mean' .* features that are not"):
            classifier_head_pairs(TransformersImageEncoder(folder, pooling="mean"))
        folder, _ = transformers_folder(tmp_path / "dinov2", "dinov2")
        with pytest.raises(ValueError, match=r"16 features, .* another pooling, .*'cls\+mean'"):
            classifier_head_pairs(TransformersImageEncoder(folder))

    def test_network_without_head_raises(self, tmp_path):
        folder, _ = timm_folder(tmp_path / "timm", names=[])
        with pytest.raises(ValueError, match="with no linear classification head"):
            classifier_head_pairs(TimmImageEncoder(folder))
        folder, _ = transformers_folder(tmp_path / "vit", "vit", with_head=False)
        with pytest.raises(ValueError, match="with no linear classification head"):
            classifier_head_pairs(TransformersImageEncoder(folder))

    @pytest.mark.parametrize("encoder", [OpenCLIPImageEncoder(), None])
    def test_unsupported_encoder_raises(self, encoder):
        with pytest.raises(
            ValueError, match=f"{type(encoder).__name__} has no supported classification"
        ):
            classifier_head_pairs(encoder)

    def test_unnamed_classes_raise(self, tmp_path):
        folder, _ = transformers_folder(
            tmp_path / "vit", "vit", names=["cat", "LABEL_1", "LABEL_2"]
        )
        with pytest.raises(ValueError, match=r"Class 1 .* has no name .got 'LABEL_1'"):
            classifier_head_pairs(TransformersImageEncoder(folder))


def test_head_pairs_copy_pickle_and_repr():
    """The repr is short for a thousand classes."""
    pairs = HeadPairs(np.eye(2, 5), [["cat", "house cat"], ["dog"]])
    for copied in (copy.deepcopy(pairs), pickle.loads(pickle.dumps(pairs))):
        np.testing.assert_array_equal(copied.weights, pairs.weights)
        assert copied.texts == pairs.texts
    assert repr(pairs) == "HeadPairs(2 classes, 5 features, 3 texts)"
    of_features = HeadPairs(np.eye(2, 5), np.ones((4, 3)), np.array([0, 0, 1, 1]))
    assert repr(of_features) == "HeadPairs(2 classes, 5 features, 4 texts)"
