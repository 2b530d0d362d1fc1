"""Image-text pairs from a pretrained classification head."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import clone

from ..devices import default_state
from ..persistence.mixins import SerializableMixin
from ..utils.sklearn_compat import unfreeze
from ._timm import TimmImageEncoder
from ._transformers import TransformersImageEncoder
from .weights import load_from_source

_SYNSET = re.compile(r"n\d{8}")
_NO_NAME = re.compile(r"(LABEL_\d+)?")


@dataclass(frozen=True, eq=False, repr=False)
class HeadPairs(SerializableMixin):
    """Weight vectors of a classification head, paired with texts of its classes.

    The logit of a class is highest for features in the direction of its weight vector, so aligners
    can use the weight vector like the features of an image of the class.

    Parameters
    ----------
    weights : ndarray of shape (n_classes, n_features)
        Weight matrix of the head, in the space of the image features.
    texts : list of list of str, or ndarray of shape (n_texts, n_text_features)
        List of texts per class, or features of texts.
    owners : ndarray of shape (n_texts,) or None, default=None
        Class number of each row, if ``texts`` are features. None means one row per class, in the
        order of the classes.

    See Also
    --------
    classifier_head_pairs : Create pairs from an encoder.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.encoders import HeadPairs
    >>> HeadPairs(np.eye(2, 5), [["cat", "house cat"], ["dog"]])
    HeadPairs(2 classes, 5 features, 3 texts)
    """

    weights: np.ndarray
    texts: list[list[str]] | np.ndarray
    owners: np.ndarray | None = None

    def _to_record(self) -> tuple[dict[str, Any], None]:
        params = {"weights": np.asarray(self.weights), "texts": self.texts, "owners": self.owners}
        return params, None

    @classmethod
    def _from_record(cls, params: Any, state: Any, settings: Any) -> HeadPairs:
        weights, texts = params.get("weights"), params.get("texts")
        are_arrays = isinstance(weights, np.ndarray) and isinstance(texts, list | np.ndarray)
        if state is not None or params.keys() != {"weights", "texts", "owners"} or not are_arrays:
            raise ValueError(
                "HeadPairs must have weights, texts and owners. Save the model again."
            )
        return cls(**params)

    def __repr__(self) -> str:
        # Short, because estimators show it as the value of a parameter.
        is_array = isinstance(self.texts, np.ndarray)
        n_texts = len(self.texts) if is_array else sum(map(len, self.texts))
        n_classes, n_features = np.shape(self.weights)
        return f"HeadPairs({n_classes} classes, {n_features} features, {n_texts} texts)"


@default_state()
def classifier_head_pairs(
    encoder: Any, *, synonyms: bool = True, definitions: bool = True
) -> HeadPairs:
    """Return pairs of weight vectors and class texts from an image encoder's classification head.

    Parameters
    ----------
    encoder : TimmImageEncoder, TransformersImageEncoder or str
        Encoder, or its name as in `APEAligner`. Its network must have a linear classification
        head on the encoder's features (or their mean, with ``pooling="gem"``).
    synonyms : bool, default=True
        Whether all names of a class such as ``"tench, Tinca tinca"`` are included, instead of only
        the first.
    definitions : bool, default=True
        Whether WordNet's definition of a class is included, if it is a class of ImageNet.

    Returns
    -------
    pairs : HeadPairs
        Pairs with float32 ``weights`` of shape (n_classes, n_features). The ``texts`` of a class
        are its name, synonyms and definition, in this order and without duplicates.

    Raises
    ------
    ValueError
        If the network has no classification head, the input of the head is not the encoder's
        features, or the classes have no names.

    See Also
    --------
    HeadPairs : Type of the result, and of the parameter ``head_pairs`` of aligners.

    Examples
    --------
    >>> from sklearn_ape.encoders import TimmImageEncoder, classifier_head_pairs
    >>> pairs = classifier_head_pairs(TimmImageEncoder("efficientnet_lite0"))
    >>> pairs.weights.shape
    (1000, 1280)
    >>> pairs.texts[1]
    ['goldfish', 'Carassius auratus', 'small golden or ... aquarium fishes']
    """
    if isinstance(encoder, str):
        from .resolve import resolve_encoder

        encoder = resolve_encoder(encoder, "image", "encoder")
    inner = unfreeze(encoder)
    if isinstance(inner, TimmImageEncoder):
        inner._check_parameters()
        weights, names = _read_timm_head(inner), inner.class_names
    elif isinstance(inner, TransformersImageEncoder):
        inner._check_parameters()
        weights, names = _read_transformers_head(inner)
    else:
        raise ValueError(
            f"encoder of type {type(inner).__name__} has no supported classification head. "
            "Pass a TimmImageEncoder or a TransformersImageEncoder with a network for "
            "classification, or use HeadPairs(weights, texts)."
        )
    if len(names) != len(weights):
        raise ValueError(
            f"encoder has a classification head of {len(weights)} classes, but {len(names)} class "
            "names. Use HeadPairs(weights, texts) instead."
        )
    texts = []
    for name, definition in _find_definitions(names):
        parts = [part.strip() for part in name.split(",") if part.strip()]
        parts = parts if synonyms else parts[:1]
        if definitions and definition:
            parts.append(definition)
        texts.append(list(dict.fromkeys(parts)))
    return HeadPairs(weights, texts)


def _read_timm_head(encoder: TimmImageEncoder) -> np.ndarray:
    network = encoder._get_network()
    layer = network.model.get_classifier()
    if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
        heads = "several heads" if isinstance(layer, tuple) else "no linear classification head"
        raise ValueError(
            f"model_name={encoder.model_name!r} is a network with {heads}. Use a network with one."
        )
    # GeM features are not the input of the head, but their channels have the same meaning as the
    # channels of the mean, which is compared with the logits below.
    pooling = "mean" if encoder.pooling == "gem" else encoder.pooling
    plain = clone(encoder).set_params(pooling=pooling, views=1)
    blank = [plain._prepare_item(network.prepare, plain._make_blank())]
    with torch.inference_mode():
        features = plain._forward(network, blank)
        logits = clone(plain).set_params(output="logits")._forward(network, blank)
    return _extract_weights(encoder, layer, features, logits)


def _read_transformers_head(encoder: TransformersImageEncoder) -> tuple[np.ndarray, list[str]]:
    """Load a network again, with its head, and return the weight matrix and the class names."""
    from transformers import AutoModelForImageClassification

    network = encoder._get_network()
    no_head = (
        f"model_name={encoder.model_name!r} is a network with no linear classification head. Use "
        "a network with one."
    )
    architectures = getattr(network.model.config, "architectures", None) or []
    if not any("ForImageClassification" in name for name in architectures):
        raise ValueError(no_head)
    # A head that the checkpoint lacks is initialized at random, which must not change the state of
    # the user's generator.
    with torch.random.fork_rng(devices=[]):
        model, loaded = load_from_source(
            AutoModelForImageClassification.from_pretrained,
            encoder.model_name,
            encoder.revision,
            dtype=torch.float32,
            output_loading_info=True,
        )
    n_classes = model.config.num_labels
    linear = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer.out_features == n_classes
    ]
    name, layer = linear[-1] if linear else ("", None)
    if layer is None or any(key.startswith(name) for key in loaded["missing_keys"]):
        raise ValueError(no_head)
    model = model.eval().to(network.device)
    blank = [encoder._prepare_item(network.prepare, encoder._make_blank())]
    with torch.inference_mode():
        features = encoder._forward(network, blank)
        logits = model(pixel_values=torch.stack(blank).to(network.device)).logits
    names = [str(model.config.id2label.get(number, "")) for number in range(n_classes)]
    return _extract_weights(encoder, layer, features, logits), names


def _extract_weights(
    encoder: Any, layer: Any, features: torch.Tensor, logits: torch.Tensor
) -> np.ndarray:
    """Return the weight matrix of a head; raise ValueError unless it uses the encoder's features.

    `features` of the encoder and `logits` of the network are those of the same image.
    """
    weights = layer.weight.detach().float().flatten(1)
    if features.shape[1] != weights.shape[1]:
        raise ValueError(
            f"{type(encoder).__name__} returns {features.shape[1]} features, but the "
            f"classification head of {encoder.model_name!r} takes {weights.shape[1]}. Pass "
            "another pooling, such as 'auto' or 'cls+mean', and features instead of logits."
        )
    computed = features.float() @ weights.T
    if layer.bias is not None:
        computed += layer.bias
    # Features of another kind may have the same width, such as the mean over patches and the class
    # token.
    if not torch.allclose(computed, logits.float(), rtol=1e-2, atol=1e-2):
        raise ValueError(
            f"pooling={encoder.pooling!r} of {type(encoder).__name__} returns features that are "
            f"not the input of the classification head of {encoder.model_name!r}. Pass "
            "another pooling, such as 'auto' or 'mean'."
        )
    return weights.cpu().numpy()


def _find_definitions(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the names of every class, separated by commas, and its definition or ""."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": len(names)})
    info = ImageNetInfo(subset or "imagenet-1k")
    for number, name in enumerate(names):
        if _NO_NAME.fullmatch(name.strip()):
            raise ValueError(
                f"Class {number} of the classification head has no name (got {name!r}). Use "
                "HeadPairs(weights, texts) with your own texts."
            )
        synset = name
        if subset and info.index_to_description(number) == name:
            synset = info.index_to_label_name(number)
        if not _SYNSET.fullmatch(synset):
            yield name, ""
            continue
        lemmas = info.label_name_to_description(synset)
        yield lemmas, info.label_name_to_description(synset, detailed=True)[len(lemmas) + 2 :]
