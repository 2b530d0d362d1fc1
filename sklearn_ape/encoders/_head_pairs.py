"""Pairs of a feature and texts that a network's own classification head gives for nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone

from ..persistence import SerializableMixin
from ..persistence.mixins import Record
from ..utils.sklearn_compat import unfreeze
from ..utils.torch_state import default_state
from ._timm import TimmImageEncoder
from ._transformers import TransformersImageEncoder
from .resolve import resolve_encoder
from .weights import pretrained

_SYNSET = re.compile(r"n\d{8}")
_NO_NAME = re.compile(r"(LABEL_\d+)?")


@dataclass(frozen=True, eq=False, repr=False)
class HeadPairs(SerializableMixin):
    """Weight vectors of a classification head and texts of its classes.

    A linear head scores a class highest for features that point along its weight vector, so the
    vector stands for an image of the class that nobody had to take.

    Parameters
    ----------
    weights : ndarray of shape (n_classes, n_features)
        Rows of the head's weight matrix, in the space of the image features.
    texts : list of list of str, or ndarray of shape (n_texts, n_text_features)
        The texts of every class; or features of texts.
    owners : ndarray of shape (n_texts,) or None, default=None
        With features of texts: the class of each, an integer below n_classes. None says that
        there is one row a class.

    See Also
    --------
    classifier_head_pairs : Makes them from an encoder.

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

    def _to_record(self) -> Record:
        params = {"weights": np.asarray(self.weights), "texts": self.texts, "owners": self.owners}
        return Record(params, None)

    @classmethod
    def _from_record(cls, params: Any, state: Any, settings: Any) -> HeadPairs:
        weights, texts = params.get("weights"), params.get("texts")
        are_arrays = isinstance(weights, np.ndarray) and isinstance(texts, list | np.ndarray)
        if state is not None or params.keys() != {"weights", "texts", "owners"} or not are_arrays:
            raise ValueError("HeadPairs must have weights, texts and owners.")
        return cls(**params)

    def __repr__(self) -> str:
        # Short, since it is shown as a parameter of estimators.
        is_array = isinstance(self.texts, np.ndarray)
        n_texts = len(self.texts) if is_array else sum(map(len, self.texts))
        n_classes, n_features = np.shape(self.weights)
        return f"HeadPairs({n_classes} classes, {n_features} features, {n_texts} texts)"


@default_state()
def classifier_head_pairs(
    encoder: Any, *, synonyms: bool = True, definitions: bool = True
) -> HeadPairs:
    """Return the weight vectors of an image encoder's own classes, and texts of them.

    Parameters
    ----------
    encoder : TimmImageEncoder, TransformersImageEncoder or str
        An encoder whose network has a linear classification head on the features that the encoder
        gives, and whose classes have names. With ``pooling="gem"`` the head must be on their mean:
        a channel has the same meaning in both. A str is the name of an encoder, as in
        `APEAligner`.
    synonyms : bool, default=True
        Whether a class's further names are among its texts. A class name such as
        ``"tench, Tinca tinca"`` is a list of names.
    definitions : bool, default=True
        Whether WordNet's definition of a class is, where timm knows it (classes of ImageNet).

    Returns
    -------
    pairs : HeadPairs
        ``weights`` of shape (n_classes, n_features), float32, and ``texts``: for every class its
        name, its synonyms and its definition, in this order and without repeats.

    Raises
    ------
    ValueError
        When the network has no classification head, the head does not take the features that the
        encoder gives, or the classes have no names.

    See Also
    --------
    HeadPairs : What is returned, and what aligners take as ``head_pairs``.

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
        encoder = resolve_encoder(encoder, "image", "encoder")
    inner = unfreeze(encoder)
    if isinstance(inner, TimmImageEncoder):
        inner._check_parameters()
        head, names = _timm_head(inner), inner.class_names
    elif isinstance(inner, TransformersImageEncoder):
        inner._check_parameters()
        head, names = _transformers_head(inner)
    else:
        raise ValueError(
            f"{type(inner).__name__} has no classification head that is known: pass a "
            "TimmImageEncoder or a TransformersImageEncoder whose network was trained to "
            "classify, or HeadPairs(weights, texts) of your own."
        )
    weights = _checked_weights(head, inner)
    if len(names) != len(weights):
        raise ValueError(
            f"The head of {inner.model_name!r} has {len(weights)} classes, and {len(names)} "
            "names are known: pass HeadPairs(weights, texts) of your own."
        )
    texts = [
        list(dict.fromkeys(_texts(name, definition, synonyms, definitions)))
        for name, definition in _described(names)
    ]
    return HeadPairs(weights, texts)


class _Head(NamedTuple):
    """A network's last layer, the features it should take and the logits it gives."""

    layer: Any
    features: torch.Tensor
    logits: torch.Tensor


def _timm_head(encoder: TimmImageEncoder) -> _Head:
    network = encoder._network()
    layer = network.model.get_classifier()
    if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
        what = "several heads" if isinstance(layer, tuple) else "no linear classification head"
        raise ValueError(f"{encoder.model_name!r} has {what}: it gives no pairs.")
    # Other pooling than the network's own gives other features; this one's channels are the same.
    pooling = "mean" if encoder.pooling == "gem" else encoder.pooling
    plain = clone(encoder).set_params(pooling=pooling, views=1)
    blank = [plain._prepare(network.prepare, plain._blank())]
    with torch.inference_mode():
        features = plain._forward(network, blank)
        logits = clone(plain).set_params(output="logits")._forward(network, blank)
    return _Head(layer, features, logits)


def _transformers_head(encoder: TransformersImageEncoder) -> tuple[_Head, list[str]]:
    """Return the head and the names of its classes; the encoder itself loads no head."""
    from transformers import AutoModelForImageClassification

    network = encoder._network()
    nothing = f"{encoder.model_name!r} has no linear classification head: it gives no pairs."
    architectures = getattr(network.model.config, "architectures", None) or []
    if not any("ForImageClassification" in name for name in architectures):
        raise ValueError(nothing)
    # A head that the checkpoint lacks is drawn at random: not from the user's generator.
    with torch.random.fork_rng(devices=[]):
        model, loaded = pretrained(
            AutoModelForImageClassification,
            encoder.model_name,
            encoder.revision,
            output_loading_info=True,
        )
    n_classes = model.config.num_labels
    linear = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer.out_features == n_classes
    ]
    missing = any(name.startswith(linear[-1][0]) for name in loaded["missing_keys"] if linear)
    if not linear or missing:
        raise ValueError(nothing)
    model = model.eval().to(network.device)
    blank = [encoder._prepare(network.prepare, encoder._blank())]
    with torch.inference_mode():
        features = encoder._forward(network, blank)
        logits = model(pixel_values=torch.stack(blank).to(network.device)).logits
    names = [str(model.config.id2label.get(number, "")) for number in range(n_classes)]
    return _Head(linear[-1][1], features, logits), names


def _checked_weights(head: _Head, encoder: Any) -> np.ndarray:
    """Return the head's weight matrix, once it is seen to take the encoder's features."""
    weights = head.layer.weight.detach().float().flatten(1)
    if head.features.shape[1] != weights.shape[1]:
        raise ValueError(
            f"{type(encoder).__name__} gives {head.features.shape[1]} features, and the "
            f"classification head of {encoder.model_name!r} takes {weights.shape[1]}: use the "
            "network's own pooling (pooling='auto') and its features, not its logits."
        )
    logits = head.features.float() @ weights.T
    if head.layer.bias is not None:
        logits += head.layer.bias
    # An equal width does not make them the same features: the mean over patches is none of the
    # class token.
    if not torch.allclose(logits, head.logits.float(), rtol=1e-2, atol=1e-2):
        raise ValueError(
            f"The classification head of {encoder.model_name!r} takes other features than those "
            f"of {type(encoder).__name__} with pooling={encoder.pooling!r}: use pooling='auto'."
        )
    return weights.cpu().numpy()


def _described(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the comma list of every class's names and its definition ("" if not known)."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": len(names)})
    info = ImageNetInfo(subset or "imagenet-1k")
    for number, name in enumerate(names):
        if _NO_NAME.fullmatch(name.strip()):
            raise ValueError(
                f"Class {number} is called {name!r}, which is no name: pass "
                "HeadPairs(weights, texts) of your own."
            )
        synset = name
        if subset and info.index_to_description(number) == name:
            synset = info.index_to_label_name(number)
        if not _SYNSET.fullmatch(synset):
            yield name, ""
            continue
        lemmas = info.label_name_to_description(synset)
        yield lemmas, info.label_name_to_description(synset, detailed=True)[len(lemmas) + 2 :]


def _texts(name: str, definition: str, synonyms: bool, definitions: bool) -> Iterator[str]:
    parts = [part.strip() for part in name.split(",") if part.strip()]
    yield from parts if synonyms else parts[:1]
    if definitions and definition:
        yield definition
