"""The two towers of OpenCLIP models, each as an encoder of its own."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..features import FeatureCache
from .base import FrozenEncoder
from .image_encoder import ImageEncoder, Preprocessing
from .text_encoder import TOKENIZING, TextEncoder
from .weights import Network, digest_folder, hub_commit, library_version, loading, suggest_names

_CONFIG = "open_clip_config.json"


class _OpenCLIPTower(FrozenEncoder):
    """Where both towers come from: one model, loaded once for the two."""

    revision: str | None

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if os.path.isdir(self.model_name):
            if not (Path(self.model_name) / _CONFIG).is_file():
                raise ValueError(
                    f"The folder {self.model_name!r} holds no OpenCLIP model: it has no {_CONFIG}."
                )
            return
        import open_clip

        architecture, slash, tag = self.model_name.partition("/")
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if not slash or (tags and tag not in tags):
            raise ValueError(
                f"No pretrained CLIP model is called {self.model_name!r}. Expected "
                "'architecture/weights' as in 'ViT-B-32/laion2b_s34b_b79k', a hub name or a "
                f"folder.{suggest_names(self.model_name, _known_names())}"
            )

    def _is_hub_name(self) -> bool:
        import open_clip

        architecture = self.model_name.partition("/")[0]
        return not open_clip.list_pretrained_tags_by_model(architecture)

    def _weights_key(self) -> str:
        return f"{self.model_name}@{self.revision}"

    def _known_weights(self) -> str | None:
        if os.path.isdir(self.model_name):
            return digest_folder(Path(self.model_name))
        if not self._is_hub_name():
            return self.model_name
        commit = hub_commit(self.model_name, self.revision, _CONFIG)
        return f"{self.model_name}@{commit}" if commit else None

    def _identity(self) -> dict[str, Any]:
        weights = self._known_weights()
        if weights is None:
            self._network()
            weights = self._known_weights() or f"{self.model_name}@{self.revision}"
        return {"weights": weights, "library": library_version("open_clip_torch")}

    def _network(self) -> Network:
        # Under one name for both towers, so that the model is loaded once.
        return self._shared("OpenCLIP")

    def _load(self, device: torch.device) -> Network:
        import open_clip

        with loading(self.model_name, _known_names()):
            if os.path.isdir(self.model_name):
                name, weights = f"local-dir:{self.model_name}", None
            elif self._is_hub_name():
                name, weights = f"local-dir:{_fetched(self.model_name, self.revision)}", None
            else:
                name, _, weights = self.model_name.partition("/")
            model, transform = open_clip.create_model_from_pretrained(name, pretrained=weights)
            prepare = {
                "image": Preprocessing.of(transform) or transform,
                "text": open_clip.get_tokenizer(name),
            }
        return Network(model.to(device), prepare, device)


class OpenCLIPImageEncoder(_OpenCLIPTower, ImageEncoder):
    """The frozen image tower of an OpenCLIP model.

    Parameters
    ----------
    model_name : str, default="ViT-B-32/laion2b_s34b_b79k"
        ``"architecture/weights"`` as `open_clip.list_pretrained` names them, a hub name with
        OpenCLIP weights, or a folder that holds ``open_clip_config.json`` and weights.
    revision : str or None, default=None
        Branch, tag or commit of a hub model.
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
    OpenCLIPTextEncoder : The other tower; the two share one loaded model.
    TimmImageEncoder : Takes the same kinds of images; see its notes.

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

    pooling = "auto"

    def __init__(
        self,
        model_name: str = "ViT-B-32/laion2b_s34b_b79k",
        *,
        revision: str | None = None,
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
        self.crop = crop
        self.batch_size = batch_size
        self.engine = engine
        self.device = device
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.cache = cache
        self.on_error = on_error
        self.verbose = verbose

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "crop": self.crop}

    def _preprocessing(self, prepare: Any) -> Any:
        return prepare["image"]

    def _pixel_network(self, network: Network) -> torch.nn.Module:
        return _Tower(network.model, "encode_image")


class OpenCLIPTextEncoder(_OpenCLIPTower, TextEncoder):
    """The frozen text tower of an OpenCLIP model.

    Parameters
    ----------
    model_name : str, default="ViT-B-32/laion2b_s34b_b79k"
        ``"architecture/weights"`` as `open_clip.list_pretrained` names them, a hub name with
        OpenCLIP weights, or a folder that holds ``open_clip_config.json`` and weights.
    revision : str or None, default=None
        Branch, tag or commit of a hub model.
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
    OpenCLIPImageEncoder : The other tower; the two share one loaded model.

    References
    ----------
    .. [1] A. Radford et al., "Learning Transferable Visual Models From Natural Language
       Supervision", ICML 2021.

    Examples
    --------
    >>> from sklearn_ape.encoders import OpenCLIPTextEncoder
    >>> OpenCLIPTextEncoder(batch_size=16).get_params()["batch_size"]
    16
    """

    pooling = "auto"
    n_jobs = None  # tokenizing is light

    def __init__(
        self,
        model_name: str = "ViT-B-32/laion2b_s34b_b79k",
        *,
        revision: str | None = None,
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
        self.batch_size = batch_size
        self.engine = engine
        self.device = device
        self.dtype = dtype
        self.cache = cache
        self.on_error = on_error
        self.verbose = verbose

    def _module(self, network: Network) -> torch.nn.Module:
        return _Tower(network.model, "encode_text")

    def _tensors(self, network: Network, batch: list[Any]) -> tuple[torch.Tensor, ...]:
        with TOKENIZING:
            return (network.prepare["text"](batch),)


class _Tower(torch.nn.Module):
    """One side of a model of two towers."""

    def __init__(self, model: torch.nn.Module, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map a batch to (n, n_features)."""
        return getattr(self.model, self.method)(inputs)


def _known_names() -> list[str]:
    import open_clip

    return [f"{name}/{tag}" for name, tag in open_clip.list_pretrained()]


def _fetched(repo_id: str, revision: str | None) -> str:
    """Return the local folder of a hub model; safetensors where there are any."""
    from huggingface_hub import snapshot_download

    # Weights and features must be of one commit even when the branch moves on.
    revision = hub_commit(repo_id, revision, _CONFIG) or revision
    small = ["*.json", "*.txt", "*.model"]
    for weights in ("open_clip_*.safetensors", "open_clip_*.bin"):
        folder = snapshot_download(repo_id, revision=revision, allow_patterns=[*small, weights])
        if list(Path(folder).glob(weights)):
            return folder
    raise ValueError(
        f"The hub model {repo_id!r} has no OpenCLIP weights (open_clip_*.safetensors)."
    )
