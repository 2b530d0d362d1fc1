"""Image and text encoders of transformers."""

from __future__ import annotations

from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import gen_batches
from torch import nn

from ..features import FeatureCache
from .base import _check_choice
from .image_encoder import ImageEncoder
from .text_encoder import TOKENIZING, TextEncoder, TextPreparation, declared_preparation
from .weights import (
    Network,
    check_source,
    fingerprint_of,
    library_version,
    pretrained,
    read_side_file,
)

_LONGEST = 512


_TEXTS_MEASURED_AT_ONCE = 4096


_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class _Tokenizer(NamedTuple):
    """A tokenizer and what the model's sentence-transformers files, if any, say of it."""

    tokenize: Any
    max_length: int
    pooling: str
    normalize: bool
    preparation: TextPreparation = TextPreparation()


class TransformersTextEncoder(TextEncoder):
    """A frozen network of the `transformers` library that turns texts into features.

    Parameters
    ----------
    model_name : str, default="all-MiniLM-L6-v2"
        A short name of `list_encoders`, whose weights come from a Python package; a folder that
        ``save_pretrained`` wrote (with its tokenizer); or a hub name.
    revision : str or None, default=None
        Branch, tag or commit of a hub model.
    pooling : {"auto", "mean", "cls", "cls+mean", "last"}, default="auto"
        How the hidden states of the words become one vector. ``"auto"`` does what the model's
        sentence-transformers files say, takes the text embedding of a two-tower model (CLIP,
        SigLIP), and is the mean otherwise. ``"last"`` is for causal language models.
    normalize : {"auto"} or bool, default="auto"
        Scale features to length 1. ``"auto"`` does what the model's files say.
    max_length : int or None, default=None
        Tokens of a text that are read; the rest is cut. None takes the model's own limit.
    batch_size : {"auto"} or int, default="auto"
        Texts in one pass of the network. ``"auto"`` is what the engine is fastest with.
    engine : {"auto", "torch", "onnx", "openvino"}, default="auto"
        What computes the network; see `TimmImageEncoder`.
    device : {"auto"}, str or torch.device, default="auto"
        ``"auto"`` takes a GPU when there is one.
    dtype : {"float32", "bfloat16", "float16"}, default="float32"
        Precision of the network by autocast. Features are float32 in any case.
    cache : {"memory"}, str, path-like, FeatureCache or None, default="memory"
        Where features are kept, by content: in this process, in a folder, or nowhere.
    on_error : {"raise", "nan"}, default="raise"
        What an empty or missing text does: stop the work, or become a row of NaN.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    errors_ : dict of {int: str}
        Bad rows of the last `transform` and what is wrong with them.

    See Also
    --------
    OpenCLIPTextEncoder : Text towers of CLIP models.
    TransformersImageEncoder : Image encoders of the same library.

    Notes
    -----
    Texts are prepared as the model's files say: lower-cased for SigLIP and SigLIP 2, which were
    trained on lower-cased texts, and where a sentence-transformers model has ``do_lower_case``;
    with the default prompt of a sentence-transformers model in front. A model with prompts of
    which none is the default reads texts without one, and a warning names the prompts.

    References
    ----------
    .. [1] N. Reimers and I. Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese
       BERT-Networks", EMNLP 2019.
    .. [2] W. Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression
       of Pre-Trained Transformers", NeurIPS 2020.

    Examples
    --------
    >>> from sklearn_ape.encoders import TransformersTextEncoder
    >>> encoder = TransformersTextEncoder("all-MiniLM-L6-v2")
    >>> features = encoder.transform(["a cat", "a kitten", "a rocket"])
    >>> features.shape
    (3, 384)
    >>> bool(features[0] @ features[1] > features[0] @ features[2])
    True
    """

    n_jobs = None  # tokenizers are parallel by themselves

    def __init__(
        self,
        model_name: str = "all-MiniLM-L6-v2",
        *,
        revision: str | None = None,
        pooling: str = "auto",
        normalize: str | bool = "auto",
        max_length: int | None = None,
        batch_size: int | str = "auto",
        engine: str = "auto",
        device: str | torch.device | None = "auto",
        dtype: str = "float32",
        cache: str | PathLike[str] | FeatureCache | None = "memory",
        on_error: str = "raise",
        verbose: int = 0,
    ) -> None:
        self.model_name = model_name
        self.revision = revision
        self.pooling = pooling
        self.normalize = normalize
        self.max_length = max_length
        self.batch_size = batch_size
        self.engine = engine
        self.device = device
        self.dtype = dtype
        self.cache = cache
        self.on_error = on_error
        self.verbose = verbose

    def _check_parameters(self) -> None:
        super()._check_parameters()
        _check_choice("pooling", self.pooling, ("auto", "mean", "cls", "cls+mean", "last"))
        if self.normalize not in ("auto", True, False):
            raise ValueError(f"normalize must be 'auto', True or False, not {self.normalize!r}.")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {self.max_length!r}.")
        check_source(self.model_name, self)

    def _weights_key(self) -> str:
        return f"{self.model_name}@{self.revision}"

    def _known_weights(self) -> str | None:
        return fingerprint_of(self.model_name, self.revision)

    def _identity(self) -> dict[str, Any]:
        weights = self._known_weights()
        if weights is None:
            self._network()
            weights = self._known_weights() or self._weights_key()
        return {
            "weights": weights,
            "library": library_version("transformers"),
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_length": self.max_length,
            **self._preparation(weights).identity(),
        }

    def _load(self, device: torch.device) -> Network:
        from transformers import AutoModel, AutoTokenizer

        tokenize = pretrained(AutoTokenizer, self.model_name, self.revision)
        model = pretrained(AutoModel, self.model_name, self.revision)
        if tokenize.pad_token is None:
            tokenize.pad_token = tokenize.eos_token
        # Padding on the right whatever the model generates with: "last" and "cls" count on it.
        tokenize.padding_side = "right"
        prepare = self._as_declared(tokenize, model)
        return Network(model.to(device), prepare, device)

    def _as_declared(self, tokenize: Any, model: Any) -> _Tokenizer:
        """Read pooling, normalisation and length from the sentence-transformers files."""
        modules = read_side_file(self.model_name, self.revision, "modules.json") or []
        kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
        pooling = "embedding" if hasattr(model, "get_text_features") else "mean"
        preparation = self._preparation(self._known_weights())
        if "Pooling" in kinds:
            file = f"{kinds['Pooling']}/config.json"
            config = read_side_file(self.model_name, self.revision, file) or {}
            pooling = _declared_pooling(config)
            if preparation.prompt and not config.get("include_prompt", True):
                pooling = f"{pooling} without the prompt"
        others = kinds.keys() - {"Transformer", "Pooling", "Normalize", "Dropout"}
        if others:
            pooling = f"{pooling} and {', '.join(sorted(others))}"
        longest = min(tokenize.model_max_length, _n_positions(model) or _LONGEST, _LONGEST)
        sentence = (
            read_side_file(self.model_name, self.revision, "sentence_bert_config.json") or {}
        )
        return _Tokenizer(
            tokenize,
            sentence.get("max_seq_length") or longest,
            pooling,
            "Normalize" in kinds,
            preparation,
        )

    def _preparation(self, weights: str | None) -> TextPreparation:
        return declared_preparation(self.model_name, self.revision, weights)

    def _module(self, network: Network) -> torch.nn.Module:
        declared: _Tokenizer = network.prepare
        pooling = declared.pooling if self.pooling == "auto" else self.pooling
        normalize = declared.normalize if self.normalize == "auto" else bool(self.normalize)
        n_positions = _n_positions(network.model)
        if n_positions is not None and (self.max_length or 0) > n_positions:
            raise ValueError(
                f"max_length={self.max_length}, but {self.model_name!r} has positions for "
                f"{n_positions} tokens. Pass no more than that."
            )
        return _TextFeatures(network.model, pooling, normalize)

    def _order(self, items: list[Any]) -> list[int]:
        declared: _Tokenizer = self._network().prepare
        if not getattr(declared.tokenize, "is_fast", False):
            return super()._order(items)
        # Texts of as many letters differ in tokens: batches by letters are an eighth padding.
        lengths: list[int] = []
        for rows in gen_batches(len(items), _TEXTS_MEASURED_AT_ONCE):
            texts = list(map(str, items[rows]))
            tokens = self._tokens(declared, texts, padding=False)["input_ids"]
            lengths += map(len, tokens)
        return sorted(
            range(len(items)), key=lambda place: (lengths[place], items[place]), reverse=True
        )

    def _tensors(self, network: Network, batch: list[Any]) -> tuple[torch.Tensor, ...]:
        # SigLIP reads the padding too, and always the same length of it.
        padding = "max_length" if _is_siglip(network.model) else True
        options = {"padding": padding, "return_attention_mask": True, "return_tensors": "pt"}
        tokens = self._tokens(network.prepare, batch, **options)
        return tuple(tokens[name] for name in _INPUTS if name in tokens)

    def _tokens(self, declared: _Tokenizer, texts: list[Any], **options: Any) -> Any:
        most = self.max_length or declared.max_length
        with TOKENIZING:
            texts = declared.preparation(texts)
            return declared.tokenize(texts, truncation=True, max_length=most, **options)


class _TextFeatures(torch.nn.Module):
    """A network of the transformers library, pooled and scaled."""

    def __init__(self, model: torch.nn.Module, pooling: str, normalize: bool) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.normalize = normalize

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Map tokens and masks (n, n_tokens), named by `_INPUTS`, to (n, n_features)."""
        tokens = dict(zip(_INPUTS, inputs, strict=False))
        mask = tokens["attention_mask"]
        if _is_siglip(self.model):
            del tokens["attention_mask"]
        model: Any = self.model
        if self.pooling == "embedding":
            embedding = model.get_text_features(**tokens)
            pooled = getattr(embedding, "pooler_output", embedding)
        else:
            tower = getattr(model, "text_model", model)
            encode = getattr(tower, "get_encoder", None) if _is_seq2seq(tower) else None
            last = (encode() if encode else tower)(**tokens).last_hidden_state
            pooled = _pool_tokens(last, mask, self.pooling)
        return nn.functional.normalize(pooled.float(), dim=-1) if self.normalize else pooled


def _n_positions(model: Any) -> int | None:
    """Count the positions that a model has learned, if it has learned any."""
    config = getattr(model.config, "text_config", None) or model.config
    return getattr(config, "max_position_embeddings", None)


def _is_siglip(model: Any) -> bool:
    return model.config.model_type.startswith("siglip")


def _is_seq2seq(model: Any) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def _declared_pooling(config: dict[str, Any]) -> str:
    """Translate a sentence-transformers pooling config, old form or new."""
    modes = config.get("pooling_mode") or [
        key.removeprefix("pooling_mode_")
        for key, chosen in config.items()
        if key.startswith("pooling_mode_") and chosen
    ]
    names = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}
    return "+".join(names.get(mode, mode) for mode in np.atleast_1d(modes))


def _pool_tokens(last: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool hidden states (n, tokens, width) over the tokens that are text."""
    if pooling not in ("mean", "cls", "cls+mean", "last"):
        raise ValueError(
            f"The model's own pooling, {pooling}, is not one of this encoder's: pass "
            "pooling='mean', 'cls', 'cls+mean' or 'last'."
        )
    weights = mask.unsqueeze(-1).to(last.dtype)
    mean = (last * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    if pooling == "mean":
        return mean
    if pooling == "last":
        return last[torch.arange(last.shape[0]), mask.sum(dim=1) - 1]
    return last[:, 0] if pooling == "cls" else torch.cat([last[:, 0], mean], dim=1)


class TransformersImageEncoder(ImageEncoder):
    """A frozen network of the `transformers` library that turns images into features.

    Parameters
    ----------
    model_name : str, default="facebook/dinov2-small"
        A folder that ``save_pretrained`` wrote (with its image processor) or a hub name.
    revision : str or None, default=None
        Branch, tag or commit of a hub model.
    pooling : {"auto", "mean", "cls", "cls+mean"}, default="auto"
        How the last hidden states become one vector. ``"auto"`` takes the image embedding of a
        two-tower model (CLIP, SigLIP), else the network's pooler if its weights are pretrained,
        else the class token, else the mean.
    crop : {"center", "pad"}, default="center"
        ``"center"`` is the network's own preprocessing. ``"pad"`` makes an image square on
        white first.
    batch_size : {"auto"} or int, default="auto"
        Images in one pass of the network. ``"auto"`` is what the engine is
        fastest with. On a GPU whose memory is too small, it is halved.
    engine : {"auto", "torch", "onnx", "openvino"}, default="auto"
        What computes the network. ``"auto"`` takes the fastest that is installed: OpenVINO or
        ONNX Runtime on a CPU, torch on a GPU. The network is exported once, kept beside the cache
        and compared with torch whenever it is loaded.
    device : {"auto"}, str or torch.device, default="auto"
        ``"auto"`` takes a GPU when there is one.
    dtype : {"float32", "bfloat16", "float16"}, default="float32"
        Precision of the network by autocast. Features are float32 in any case.
    n_jobs : int or None, default=None
        Threads that read and resize images and, with another engine than torch, compute the
        network. None is as many as torch uses, -1 one a core.
    cache : {"memory"}, str, path-like, FeatureCache or None, default="memory"
        Where features are kept, by content: in this process, in a folder, or nowhere.
    on_error : {"raise", "nan"}, default="raise"
        What an image that cannot be read does: stop the work, or become a row of NaN.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    errors_ : dict of {int: str}
        Bad rows of the last `transform` and what is wrong with them.

    See Also
    --------
    TimmImageEncoder : Takes the same kinds of images; see its notes.
    TransformersTextEncoder : The same library's encoders of texts.

    References
    ----------
    .. [1] T. Wolf et al., "Transformers: State-of-the-Art Natural Language Processing",
       EMNLP 2020.

    Examples
    --------
    >>> from sklearn_ape.encoders import TransformersImageEncoder
    >>> encoder = TransformersImageEncoder("facebook/dinov2-small", pooling="cls+mean")
    >>> encoder.get_params()["pooling"]
    'cls+mean'
    """

    def __init__(
        self,
        model_name: str = "facebook/dinov2-small",
        *,
        revision: str | None = None,
        pooling: str = "auto",
        crop: str = "center",
        batch_size: int | str = "auto",
        engine: str = "auto",
        device: str | torch.device | None = "auto",
        dtype: str = "float32",
        n_jobs: int | None = None,
        cache: str | PathLike[str] | FeatureCache | None = "memory",
        on_error: str = "raise",
        verbose: int = 0,
    ) -> None:
        self.model_name = model_name
        self.revision = revision
        self.pooling = pooling
        self.crop = crop
        self.batch_size = batch_size
        self.engine = engine
        self.device = device
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.cache = cache
        self.on_error = on_error
        self.verbose = verbose

    def _check_parameters(self) -> None:
        super()._check_parameters()
        _check_choice("pooling", self.pooling, ("auto", "mean", "cls", "cls+mean"))
        check_source(self.model_name, self)

    def _weights_key(self) -> str:
        return f"{self.model_name}@{self.revision}"

    def _known_weights(self) -> str | None:
        return fingerprint_of(self.model_name, self.revision)

    def _identity(self) -> dict[str, Any]:
        weights = self._known_weights()
        if weights is None:
            self._network()
            weights = self._known_weights() or self._weights_key()
        return {
            "weights": weights,
            "library": library_version("transformers"),
            "pooling": self.pooling,
            "crop": self.crop,
        }

    def _load(self, device: torch.device) -> Network:
        from transformers import AutoImageProcessor, AutoModel

        prepare = pretrained(AutoImageProcessor, self.model_name, self.revision)
        model, loaded = pretrained(
            AutoModel, self.model_name, self.revision, output_loading_info=True
        )
        # A pooler that the checkpoint lacks is random: its output means nothing.
        model.pooler_is_pretrained = not any("pooler" in key for key in loaded["missing_keys"])
        return Network(model.to(device, memory_format=torch.channels_last), prepare, device)

    def _pixels(self, preprocessing: Any, image: Any) -> torch.Tensor:
        return preprocessing(images=image, return_tensors="pt")["pixel_values"][0]

    def _pixel_network(self, network: Network) -> torch.nn.Module:
        return _ImageFeatures(network.model, self.pooling)


class _ImageFeatures(torch.nn.Module):
    """A network of the transformers library, pooled."""

    def __init__(self, model: torch.nn.Module, pooling: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels (n, 3, height, width) to (n, n_features)."""
        model: Any = self.model
        if hasattr(model, "get_image_features"):
            if self.pooling == "auto":
                embedding = model.get_image_features(pixel_values=pixels)
                return getattr(embedding, "pooler_output", embedding)
            model = model.vision_model
        output = model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None)
        if self.pooling == "auto" and pooled is not None and self.model.pooler_is_pretrained:
            return pooled.flatten(1)
        return _pool_patches(output.last_hidden_state, self.pooling, model)


def _pool_patches(last: torch.Tensor, pooling: str, model: Any) -> torch.Tensor:
    """Pool a feature map (n, channels, h, w) or tokens (n, tokens, width)."""
    n_prefix = 0 if last.ndim == 4 else _n_prefix_tokens(model)
    if pooling == "auto":
        pooling = "cls" if n_prefix else "mean"
    if pooling != "mean" and not n_prefix:
        raise ValueError(f"pooling={pooling!r} needs a network with a class token; use 'mean'.")
    if last.ndim == 4:
        return last.mean(dim=(2, 3))
    mean = last[:, n_prefix:].mean(dim=1)
    if pooling == "mean":
        return mean
    return last[:, 0] if pooling == "cls" else torch.cat([last[:, 0], mean], dim=1)


def _n_prefix_tokens(model: Any) -> int:
    """Count the class, distillation and register tokens that come before the patches."""
    names = [name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()]
    if not {"cls_token", "class_embedding"} & set(names):
        return 0
    registers = getattr(model.config, "num_register_tokens", 0) or 0
    return 1 + ("distillation_token" in names) + registers
