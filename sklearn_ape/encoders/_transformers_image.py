"""Image encoders of the transformers library."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch

from ..features import FeatureCache
from ._base import _check_choice
from ._hub import check_source, fingerprint_of, pretrained
from ._image_base import ImageEncoder
from ._networks import Network
from ._registry import library_version


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
        return _Features(network.model, self.pooling)


class _Features(torch.nn.Module):
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
        return _pooled(output.last_hidden_state, self.pooling, model)


def _pooled(last: torch.Tensor, pooling: str, model: Any) -> torch.Tensor:
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
