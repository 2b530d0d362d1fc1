"""Text and image encoders of the sentence-transformers library."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import nn

from ..features import FeatureCache
from ..utils.messages import import_optional
from ..utils.validation import check_boolean, check_choice, check_integer
from ._engine import Engine, TorchEngine
from .image_encoder import ImageEncoder
from .text_encoder import (
    SentenceFilesEncoder,
    TextEncoder,
    check_tokenizer,
    differs_by_padding,
)
from .weights import (
    PACKAGED,
    Network,
    check_source,
    find_packaged_file,
    load_from_source,
    warn_about_unknown_files,
)

# Larger images are reduced by an integer factor, to at least this number of pixels of the shorter
# side, so that a batch of photographs fits in memory. Networks reduce them much more.
_MAX_SIDE = 2048


class _SentenceTransformerModel(SentenceFilesEncoder):
    """Base class of the encoders of texts and images, which share one loaded model."""

    _library = "sentence-transformers"
    _loader = "sentence-transformers"

    engine = "torch"
    truncate_dim: int | None
    normalize: bool

    def _check_parameters(self) -> None:
        check_choice(self.dtype, "dtype", ("float32", "bfloat16", "float16"))  # not "auto"
        super()._check_parameters()
        check_integer(self.truncate_dim, "truncate_dim", 1, optional=True)
        check_boolean(self.normalize, "normalize")
        if self.model_name in PACKAGED:
            find_packaged_file(self.model_name)
        elif not os.path.isfile(os.path.join(self.model_name, "modules.json")):
            check_source(self)

    def _load_network(self, device: torch.device) -> Network:
        name = "sentence-transformers"
        library = import_optional("sentence_transformers", extra=name, purpose=type(self).__name__)
        model = load_from_source(
            library.SentenceTransformer, self.model_name, self.revision, device=str(device)
        )
        tokenizer = getattr(model, "tokenizer", None)
        if hasattr(tokenizer, "all_special_ids"):  # not a processor of images
            check_tokenizer(tokenizer, self.model_name)
        warn_about_unknown_files(self.model_name, self.revision)
        return Network(model, None, device)

    def _make_tensors(self, network: Network, batch: list[Any]) -> tuple[Any, ...]:
        return (batch,)  # the model tokenizes texts and resizes images itself

    def _make_module(self, network: Network) -> nn.Module:
        return network.model

    def _forward(self, network: Network, batch: list[Any]) -> torch.Tensor:
        engine: Any = self._get_engine(len(batch))
        return torch.from_numpy(engine((batch,)))

    def _get_engine(self, n_items: int) -> Engine:
        model = self._get_network().model
        return _SentenceTransformerEngine(model, self._make_encode_options(model), self.dtype_)

    def _make_encode_options(self, model: Any) -> dict[str, Any]:
        """Return the arguments of ``encode``."""
        return {"truncate_dim": self.truncate_dim, "normalize_embeddings": self.normalize}


@dataclass(eq=False, repr=False)
class SentenceTransformerEncoder(_SentenceTransformerModel, TextEncoder):
    """Frozen model of the sentence-transformers library that maps texts to features.

    All modules of the model [1]_ are computed, such as Dense layers, which
    `TransformersTextEncoder` does not support. Features equal those of
    ``SentenceTransformer.encode``.

    Parameters
    ----------
    model_name : str, default="all-MiniLM-L6-v2"
        A short name of `list_encoders`, whose weights come from a Python package; a folder that
        ``SentenceTransformer.save`` wrote; or a name on the Hugging Face Hub.
    revision : str or None, default=None
        Branch, tag or commit of a model on the Hugging Face Hub. None means the main branch.
    prompt : str or None, default=None
        Text that is put before each text, or the name of one of the model's prompts, such as
        "query". None uses the model's default prompt, if there is one.
    truncate_dim : int or None, default=None
        Number of features to keep, for models that were trained for it (Matryoshka [2]_). None
        uses the number that the model declares, or all features.
    normalize : bool, default=False
        Whether to L2-normalize the features. Models with a Normalize module always do so before
        `truncate_dim` is applied.
    batch_size : {"auto"} or int, default="auto"
        Number of texts per forward pass. ``"auto"`` is the fastest size. It is halved if the
        memory of the GPU is too small.
    device : {"auto"}, str or torch.device, default="auto"
        Device of the network. ``"auto"`` uses a GPU if there is one.
    dtype : {"float32", "bfloat16", "float16"}, default="float32"
        Precision in which the network is computed, by autocast. Features are always float32.
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
    errors_ : dict of {int: str}
        Reasons why rows of the last `transform` or `encode_to` could not be encoded, by row.

    Raises
    ------
    ImportError
        By `transform`, if sentence-transformers is not installed.

    See Also
    --------
    SentenceTransformerImageEncoder : Encoder of images, if the model is multimodal.
    TransformersTextEncoder : Computes common models faster, without sentence-transformers.

    Notes
    -----
    Networks that do not mask padding, such as SigLIP, encode one text at a time. In larger
    batches, features would depend on the other texts.

    References
    ----------
    .. [1] N. Reimers and I. Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese
       BERT-Networks", EMNLP 2019.
    .. [2] A. Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022.

    Examples
    --------
    >>> from sklearn_ape.encoders import SentenceTransformerEncoder
    >>> encoder = SentenceTransformerEncoder("all-MiniLM-L6-v2", truncate_dim=128, normalize=True)
    >>> encoder.transform(["a cat", "a rocket"]).shape
    (2, 128)
    """

    model_name: str = "all-MiniLM-L6-v2"
    _: KW_ONLY
    revision: str | None = None
    prompt: str | None = None
    truncate_dim: int | None = None
    normalize: bool = False
    batch_size: int | str = "auto"
    device: str | torch.device | None = "auto"
    dtype: str = "float32"
    cache: str | PathLike[str] | FeatureCache | None = "memory"
    on_error: str = "raise"
    verbose: int | None = None

    _cpu_batch_size = 64  # which all cores compute together

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise ValueError(f"prompt must be None or a str, not {self.prompt!r}.")

    def _is_sensitive_to_padding(self, network: Network) -> bool:
        plain = clone(self).set_params(dtype="float32")
        alone = plain._forward(network, ["a"])
        padded = plain._forward(network, ["a", "a b c d e f g h"])[:1]
        return differs_by_padding(alone, padded)

    def _make_encode_options(self, model: Any) -> dict[str, Any]:
        prompts = getattr(model, "prompts", None) or {}
        options = super()._make_encode_options(model)
        return options | {"prompt": prompts.get(self.prompt, self.prompt)}


@dataclass(eq=False, repr=False)
class SentenceTransformerImageEncoder(_SentenceTransformerModel, ImageEncoder):
    """Frozen multimodal model of the sentence-transformers library that maps images to features.

    The model resizes and crops images itself. Features equal those of
    ``SentenceTransformer.encode``.

    Parameters
    ----------
    model_name : str, default="sentence-transformers/clip-ViT-B-32"
        A folder that ``SentenceTransformer.save`` wrote, or a name on the Hugging Face Hub. The
        model must accept images.
    revision : str or None, default=None
        Branch, tag or commit of a model on the Hugging Face Hub. None means the main branch.
    crop : {"center", "pad"}, default="center"
        Treatment of images that are not square. ``"center"`` uses the network's own
        preprocessing, which usually crops the borders. ``"pad"`` adds white borders instead.
    truncate_dim : int or None, default=None
        Number of features to keep, for models that were trained for it (Matryoshka). None uses
        the number that the model declares, or all features.
    normalize : bool, default=False
        Whether to L2-normalize the features. Models with a Normalize module always do so before
        `truncate_dim` is applied.
    batch_size : {"auto"} or int, default="auto"
        Number of images per forward pass. ``"auto"`` is the fastest size. It is halved if the
        memory of the GPU is too small.
    device : {"auto"}, str or torch.device, default="auto"
        Device of the network. ``"auto"`` uses a GPU if there is one.
    dtype : {"float32", "bfloat16", "float16"}, default="float32"
        Precision in which the network is computed, by autocast. Features are always float32.
    n_jobs : int or None, default=None
        Number of threads that read images. None means the number of threads that torch uses, -1
        one per core.
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
    errors_ : dict of {int: str}
        Reasons why rows of the last `transform` or `encode_to` could not be encoded, by row.

    Raises
    ------
    ImportError
        By `transform`, if sentence-transformers is not installed.
    ValueError
        By `transform`, if the model does not accept images.

    See Also
    --------
    SentenceTransformerEncoder : Encoder of texts, which shares the loaded model.
    TransformersImageEncoder : Computes the networks of CLIP and SigLIP faster, without
        sentence-transformers.

    Notes
    -----
    Images of which the shorter side has at least 4,096 pixels are reduced by an integer factor, to
    at least 2,048 pixels, when they are read. With ``crop="pad"`` this applies to the longer side.

    Examples
    --------
    >>> from sklearn_ape.encoders import SentenceTransformerImageEncoder
    >>> SentenceTransformerImageEncoder("folder/of/model", crop="pad")
    SentenceTransformerImageEncoder(crop='pad', model_name='folder/of/model')
    """

    model_name: str = "sentence-transformers/clip-ViT-B-32"
    _: KW_ONLY
    revision: str | None = None
    crop: str = "center"
    truncate_dim: int | None = None
    normalize: bool = False
    batch_size: int | str = "auto"
    device: str | torch.device | None = "auto"
    dtype: str = "float32"
    n_jobs: int | None = None
    cache: str | PathLike[str] | FeatureCache | None = "memory"
    on_error: str = "raise"
    verbose: int | None = None

    _cpu_batch_size = 16

    def _make_encode_options(self, model: Any) -> dict[str, Any]:
        # Not checked when the model is loaded, because an encoder of texts may have loaded it.
        if "image" not in model.modalities:
            raise ValueError(
                f"model_name={self.model_name!r} does not accept images, only "
                f"{', '.join(model.modalities)}. Pass a multimodal model, such as "
                "'sentence-transformers/clip-ViT-B-32'."
            )
        return super()._make_encode_options(model)

    def _compute_min_side(self, preprocessing: Any) -> int:
        return _MAX_SIDE

    def _preprocess(self, preprocessing: Any, image: Any) -> Any:
        return image  # the model prepares images itself

    def _make_pixel_network(self, network: Network) -> nn.Module:
        raise ValueError(
            "SentenceTransformerImageEncoder cannot be exported, because the model prepares "
            "images itself. Use TransformersImageEncoder."
        )


class _SentenceTransformerEngine(TorchEngine):
    """Engine that calls ``encode`` of a model, so that features equal those of the library."""

    concurrent = False  # nothing says that several threads may call it

    def __init__(self, model: Any, options: dict[str, Any], dtype: str) -> None:
        self.model = model
        self.options = options
        self.device = model.device
        self.dtype = dtype

    def _compute(self, inputs: Any) -> np.ndarray:
        """Return the features of a tuple with a list of texts or images."""
        (items,) = inputs
        with self._autocast():
            features = self.model.encode(
                items, batch_size=len(items), show_progress_bar=False, **self.options
            )
        return np.asarray(features, dtype=np.float32)
