"""Image and text encoders of OpenCLIP models."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..features import FeatureCache
from .base import FrozenEncoder
from .image_encoder import ImageEncoder, Preprocessing
from .text_encoder import TextEncoder, use_tokenizers
from .weights import (
    Network,
    describe_model_folder,
    digest_folder,
    explain_load_errors,
    find_hub_commit,
    pin_revision,
    suggest_names,
)

_CONFIG = "open_clip_config.json"


class _OpenCLIPTower(FrozenEncoder):
    """Base class of the two towers, which share one loaded model."""

    _library = "open_clip_torch"
    _loader = "OpenCLIP"

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if os.path.isdir(self.model_name):
            if not (Path(self.model_name) / _CONFIG).is_file():
                raise ValueError(
                    f"model_name={self.model_name!r} is a folder without an OpenCLIP model: it "
                    f"has no {_CONFIG}. Pass a folder with this file and weights."
                    f"{describe_model_folder(self.model_name)}"
                )
            return
        import open_clip

        architecture, slash, tag = self.model_name.partition("/")
        if os.path.isfile(tag):
            raise ValueError(
                f"model_name={self.model_name!r} ends with a file of weights, not with their "
                "name. Copy the file to a folder as open_clip_pytorch_model.bin or "
                f"open_clip_model.safetensors, write {_CONFIG} to it with save_config_for_hf of "
                "the module open_clip.push_to_hf_hub, and pass the folder."
            )
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if not slash or (tags and tag not in tags):
            raise ValueError(
                f"model_name={self.model_name!r} is not a pretrained CLIP model. Pass "
                "'architecture/weights' such as 'ViT-B-32/laion2b_s34b_b79k', a hub name or a "
                f"folder.{suggest_names(self.model_name, _list_pretrained())}"
            )
        if tags and self.revision is not None:
            raise ValueError(
                f"revision={self.revision!r} applies to models on the hub, and "
                f"model_name={self.model_name!r} is a name of OpenCLIP. Set revision to None, or "
                "pass the name of the model on the hub, 'owner/name'."
            )

    def _is_hub_name(self) -> bool:
        import open_clip

        architecture = self.model_name.partition("/")[0]
        return not open_clip.list_pretrained_tags_by_model(architecture)

    def _get_hub_id(self) -> str:
        return self.model_name.removeprefix("hf-hub:")

    def _compute_weights_fingerprint(self) -> str | None:
        if os.path.isdir(self.model_name):
            return digest_folder(self.model_name)
        if not self._is_hub_name():
            return self.model_name
        commit = find_hub_commit(self._get_hub_id(), self.revision, _CONFIG)
        return f"{self._get_hub_id()}@{commit}" if commit else None

    def _load_network(self, device: torch.device) -> Network:
        import open_clip

        with explain_load_errors(self.model_name, _list_pretrained()):
            if os.path.isdir(self.model_name):
                name, weights = f"local-dir:{self.model_name}", None
            elif self._is_hub_name():
                name, weights = f"local-dir:{_download(self._get_hub_id(), self.revision)}", None
            else:
                name, _, weights = self.model_name.partition("/")
            model, transform = open_clip.create_model_from_pretrained(name, pretrained=weights)
            prepare = {
                "image": Preprocessing.from_transform(transform) or transform,
                "text": open_clip.get_tokenizer(name),
            }
        return Network(model.to(device), prepare, device)


@dataclass(eq=False, repr=False)
class OpenCLIPImageEncoder(_OpenCLIPTower, ImageEncoder):
    """Frozen image tower of an OpenCLIP model.

    OpenCLIP [2]_ is a library of models that were trained on pairs of images and texts like CLIP
    [1]_.

    Parameters
    ----------
    model_name : str, default="ViT-B-32/laion2b_s34b_b79k"
        ``"architecture/weights"`` as in `open_clip.list_pretrained`, the name of a model on the
        Hugging Face Hub, or a folder with ``open_clip_config.json`` and weights.
    revision : str or None, default=None
        Branch, tag or commit of a model on the Hugging Face Hub. None means the main branch. It
        must be None if `model_name` is ``"architecture/weights"``.
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
    OpenCLIPTextEncoder : Text tower, which shares the loaded model.
    TimmImageEncoder : Encoder of the same types of images, which its notes list.

    References
    ----------
    .. [1] A. Radford et al., "Learning Transferable Visual Models From Natural Language
       Supervision", ICML 2021.
    .. [2] G. Ilharco et al., "OpenCLIP", 2021. https://github.com/mlfoundations/open_clip

    Examples
    --------
    >>> from sklearn_ape.encoders import OpenCLIPImageEncoder
    >>> OpenCLIPImageEncoder("ViT-B-32/laion2b_s34b_b79k").model_name
    'ViT-B-32/laion2b_s34b_b79k'
    """

    model_name: str = "ViT-B-32/laion2b_s34b_b79k"
    _: KW_ONLY
    revision: str | None = None
    crop: str = "center"
    batch_size: int | str = "auto"
    engine: str = "auto"
    device: str | torch.device | None = "auto"
    dtype: str = "float32"
    n_jobs: int | None = None
    cache: str | PathLike[str] | FeatureCache | None = "memory"
    on_error: str = "raise"
    verbose: int | None = None

    def _get_preprocessing(self, prepare: Any) -> Any:
        return prepare["image"]

    def _make_pixel_network(self, network: Network) -> torch.nn.Module:
        return _Tower(network.model, "encode_image")


@dataclass(eq=False, repr=False)
class OpenCLIPTextEncoder(_OpenCLIPTower, TextEncoder):
    """Frozen text tower of an OpenCLIP model.

    Parameters
    ----------
    model_name : str, default="ViT-B-32/laion2b_s34b_b79k"
        ``"architecture/weights"`` as in `open_clip.list_pretrained`, the name of a model on the
        Hugging Face Hub, or a folder with ``open_clip_config.json`` and weights.
    revision : str or None, default=None
        Branch, tag or commit of a model on the Hugging Face Hub. None means the main branch. It
        must be None if `model_name` is ``"architecture/weights"``.
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
    OpenCLIPImageEncoder : Image tower, which shares the loaded model.

    Examples
    --------
    >>> from sklearn_ape.encoders import OpenCLIPTextEncoder
    >>> OpenCLIPTextEncoder(batch_size=16).get_params()["batch_size"]
    16
    """

    model_name: str = "ViT-B-32/laion2b_s34b_b79k"
    _: KW_ONLY
    revision: str | None = None
    batch_size: int | str = "auto"
    engine: str = "auto"
    device: str | torch.device | None = "auto"
    dtype: str = "float32"
    cache: str | PathLike[str] | FeatureCache | None = "memory"
    on_error: str = "raise"
    verbose: int | None = None

    def _make_module(self, network: Network) -> torch.nn.Module:
        return _Tower(network.model, "encode_text")

    def _make_tensors(self, network: Network, batch: list[Any]) -> tuple[torch.Tensor, ...]:
        with use_tokenizers():
            return (network.prepare["text"](batch),)


class _Tower(torch.nn.Module):
    """One tower of a model, as a module."""

    def __init__(self, model: torch.nn.Module, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return getattr(self.model, self.method)(inputs)


def _list_pretrained() -> list[str]:
    import open_clip

    return [f"{name}/{tag}" for name, tag in open_clip.list_pretrained()]


def _download(repo_id: str, revision: str | None) -> str:
    """Download a hub model, preferably with safetensors weights, and return its folder."""
    from huggingface_hub import snapshot_download

    revision = pin_revision(repo_id, revision, _CONFIG)
    configs = ["*.json", "*.txt", "*.model"]
    for weights in ("open_clip_*.safetensors", "open_clip_*.bin"):
        folder = snapshot_download(repo_id, revision=revision, allow_patterns=[*configs, weights])
        if list(Path(folder).glob(weights)):
            return folder
    raise ValueError(
        f"model_name={repo_id!r} is a hub model without OpenCLIP weights "
        "(open_clip_*.safetensors). Pass a model that has them."
    )
