"""Image encoders of the timm library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch.nn import Identity
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..devices import default_state
from ..features import FeatureCache
from ..utils.concurrency import map_threaded
from ..utils.validation import check_choice
from ._engine import JOINT_ACTIVATIONS, FusedConv
from .image_encoder import ImageEncoder, Preprocessing, pool_patches
from .items import EncodingError, ItemError, describe_item, summarize_errors
from .weights import (
    PACKAGED,
    Network,
    check_packaged,
    explain_load_errors,
    find_packaged_file,
    pin_revision,
    suggest_names,
    verify_digest,
)

# Power and lower bound of generalized-mean pooling, as in the reference implementation.
_GEM_POWER = 3
_GEM_EPSILON = 1e-6

# Largest difference of the mean over a grid from the pooled feature that is rounding.
_GRID_TOLERANCE = 1e-3


@dataclass(eq=False, repr=False)
class TimmImageEncoder(ImageEncoder):
    """Frozen network of the `timm` library that maps images to features.

    The weights are loaded by the first `transform` and shared by all clones in a process. They
    are neither trained nor pickled.

    Parameters
    ----------
    model_name : str, default="efficientnet_lite0"
        A short name of `list_encoders`, whose weights come from a Python package; a folder that
        timm saved (``config.json`` and ``model.safetensors``); a name on the Hugging Face Hub
        (``"timm/vit_small_patch14_dinov2.lvd142m"``); or any name of
        ``timm.list_models(pretrained=True)`` [1]_.
    revision : str or None, default=None
        Branch, tag or commit of a model on the Hugging Face Hub. None means the main branch.
    pooling : {"auto", "mean", "gem", "cls", "cls+mean"}, default="auto"
        Pooling of the last feature map to one vector. ``"auto"`` is the network's own pooling.
        ``"gem"`` is the generalized mean with power 3 [2]_, for convolutional networks whose last
        layer is a ReLU: it clips negative values. ``"cls"`` requires a class token.
    output : {"features", "logits"}, default="features"
        Output of the network. ``"logits"`` is the output of its pretrained classification head,
        whose classes are in `class_names`.
    crop : {"center", "pad"}, default="center"
        Treatment of images that are not square. ``"center"`` uses the network's own
        preprocessing, which crops the borders. ``"pad"`` adds white borders instead.
    views : {1, 2, 4}, default=1
        Number of views of an image whose features are averaged. 1 uses the image only, 2 adds the
        mirrored image, and 4 adds a copy scaled by 2/3 on white and the center scaled by 4/3.
    batch_size : {"auto"} or int, default="auto"
        Number of images per forward pass, of which each view counts as one. ``"auto"`` is the
        fastest size. It is halved if the memory of the GPU is too small. On a CPU, each of the
        `n_jobs` threads computes a batch, so that large batches take much memory.
    engine : {"auto", "torch", "onnx", "openvino"}, default="auto"
        Library that computes the network. ``"auto"`` uses the fastest installed one: OpenVINO or
        ONNX Runtime on a CPU, torch on a GPU. For an engine other than torch, the network is
        exported once into a folder next to a cache on disk, or else in your user cache, and its
        features are compared with torch's whenever it is loaded.
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
        Cache of features by the content of the image. ``"memory"`` keeps features in this
        process, a path or a `DiskFeatureCache` keeps them on disk, and None disables the cache.
    on_error : {"raise", "nan"}, default="raise"
        Treatment of images that cannot be read. ``"raise"`` raises an EncodingError that names
        them. ``"nan"`` fills their rows with NaN, warns, and lists them in ``errors_``.
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
    TransformersImageEncoder : Image encoders of the transformers library.
    OpenCLIPImageEncoder : Image towers of CLIP models.

    Notes
    -----
    Images are paths, `PIL.Image` objects, bytes of a file, uint8 arrays of shape (H, W, 3) or
    dicts with "bytes" or "path" (images of Hugging Face datasets with ``decode=False``).
    Transparent pixels are blended with white, EXIF rotation is applied, the first frame of an
    animation is used, and 16-bit, palette and CMYK images are converted.

    References
    ----------
    .. [1] R. Wightman, "PyTorch Image Models", 2019. https://github.com/huggingface/pytorch-image-models
    .. [2] F. Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation",
       IEEE TPAMI 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape.encoders import TimmImageEncoder
    >>> images = [np.zeros((64, 64, 3), dtype=np.uint8), np.ones((64, 64, 3), dtype=np.uint8)]
    >>> TimmImageEncoder("efficientnet_lite0").transform(images).shape
    (2, 1280)
    """

    model_name: str = "efficientnet_lite0"
    _: KW_ONLY
    revision: str | None = None
    pooling: str = "auto"
    output: str = "features"
    crop: str = "center"
    views: int = 1
    batch_size: int | str = "auto"
    engine: str = "auto"
    device: str | torch.device | None = "auto"
    dtype: str = "float32"
    n_jobs: int | None = None
    cache: str | PathLike[str] | FeatureCache | None = "memory"
    on_error: str = "raise"
    verbose: int | None = None

    _library = "timm"

    @property
    def class_names(self) -> list[str]:
        """Names of the classes of the network's classification head, in the order of the logits.

        Raises
        ------
        ValueError
            If the names are unknown.
        """
        from timm.data import ImageNetInfo, infer_imagenet_subset

        model = self._get_network().model
        names = (model.pretrained_cfg or {}).get("label_names")
        if names:
            return list(names)
        subset = infer_imagenet_subset(model)
        if not subset:
            raise ValueError(
                f"model_name={self.model_name!r} has a classification head whose class names are "
                "unknown. Use an ImageNet model, or a model with label_names in its config."
            )
        info = ImageNetInfo(subset)
        return [info.index_to_description(index) for index in range(info.num_classes())]

    @default_state()
    def transform_grid(
        self, X: Sequence[Any], *, enlarge: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute the features of the cells of a grid on each image.

        The mean of an image's cells is its row of `transform`, up to rounding, unless `enlarge` is
        True. Pooling must be a mean or a generalized mean. Features are not cached.

        Parameters
        ----------
        X : sequence of length n_samples
            Images, as for `transform`.
        enlarge : bool, default=False
            Whether the network sees the images in twice its usual size, so that the grid has twice
            as many rows and columns. Ignored by networks with a fixed input size, such as vision
            transformers, and with unusual preprocessing.

        Returns
        -------
        features : ndarray of shape (n_samples, n_rows, n_columns, n_features) and dtype float32
            Features of the cells. With ``pooling="gem"``, they are scaled such that their mean is
            the generalized mean.
        pixels : ndarray of shape (n_samples, height, width, 3) and dtype uint8
            The part of the images that the network sees, in its size.

        Raises
        ------
        EncodingError
            If an image cannot be read.
        ValueError
            If the pooling is not a mean, or `views` is not 1.

        See Also
        --------
        sklearn_ape.inspection.SimilarityMapDisplay : Shows where an image is similar to a text.

        Examples
        --------
        >>> from sklearn.datasets import load_sample_images
        >>> from sklearn_ape.encoders import TimmImageEncoder
        >>> photos = load_sample_images().images
        >>> encoder = TimmImageEncoder("efficientnet_lite0")
        >>> features, pixels = encoder.transform_grid(photos)
        >>> features.shape, pixels.shape
        ((2, 7, 7, 1280), (2, 224, 224, 3))
        """
        import timm

        self._check_parameters()
        if self.views != 1 or self.output != "features":
            raise ValueError("transform_grid requires views=1 and output='features'.")
        network = self._get_network()
        # Not the network's own configuration, in which timm saves False if it saves the size.
        config = timm.get_pretrained_cfg(network.model.pretrained_cfg.get("architecture", ""))
        is_fixed = getattr(config, "fixed_input_size", True)
        prepare = network.prepare
        if enlarge and not is_fixed and isinstance(prepare, Preprocessing):
            prepare = prepare.enlarge()
        module: Any = self._make_module(network)
        items, errors = self._as_list(X), {}

        def compute(row: int) -> tuple[np.ndarray, np.ndarray] | None:
            try:
                self._check_item(items[row])
                prepared = self._prepare_item(prepare, items[row])
            except ItemError as error:
                errors[row] = describe_item(items[row], error)
                return None
            with default_state(), torch.inference_mode():
                (tensor,) = self._make_tensors(network, [prepared])
                normalized = module.normalize(tensor.to(network.device))
                last = network.model.forward_features(normalized)
                grid = module.network.split_pooling(last)
                pooled = module.network.pool(last).float()
                mean, tolerance = grid.mean(dim=(1, 2)), _GRID_TOLERANCE * pooled.abs().max()
                if mean.shape != pooled.shape or (mean - pooled).abs().max() > tolerance:
                    raise ValueError(
                        f"pooling={self.pooling!r} of {self.model_name!r} is not a mean over the "
                        "image. Pass pooling='mean'."
                    )
                return grid.cpu().numpy(), _to_bytes(tensor)

        results = list(map_threaded(compute, range(len(items)), self._count_threads()))
        if errors:  # also with on_error="nan": an image without pixels cannot be shown
            errors = dict(sorted(errors.items()))
            raise EncodingError(summarize_errors(errors, self._modality), errors)
        grids, pixels = zip(*filter(None, results), strict=True)
        return np.concatenate(grids), np.concatenate(pixels)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice(self.pooling, "pooling", ("auto", "mean", "gem", "cls", "cls+mean"))
        check_choice(self.output, "output", ("features", "logits"))
        if not isinstance(self.views, Integral) or self.views not in (1, 2, 4):
            raise ValueError(f"views must be 1, 2 or 4, not {self.views!r}.")
        if self.model_name in PACKAGED:
            check_packaged(self)
        elif not os.path.isdir(self.model_name) and "/" not in self.model_name:
            import timm

            if timm.models.is_model_pretrained(self.model_name):
                return
            names = [*PACKAGED, *timm.list_models(), *timm.list_models(pretrained=True)]
            raise ValueError(
                f"model_name={self.model_name!r} is not an image encoder. Pass a short name of "
                "list_encoders(), a folder, a hub name or a pretrained model of timm."
                + suggest_names(self.model_name, names)
            )

    def _get_weights_key(self) -> str:
        return f"{self.model_name}@{self.revision} {self.crop}"

    def _get_hub_id(self) -> str:
        if "/" in self.model_name:
            return self.model_name.removeprefix("hf-hub:")
        import timm

        config = timm.get_pretrained_cfg(self.model_name)
        return getattr(config, "hf_hub_id", None) or self.model_name

    def _make_timm_name(self) -> str:
        """Return the name of the model for `timm.create_model`."""
        if os.path.isdir(self.model_name):
            return f"local-dir:{self.model_name}"
        if "/" in self.model_name or self.revision is not None:
            revision = pin_revision(self._get_hub_id(), self.revision)
            suffix = f"@{revision}" if revision is not None else ""
            return f"hf-hub:{self._get_hub_id()}{suffix}"
        return self.model_name

    def _load_network(self, device: torch.device) -> Network:
        import timm

        model: Any
        if self.model_name in PACKAGED:
            model = timm.create_model(PACKAGED[self.model_name].architecture)
            path = verify_digest(self.model_name, find_packaged_file(self.model_name))
            weights = torch.load(path, map_location="cpu", weights_only=True)
            # The package has the same tensors in the same order, but other names.
            model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
        else:
            with explain_load_errors(self.model_name):
                model = timm.create_model(self._make_timm_name(), pretrained=True)
        config = timm.data.resolve_model_data_config(model)
        if config["input_size"][0] != 3:
            raise ValueError(
                f"model_name={self.model_name!r} takes images of {config['input_size'][0]} "
                "channels, but images are converted to 3. Use a model with in_chans=3."
            )
        if self.crop == "pad":
            config["crop_pct"] = 1.0
        transform = timm.data.create_transform(**config)
        model = model.to(device, memory_format=torch.channels_last)
        return Network(
            _fold_batch_norms(model.eval(), tuple(config["input_size"])),
            Preprocessing.from_transform(transform) or transform,
            device,
        )

    def _make_pixel_network(self, network: Network) -> torch.nn.Module:
        if self.output == "logits" and not network.model.num_classes:
            raise ValueError(
                f"output='logits' needs a classification head, which {self.model_name!r} does not "
                "have. Use output='features'."
            )
        return _Features(network.model, self.pooling, self.output)


class _Features(torch.nn.Module):
    """A timm network with a choice of pooling or logits."""

    def __init__(self, model: Any, pooling: str, output: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.output = output
        self._has_cls = any("cls_token" in name for name, _ in model.named_parameters())
        # VOLO and PiT lack it. It counts registers, too.
        self._n_prefix = getattr(model, "num_prefix_tokens", int(self._has_cls))
        self._has_channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels (n, 3, height, width) to (n, n_features)."""
        if self.output == "logits":
            return self.model(pixels)
        # Pooling, powers and means are computed in float32 even if the network is not.
        last = self.model.forward_features(pixels)
        if not isinstance(last, list):
            return self.pool(last.float())
        if self.pooling != "auto":
            raise ValueError(
                f"pooling={self.pooling!r} is not supported for {type(self.model).__name__}, "
                "which returns features of several scales. Use 'auto'."
            )
        return self.model.forward_head([scale.float() for scale in last], pre_logits=True)

    def pool(self, last: torch.Tensor) -> torch.Tensor:
        """Map the last features to (n, n_features).

        They are a map (n, channels, h, w) or (n, h, w, channels), or tokens (n, tokens, width).
        """
        if self.pooling == "auto":
            return self.model.forward_head(last, pre_logits=True)
        if self.pooling == "gem" and last.ndim != 4:
            raise ValueError(
                "pooling='gem' needs a network whose last features are a map with height and "
                "width, but this network returns tokens. Use 'auto', 'mean' or 'cls'."
            )
        if last.ndim != 4 or self.pooling not in ("mean", "gem"):
            has_prefix = last.ndim == 3 and (self._has_cls or self.pooling == "mean")
            return pool_patches(last, self.pooling, self._n_prefix if has_prefix else 0)
        spatial = (1, 2) if self._has_channels_last else (2, 3)
        if self.pooling == "mean":
            return last.mean(dim=spatial)
        cubes = last.clamp(min=_GEM_EPSILON) ** _GEM_POWER
        return cubes.mean(dim=spatial) ** (1 / _GEM_POWER)

    def split_pooling(self, last: torch.Tensor) -> torch.Tensor:
        """Return features (n, h, w, width) of the cells whose mean is the pooled feature."""
        if isinstance(last, list) or last.ndim == 3:  # of several scales, or tokens
            grid_size = getattr(getattr(self.model, "patch_embed", None), "grid_size", ())
            if isinstance(last, list) or np.prod(grid_size) != last.shape[1] - self._n_prefix:
                raise ValueError(
                    f"{type(self.model).__name__} has no grid of features. Choose a convolutional "
                    "network or a vision transformer of timm."
                )
            return last[:, self._n_prefix :].unflatten(1, tuple(grid_size)).float()
        last = (last if self._has_channels_last else last.permute(0, 2, 3, 1)).float()
        if self.pooling != "gem":
            return last
        cubes = last.clamp(min=_GEM_EPSILON) ** _GEM_POWER
        pooled = cubes.mean(dim=(1, 2), keepdim=True) ** (1 / _GEM_POWER)
        return cubes / pooled ** (_GEM_POWER - 1)


def _fold_batch_norms(model: torch.nn.Module, size: tuple[int, ...]) -> torch.nn.Module:
    """Return a copy whose convolutions include the batch normalizations that follow them.

    On a CPU they also include activations and padding, see `FusedConv`. The features are the same
    up to rounding. The network itself is returned if it uses a convolution in an unusual way or
    cannot be copied.
    """
    if not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
        return model
    try:
        return _try_to_fold(model, size)
    except Exception:  # of any kind, since networks are code of others
        return model


def _try_to_fold(model: Any, size: tuple[int, ...]) -> Any:
    from timm.layers import BatchNormAct2d

    folded = deepcopy(model)
    names = {module: name for name, module in folded.named_modules()}
    device = next(model.parameters()).device
    pixels = torch.rand((1, *size), generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        expected, normalized_convs = _trace_batch_norms(folded, pixels)
        for conv, norm, input_size in normalized_convs:
            joint: Any = fuse_conv_bn_eval(conv, norm)
            rest = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
            if device.type == "cpu" and _can_be_fused(joint):
                is_next = rest and isinstance(norm.drop, Identity)
                can_join = is_next and type(norm.act) in JOINT_ACTIVATIONS
                activation = rest.pop() if can_join else Identity()
                joint = FusedConv(joint, activation, input_size)
            folded.set_submodule(names[conv], joint)
            folded.set_submodule(names[norm], torch.nn.Sequential(*rest))
        features, tolerance = folded.forward_features(pixels), 1e-3 * float(expected.abs().max())
        is_same = torch.allclose(features, expected, rtol=1e-3, atol=tolerance)
    return folded if is_same else model


def _can_be_fused(conv: torch.nn.Conv2d) -> bool:
    from timm.layers import Conv2dSame

    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    # In a dilated kernel, a row of zeros would shift the others by several rows.
    is_same = type(conv) is Conv2dSame and conv.dilation == (1, 1)
    return is_same or type(conv) is torch.nn.Conv2d


def _trace_batch_norms(
    model: Any, pixels: torch.Tensor
) -> tuple[torch.Tensor, list[tuple[torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.Size]]]:
    """Return features, and convolutions with the batch norm of the output and the input size."""
    from timm.layers import BatchNormAct2d

    # Convolutions and the size of their input, by their output.
    sources: dict[torch.Tensor, tuple[torch.nn.Conv2d, torch.Size]] = {}
    normalized_convs = []

    def note_output(conv: torch.nn.Conv2d, inputs: Any, output: torch.Tensor) -> None:
        sources[output] = conv, inputs[0].shape[2:]

    def note_input(norm: torch.nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        if inputs[0] in sources:  # tensors are compared by identity
            conv, input_size = sources[inputs[0]]
            normalized_convs.append((conv, norm, input_size))

    hooks = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            hooks.append(module.register_forward_hook(note_output))
        elif type(module) in (torch.nn.BatchNorm2d, BatchNormAct2d):
            hooks.append(module.register_forward_pre_hook(note_input))
    # Not the logits: those of a new classification head may be zero for all features.
    features = model.forward_features(pixels)
    for hook in hooks:
        hook.remove()
    return features, normalized_convs


def _to_bytes(pixels: torch.Tensor) -> np.ndarray:
    """Return prepared images as bytes (n, height, width, 3)."""
    if pixels.dtype == torch.uint8:
        return pixels.numpy()
    pixels = pixels.permute(0, 2, 3, 1)
    low, high = pixels.amin(), pixels.amax()
    return (255 * (pixels - low) / (high - low).clamp(min=1e-6)).byte().numpy()
