"""Image encoders of the timm library."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..features import FeatureCache
from .base import _check_choice
from .image_encoder import NUMBERS_OF_VIEWS, ImageEncoder, Preprocessing
from .weights import (
    PACKAGED,
    Network,
    digest_folder,
    hub_commit,
    is_for,
    library_version,
    loading,
    packaged_file,
    suggest_names,
    verify_digest,
)

# Of generalised-mean pooling: the power, and the least value, as its authors have them.
_GEM_POWER = 3
_GEM_LEAST = 1e-6


class TimmImageEncoder(ImageEncoder):
    """A frozen `timm` network that turns images into features.

    The weights are loaded at the first `transform`, shared by all clones in a process and never
    trained nor pickled.

    Parameters
    ----------
    model_name : str, default="efficientnet_lite0"
        A short name of `list_encoders`, whose weights come from a Python package; a folder that
        timm saved (``config.json`` and ``model.safetensors``); a hub name
        (``"timm/vit_small_patch14_dinov2.lvd142m"``); or any pretrained name of
        ``timm.list_models(pretrained=True)``.
    revision : str or None, default=None
        Branch, tag or commit of a hub model.
    pooling : {"auto", "mean", "gem", "cls", "cls+mean"}, default="auto"
        How the last feature map becomes one vector. ``"auto"`` is the network's own way.
        ``"gem"`` is the generalised mean with power 3 [3]_, nearer to the maximum than the mean
        is; it is for convolutional networks, and for maps after a ReLU, since negative numbers
        count as zero. ``"cls"`` needs a network with a class token.
    output : {"features", "logits"}, default="features"
        ``"logits"`` gives the scores of the network's own classification head, whose columns
        `class_names` names.
    crop : {"center", "pad"}, default="center"
        ``"center"`` is the network's own preprocessing, which cuts the borders off. ``"pad"``
        makes an image square on white first and cuts nothing.
    views : {1, 2, 4}, default=1
        Views of an image whose features are averaged: 1 is the image alone; 2 adds its mirror
        image; 4 adds a smaller copy (at 2/3 of the size, on white) and a larger one (the middle,
        at 4/3). The time grows in proportion.
    batch_size : {"auto"} or int, default="auto"
        Images in one pass of the network; each view counts as one. ``"auto"`` is what the
        engine is fastest with. On a GPU whose memory is too small, it is halved.
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
        Where features are kept, by the content of the image: in this process, in a folder (as
        a `DiskFeatureCache` as well, which can halve its size), or nowhere. It serves fit, score
        and predict alike.
    on_error : {"raise", "nan"}, default="raise"
        What an image that cannot be read does: stop the work, or become a row of NaN that is
        named in a warning and in ``errors_``.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    errors_ : dict of {int: str}
        Bad rows of the last `transform` and what is wrong with them.

    See Also
    --------
    TransformersImageEncoder : Image encoders of the transformers library.
    OpenCLIPImageEncoder : Image towers of CLIP models.

    Notes
    -----
    Images may be paths, `PIL.Image` objects, bytes of a file, uint8 arrays of shape (H, W, 3) or
    dicts with "bytes" or "path", as Hugging Face data sets hold them undecoded. Transparency is
    shown on white, EXIF rotation is applied, the first frame of an animation is taken, and
    16-bit, palette and CMYK images are converted.

    References
    ----------
    .. [1] R. Wightman, "PyTorch Image Models", 2019. https://github.com/huggingface/pytorch-image-models
    .. [2] M. Tan and Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
       Networks", ICML 2019.
    .. [3] F. Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation",
       IEEE TPAMI 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.encoders import TimmImageEncoder
    >>> images = [np.zeros((64, 64, 3), dtype=np.uint8), np.ones((64, 64, 3), dtype=np.uint8)]
    >>> TimmImageEncoder("efficientnet_lite0").transform(images).shape
    (2, 1280)
    """

    def __init__(
        self,
        model_name: str = "efficientnet_lite0",
        *,
        revision: str | None = None,
        pooling: str = "auto",
        output: str = "features",
        crop: str = "center",
        views: int = 1,
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
        self.output = output
        self.crop = crop
        self.views = views
        self.batch_size = batch_size
        self.engine = engine
        self.device = device
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.cache = cache
        self.on_error = on_error
        self.verbose = verbose

    @property
    def class_names(self) -> list[str]:
        """Names of the classes of the network's own head, in the order of the logits.

        Raises
        ------
        ValueError
            When they are not known.
        """
        from timm.data import ImageNetInfo, infer_imagenet_subset

        model = self._network().model
        names = (model.pretrained_cfg or {}).get("label_names")
        if names:
            return list(names)
        subset = infer_imagenet_subset(model)
        if not subset:
            raise ValueError(
                f"The classes of the head of {self.model_name!r} have no known names."
            )
        info = ImageNetInfo(subset)
        return [info.index_to_description(index) for index in range(info.num_classes())]

    def _check_parameters(self) -> None:
        super()._check_parameters()
        _check_choice("pooling", self.pooling, ("auto", "mean", "gem", "cls", "cls+mean"))
        _check_choice("output", self.output, ("features", "logits"))
        if self.views not in NUMBERS_OF_VIEWS:
            raise ValueError(f"views must be 1, 2 or 4, not {self.views!r}.")
        if self.model_name in PACKAGED:
            if not is_for(self.model_name, self):
                raise ValueError(
                    f"{self.model_name!r} is no encoder of images: use "
                    f"{PACKAGED[self.model_name].encoder}."
                )
            packaged_file(self.model_name)
        elif not os.path.isdir(self.model_name) and "/" not in self.model_name:
            import timm

            if timm.models.is_model_pretrained(self.model_name):
                return
            known = [*PACKAGED, *timm.list_models(), *timm.list_models(pretrained=True)]
            raise ValueError(
                f"No image encoder is called {self.model_name!r}: it is no short name of "
                "list_encoders(), no folder, no hub name and no pretrained model of timm."
                + suggest_names(self.model_name, known)
            )

    def _weights_key(self) -> str:
        return f"{self.model_name}@{self.revision} {self.crop}"

    def _identity(self) -> dict[str, Any]:
        # One view is left unsaid, so that caches from before there were several stay good.
        several = {} if self.views == 1 else {"views": int(self.views)}
        return {
            "weights": self._fingerprint(),
            "library": library_version("timm"),
            "pooling": self.pooling,
            "output": self.output,
            "crop": self.crop,
            **several,
        }

    def _known_weights(self) -> str | None:
        if self.model_name in PACKAGED:
            return PACKAGED[self.model_name].sha256
        if os.path.isdir(self.model_name):
            return digest_folder(Path(self.model_name))
        commit = hub_commit(self._hub_id(), self.revision)
        return f"{self.model_name}@{commit}" if commit else None

    def _fingerprint(self) -> str:
        weights = self._known_weights()
        if weights is None:
            self._network()
            weights = self._known_weights() or f"{self.model_name}@{self.revision}"
        return weights

    def _hub_id(self) -> str:
        """Return the hub name of a model that lies on a hub."""
        if "/" in self.model_name:
            return self.model_name.removeprefix("hf-hub:")
        import timm

        config = timm.get_pretrained_cfg(self.model_name)
        return getattr(config, "hf_hub_id", None) or self.model_name

    def _address(self) -> str:
        """Return the model's name as timm wants it."""
        if os.path.isdir(self.model_name):
            return f"local-dir:{self.model_name}"
        if "/" in self.model_name or self.revision is not None:
            # Weights and features must be of one commit even when the branch moves on.
            revision = hub_commit(self._hub_id(), self.revision) or self.revision
            at = f"@{revision}" if revision is not None else ""
            return f"hf-hub:{self._hub_id()}{at}"
        return self.model_name

    def _load(self, device: torch.device) -> Network:
        import timm

        model: Any
        if self.model_name in PACKAGED:
            model = timm.create_model(PACKAGED[self.model_name].architecture)
            path = verify_digest(self.model_name, packaged_file(self.model_name))
            theirs = torch.load(path, map_location="cpu", weights_only=True)
            # The same tensors in the same order under other names.
            ours = zip(model.state_dict(), theirs.values(), strict=True)
            model.load_state_dict(dict(ours))
        else:
            with loading(self.model_name):
                model = timm.create_model(self._address(), pretrained=True)
        config = timm.data.resolve_model_data_config(model)
        if self.crop == "pad":
            config["crop_pct"] = 1.0
        transform = timm.data.create_transform(**config)
        return Network(
            model.to(device, memory_format=torch.channels_last),
            Preprocessing.of(transform) or transform,
            device,
        )

    def _pixel_network(self, network: Network) -> torch.nn.Module:
        return _Features(network.model, self.pooling, self.output)


class _Features(torch.nn.Module):
    """A timm network up to the features asked for."""

    def __init__(self, model: torch.nn.Module, pooling: str, output: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.output = output

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels (n, 3, height, width) to (n, n_features)."""
        model: Any = self.model
        if self.output == "logits":
            return model(pixels)
        last = model.forward_features(pixels)
        if self.pooling == "auto":
            return model.forward_head(last, pre_logits=True)
        return _pooled(last, self.pooling, model)


def _pooled(last: torch.Tensor, pooling: str, model: Any) -> torch.Tensor:
    """Pool a feature map (n, channels, h, w), (n, h, w, channels) or tokens (n, tokens, width)."""
    n_prefix = getattr(model, "num_prefix_tokens", 0) if last.ndim == 3 else 0
    if pooling == "gem" and last.ndim != 4:
        raise ValueError(
            "pooling='gem' needs a network whose last features are a map with height and width, "
            "and this one gives tokens; use 'auto', 'mean' or 'cls'."
        )
    if pooling not in ("mean", "gem") and not n_prefix:
        raise ValueError(f"pooling={pooling!r} needs a network with a class token; use 'mean'.")
    if last.ndim == 4:
        spatial = (1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else (2, 3)
        if pooling == "mean":
            return last.mean(dim=spatial)
        # Cubes are too large for half precision.
        cubes = last.float().clamp(min=_GEM_LEAST) ** _GEM_POWER
        return cubes.mean(dim=spatial) ** (1 / _GEM_POWER)
    mean = last[:, n_prefix:].mean(dim=1)
    if pooling == "mean":
        return mean
    return last[:, 0] if pooling == "cls" else torch.cat([last[:, 0], mean], dim=1)
