"""Image and text encoders of the transformers library."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from os import PathLike
from typing import Any, NamedTuple

import torch
from sklearn.utils import gen_batches
from torch import nn

from ..devices import default_state
from ..features import FeatureCache
from ..utils.validation import check_choice, check_integer
from .image_encoder import ImageEncoder, make_uncropped_options, pool_patches
from .text_encoder import (
    SentenceFilesEncoder,
    TextEncoder,
    check_tokenizer,
    differs_by_padding,
    parse_pooling,
    pool_tokens,
    read_prompt,
    use_tokenizers,
)
from .weights import (
    Network,
    check_source,
    explain_load_errors,
    load_from_source,
    load_transformers_model,
    read_side_file,
    warn_about_unknown_files,
)

# Largest limit of tokens, unless the sentence-transformers files of a model declare another one.
_MAX_TOKENS = 512

# Number of texts that are tokenized together to find their lengths; it bounds the memory.
_TOKENIZED_AT_ONCE = 4096

# Inputs of the network, in the order in which `_TextFeatures` takes them.
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

# Ends of the names of parameters that are tokens before those of the patches.
_PREFIX_TOKENS = (
    *("cls_token", "class_embedding", "distillation_token", "register_tokens"),
    *("dist_token", "reg_token"),  # of timm
)


class _TextPipeline(NamedTuple):
    """A tokenizer, and the steps around the network that the model's files declare.

    Cache keys contain a fingerprint of the files, so they need not contain these steps.
    """

    tokenize: Any
    max_length: int
    pooling: str
    normalize: bool
    prompt: str
    lower: bool
    truncate_dim: int | None  # number of features to keep
    n_special_tokens: int


@dataclass(eq=False, repr=False)
class TransformersTextEncoder(SentenceFilesEncoder, TextEncoder):
    """Frozen network of the `transformers` library that maps texts to features.

    Parameters
    ----------
    model_name : str, default="all-MiniLM-L6-v2"
        A short name of `list_encoders`, whose weights come from a Python package; a folder that
        ``save_pretrained`` wrote, including the tokenizer; or a name on the Hugging Face Hub.
    revision : str or None, default=None
        Branch, tag or commit of a model on the Hugging Face Hub. None means the main branch.
    pooling : {"auto", "mean", "cls", "cls+mean", "last"}, default="auto"
        Pooling of the hidden states of the tokens to one vector. ``"auto"`` uses the pooling of
        the model's sentence-transformers [1]_ files, the text embedding of a two-tower model
        (CLIP, SigLIP), or else the mean. ``"last"`` is meant for causal language models.
    normalize : {"auto"} or bool, default="auto"
        Whether features are L2-normalized. ``"auto"`` normalizes them if the model's
        sentence-transformers files declare it.
    max_length : int or None, default=None
        Number of tokens to which texts are truncated. None uses the model's limit, but at most
        512 unless the model's sentence-transformers files declare a larger ``max_seq_length``.
    batch_size : {"auto"} or int, default="auto"
        Number of texts per forward pass. ``"auto"`` is the fastest size. It is halved if the
        memory of the GPU is too small.
    engine : {"auto", "torch", "onnx", "openvino"}, default="auto"
        Library that computes the network. ``"auto"`` uses the fastest installed one: OpenVINO or
        ONNX Runtime on a CPU, torch on a GPU. See `TimmImageEncoder` for details.
    device : {"auto"}, str or torch.device, default="auto"
        Device of the network. ``"auto"`` uses a GPU if there is one.
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="float32"
        Precision in which the network is computed. Features are always float32. ``"bfloat16"``
        is faster and changes the features. ``"auto"`` uses bfloat16 if OpenVINO computes the
        network on a processor with AMX instructions, and float32 otherwise.
    cache : {"memory"}, str, path-like, FeatureCache or None, default="memory"
        Cache of features by content. ``"memory"`` keeps features in this process, a path or a
        `DiskFeatureCache` keeps them on disk, and None disables the cache.
    on_error : {"raise", "nan"}, default="raise"
        Treatment of empty and missing texts. ``"raise"`` raises an EncodingError that names
        them. ``"nan"`` fills their rows with NaN and warns.
    verbose : int or None, default=None
        1 shows a progress bar, 0 does not. None shows one in terminals and
        notebooks if the work takes more than two seconds.

    Attributes
    ----------
    dtype_ : str
        Precision in which the network is computed; the choice made for ``dtype="auto"``.
    errors_ : dict of {int: str}
        Reasons why rows of the last `transform` or `encode_to` could not be encoded, by row.

    See Also
    --------
    OpenCLIPTextEncoder : Text towers of CLIP models.
    TransformersImageEncoder : Image encoders of the transformers library.

    Notes
    -----
    Texts are prepared as the model's files declare. They are lower-cased for SigLIP and SigLIP 2,
    and for sentence-transformers models with ``do_lower_case``. The default prompt of a
    sentence-transformers model is prepended. A warning lists prompts without a default. Features
    are truncated to its ``truncate_dim``, after they are normalized.

    Networks that do not mask padding, such as FNet and ConvBERT, encode one text at a time. In
    larger batches, features would depend on the other texts.

    References
    ----------
    .. [1] N. Reimers and I. Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese
       BERT-Networks", EMNLP 2019.

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

    model_name: str = "all-MiniLM-L6-v2"
    _: KW_ONLY
    revision: str | None = None
    pooling: str = "auto"
    normalize: str | bool = "auto"
    max_length: int | None = None
    batch_size: int | str = "auto"
    engine: str = "auto"
    device: str | torch.device | None = "auto"
    dtype: str = "float32"
    cache: str | PathLike[str] | FeatureCache | None = "memory"
    on_error: str = "raise"
    verbose: int | None = None

    _library = "transformers"

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice(self.pooling, "pooling", ("auto", "mean", "cls", "cls+mean", "last"))
        if self.normalize not in ("auto", True, False):
            raise ValueError(f"normalize must be 'auto', True or False, not {self.normalize!r}.")
        check_integer(self.max_length, "max_length", 1, optional=True)
        check_source(self)

    def _load_network(self, device: torch.device) -> Network:
        from transformers import AutoTokenizer

        tokenizer = load_from_source(AutoTokenizer.from_pretrained, self.model_name, self.revision)
        check_tokenizer(tokenizer, self.model_name)
        model = load_transformers_model(self.model_name, self.revision)
        # It is False in the files of a T5EncoderModel.
        model.config.is_encoder_decoder |= hasattr(model, "encoder") and hasattr(model, "decoder")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # The poolings "last" and "cls" require padding on the right. Generative models pad left.
        tokenizer.padding_side = "right"
        pipeline = self._read_pipeline(tokenizer, model)
        warn_about_unknown_files(self.model_name, self.revision)
        return Network(model.to(device), pipeline, device)

    def _read_pipeline(self, tokenizer: Any, model: Any) -> _TextPipeline:
        """Read pooling, normalization and length from the sentence-transformers files."""
        source = self.model_name, self.revision
        with explain_load_errors(self.model_name):
            modules = read_side_file(*source, "modules.json")
            sentence = read_side_file(*source, "sentence_bert_config.json") or {}
            # SigLIP 2 was trained on lower-cased texts. Its tokenizer, Gemma's, keeps the case.
            lower = _is_siglip(model) or bool(sentence.get("do_lower_case"))
        paths = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules or []}
        prompt, truncate_dim = ("", None) if modules is None else read_prompt(*source)
        # A step that is not implemented is appended to the pooling, which `pool_tokens` rejects.
        pooling = "embedding" if hasattr(model, "get_text_features") else "mean"
        if "Pooling" in paths:
            config = read_side_file(*source, f"{paths['Pooling']}/config.json") or {}
            pooling = parse_pooling(config)
            if prompt and not config.get("include_prompt", True):
                pooling = f"{pooling} without the prompt"
        unsupported = paths.keys() - {"Transformer", "Pooling", "Normalize", "Dropout"}
        if "message" in (sentence.get("modality_config") or {}):  # which is preferred to "text"
            unsupported.add("chat template")
        if {"common", "text"} & (sentence.get("processing_kwargs") or {}).keys():
            unsupported.add("processing_kwargs")
        if unsupported:
            pooling = f"{pooling} and {', '.join(sorted(unsupported))}"
        n_positions = _count_positions(model) or _MAX_TOKENS
        limit = min(tokenizer.model_max_length, n_positions, _MAX_TOKENS)
        return _TextPipeline(
            tokenize=tokenizer,
            max_length=sentence.get("max_seq_length") or limit,
            pooling=pooling,
            normalize="Normalize" in paths,
            prompt=prompt,
            lower=lower,
            truncate_dim=truncate_dim,
            n_special_tokens=tokenizer.num_special_tokens_to_add(),
        )

    def _make_module(self, network: Network) -> torch.nn.Module:
        pipeline: _TextPipeline = network.prepare
        pooling = pipeline.pooling if self.pooling == "auto" else self.pooling
        normalize = pipeline.normalize if self.normalize == "auto" else bool(self.normalize)
        n_positions = _count_positions(network.model)
        if n_positions is not None and (self.max_length or 0) > n_positions:
            raise ValueError(
                f"max_length={self.max_length} is more than the {n_positions} positions of "
                f"{self.model_name!r}. Pass at most {n_positions}."
            )
        n_special = pipeline.n_special_tokens
        # A tokenizer would not truncate at all, or to the special tokens.
        if self.max_length is not None and self.max_length <= n_special:
            raise ValueError(
                f"max_length={self.max_length} leaves no room for the text, because the tokenizer "
                f"of {self.model_name!r} adds {n_special} special tokens. Pass at least "
                f"{n_special + 1}."
            )
        return _TextFeatures(network.model, pooling, normalize, pipeline.truncate_dim)

    def _measure_lengths(self, items: list[Any]) -> list[int]:
        pipeline: _TextPipeline = self._get_network().prepare
        if not getattr(pipeline.tokenize, "is_fast", False):
            return super()._measure_lengths(items)
        # Numbers of tokens: in batches sorted by letters, one eighth is padding.
        lengths: list[int] = []
        for rows in gen_batches(len(items), _TOKENIZED_AT_ONCE):
            texts = list(map(str.__str__, items[rows]))
            tokens = self._tokenize(pipeline, texts, padding=False)["input_ids"]
            lengths += map(len, tokens)
        return lengths

    def _is_sensitive_to_padding(self, network: Network) -> bool:
        """Return whether the features of a text change with padding or with tokens behind it."""
        if _is_siglip(network.model):  # which pads all texts to the same length
            return False
        inputs = self._make_tensors(network, ["a", "a b c d e f g h"])
        for tensor in inputs:
            tensor[1] = tensor[0]
        ids, mask = inputs[:2]
        # Not the last token, which some two-tower models find by its id.
        ids[1, mask[1] == 0] = ids[1, 0]
        with default_state(), torch.inference_mode():
            alone = self._forward(network, ["a"]).float()
            padded = self._make_module(network)(*(x.to(network.device) for x in inputs)).float()
        return differs_by_padding(alone, padded)

    def _make_tensors(self, network: Network, batch: list[Any]) -> tuple[torch.Tensor, ...]:
        # SigLIP was trained with texts padded to a fixed length, and attends to the padding.
        padding = "max_length" if _is_siglip(network.model) else True
        options = {"padding": padding, "return_attention_mask": True, "return_tensors": "pt"}
        tokens = self._tokenize(network.prepare, batch, **options)
        return tuple(tokens[name] for name in _INPUTS if name in tokens)

    def _tokenize(self, pipeline: _TextPipeline, texts: list[Any], **options: Any) -> Any:
        max_length = self.max_length or pipeline.max_length
        if pipeline.prompt:
            texts = [pipeline.prompt + text for text in texts]
        if pipeline.lower:
            texts = [text.lower() for text in texts]
        with use_tokenizers():
            return pipeline.tokenize(texts, truncation=True, max_length=max_length, **options)


class _TextFeatures(torch.nn.Module):
    """A text network with pooling, normalization and truncation."""

    def __init__(self, model: Any, pooling: str, normalize: bool, n_out: int | None) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.normalize = normalize
        self.n_out = n_out

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Map the inputs `_INPUTS`, (n, n_tokens) each, to features, (n, n_features)."""
        tokens = dict(zip(_INPUTS, inputs, strict=False))
        mask = tokens["attention_mask"]
        if _is_siglip(self.model):
            del tokens["attention_mask"]
        if self.pooling == "embedding":
            embedding = self.model.get_text_features(**tokens)
            pooled = getattr(embedding, "pooler_output", embedding)
        else:
            tower = getattr(self.model, "text_model", self.model)
            is_seq2seq = getattr(tower.config, "is_encoder_decoder", False)
            if is_seq2seq and hasattr(tower, "get_encoder"):
                tower = tower.get_encoder()
            last = _get_hidden_states(tower(**tokens), tower)
            pooled = pool_tokens(last, mask, self.pooling)
        features = nn.functional.normalize(pooled.float(), dim=-1) if self.normalize else pooled
        return features[:, : self.n_out]


def _count_positions(model: Any) -> int | None:
    """Return the largest number of tokens of a text, or None if the model has no limit."""
    config = getattr(model.config, "text_config", None) or model.config
    n_positions = getattr(config, "max_position_embeddings", None)
    if n_positions is None or n_positions < 1:  # XLNet has -1
        return None
    # RoBERTa and its relatives do not use the positions up to that of the padding token.
    paddings = (
        module.padding_idx
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    )
    padding = next((index for index in paddings if index is not None), -1)
    return n_positions - padding - 1


def _get_hidden_states(output: Any, model: Any) -> torch.Tensor:
    last = getattr(output, "last_hidden_state", None)
    if last is None:
        raise ValueError(f"{type(model).__name__} returns no hidden states. Choose another model.")
    return last.float()


def _is_siglip(model: Any) -> bool:
    return model.config.model_type.startswith("siglip")


@dataclass(eq=False, repr=False)
class TransformersImageEncoder(ImageEncoder):
    """Frozen network of the `transformers` library that maps images to features.

    Parameters
    ----------
    model_name : str, default="facebook/dinov2-small"
        A folder that ``save_pretrained`` wrote, including the image processor, or a name on the
        Hugging Face Hub.
    revision : str or None, default=None
        Branch, tag or commit of a model on the Hugging Face Hub. None means the main branch.
    pooling : {"auto", "mean", "cls", "cls+mean"}, default="auto"
        Pooling of the last hidden states to one vector. ``"auto"`` uses the first of these that
        the model has: the image embedding of a two-tower model (CLIP, SigLIP), a pooler with
        pretrained weights, the class token, the mean.
    crop : {"center", "pad"}, default="center"
        Treatment of images that are not square. ``"center"`` uses the network's own
        preprocessing, which usually crops the borders. ``"pad"`` adds white borders instead.
    batch_size : {"auto"} or int, default="auto"
        Number of images per forward pass. ``"auto"`` is the fastest size. It is halved if the
        memory of the GPU is too small. On a CPU, each of the `n_jobs` threads computes a batch, so
        that large batches take much memory.
    engine : {"auto", "torch", "onnx", "openvino"}, default="auto"
        Library that computes the network. ``"auto"`` uses the fastest installed one: OpenVINO or
        ONNX Runtime on a CPU, torch on a GPU. See `TimmImageEncoder` for details.
    device : {"auto"}, str or torch.device, default="auto"
        Device of the network. ``"auto"`` uses a GPU if there is one.
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="float32"
        Precision in which the network is computed. Features are always float32. ``"bfloat16"``
        is faster and changes the features. ``"auto"`` uses bfloat16 if OpenVINO computes the
        network on a processor with AMX instructions, and float32 otherwise.
    n_jobs : int or None, default=None
        Number of threads that read and resize images and, on a CPU, compute the network. None
        means the number of threads that torch uses, -1 one per core.
    cache : {"memory"}, str, path-like, FeatureCache or None, default="memory"
        Cache of features by content. ``"memory"`` keeps features in this process, a path or a
        `DiskFeatureCache` keeps them on disk, and None disables the cache.
    on_error : {"raise", "nan"}, default="raise"
        Treatment of images that cannot be read. ``"raise"`` raises an EncodingError that names
        them. ``"nan"`` fills their rows with NaN and warns.
    verbose : int or None, default=None
        1 shows a progress bar, 0 does not. None shows one in terminals and
        notebooks if the work takes more than two seconds.

    Attributes
    ----------
    dtype_ : str
        Precision in which the network is computed; the choice made for ``dtype="auto"``.
    errors_ : dict of {int: str}
        Reasons why rows of the last `transform` or `encode_to` could not be encoded, by row.

    See Also
    --------
    TimmImageEncoder : Encoder of the same types of images, which its notes list.
    TransformersTextEncoder : Text encoders of the transformers library.

    Examples
    --------
    >>> from sklearn_ape.encoders import TransformersImageEncoder
    >>> encoder = TransformersImageEncoder("facebook/dinov2-small", pooling="cls+mean")
    >>> encoder.get_params()["pooling"]
    'cls+mean'
    """

    model_name: str = "facebook/dinov2-small"
    _: KW_ONLY
    revision: str | None = None
    pooling: str = "auto"
    crop: str = "center"
    batch_size: int | str = "auto"
    engine: str = "auto"
    device: str | torch.device | None = "auto"
    dtype: str = "float32"
    n_jobs: int | None = None
    cache: str | PathLike[str] | FeatureCache | None = "memory"
    on_error: str = "raise"
    verbose: int | None = None

    _library = "transformers"

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice(self.pooling, "pooling", ("auto", "mean", "cls", "cls+mean"))
        check_source(self)

    def _load_network(self, device: torch.device) -> Network:
        from transformers import AutoImageProcessor

        source = self.model_name, self.revision
        prepare = load_from_source(AutoImageProcessor.from_pretrained, *source)
        model = load_transformers_model(*source)
        if any(parameter.ndim == 5 for parameter in model.parameters()):
            raise ValueError(f"{type(model).__name__} encodes videos. Choose a network of images.")
        # transformers initializes a pooler that the checkpoint lacks at random.
        model.pooler_is_pretrained = not any("pooler" in key for key in model.missing_weights)
        if model.config.model_type == "vit_mae":  # it would drop three of four patches at random
            model.config.mask_ratio = 0.0
        return Network(model.to(device, memory_format=torch.channels_last), prepare, device)

    def _preprocess(self, preprocessing: Any, image: Any) -> torch.Tensor:
        options = make_uncropped_options(preprocessing) if self.crop == "pad" else {}
        return preprocessing(images=image, return_tensors="pt", **options)["pixel_values"][0]

    def _make_pixel_network(self, network: Network) -> torch.nn.Module:
        return _ImageFeatures(network.model, self.pooling)


class _ImageFeatures(torch.nn.Module):
    """An image network with pooling."""

    def __init__(self, model: Any, pooling: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels, (n, 3, height, width), to features, (n, n_features)."""
        model = self.model
        if hasattr(model, "get_image_features"):
            if self.pooling == "auto":
                embedding = model.get_image_features(pixel_values=pixels)
                return getattr(embedding, "pooler_output", embedding)
            model = getattr(model, "vision_model", None) or getattr(model, "image_model", None)
            if model is None:
                name = type(self.model).__name__
                raise ValueError(f"{name} has no image tower to pool. Pass pooling='auto'.")
        options = {}
        if model.config.model_type == "vit_mae":  # it shuffles the patches in the order of noise
            noise = torch.arange(model.embeddings.patch_embeddings.num_patches)
            options["noise"] = noise.expand(pixels.shape[0], -1).to(pixels.device)
        output = model(pixel_values=pixels, **options)
        pooled = getattr(output, "pooler_output", None)
        if self.pooling == "auto" and pooled is not None and self.model.pooler_is_pretrained:
            return pooled.flatten(1)
        last = _get_hidden_states(output, model)  # (n, channels, h, w) or (n, n_tokens, width)
        n_prefix = 0 if last.ndim == 4 else _count_prefix_tokens(model)
        pooling = ("cls" if n_prefix else "mean") if self.pooling == "auto" else self.pooling
        if last.ndim == 4 and pooling == "mean":
            return last.mean(dim=(2, 3))
        return pool_patches(last, pooling, n_prefix)


def _count_prefix_tokens(model: Any) -> int:
    """Return the number of class, distillation and register tokens before the patches."""
    if model.config.model_type == "dinov3_convnext":  # the mean over the image comes first
        return 1
    # The pooling head of AIMv2 has a class token of its own, which is not among the patches.
    counts = {
        name.rsplit(".", 1)[-1]: parameter.numel() // parameter.shape[-1]
        for name, parameter in model.named_parameters()
        if name.endswith(_PREFIX_TOKENS) and not name.startswith("head.")
    }
    return sum(counts.values()) if {"cls_token", "class_embedding"} & counts.keys() else 0
