"""Training of heads, compared with a hand-written loop and with loops of other libraries.

Training with a checkpoint is compared with training without one, and training on memory maps that
are not in the page cache with training on arrays in memory. Beside the hand-written loop, times
are CPU seconds, so that other work on the machine matters less; the others are wall-clock times.

Other libraries encode in every epoch, with both towers locked. Their images are tensors in memory
and their captions are tokenized, so only the loop is timed: forward through the locked towers,
backward through the projections, and a step of AdamW. The weights are random, which takes as long
as pretrained ones.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import nn
from torch.nn import functional

from sklearn_ape import APEAligner

from .._results import Comparison

_WIDTHS = 1280, 384
# The defaults of APEAligner. Its depth and precision are those of the hand-written loop.
_DROPOUT, _LOGIT_SCALE, _MAX_LOGIT_SCALE = 0.1, 1 / 0.07, 100.0
_LEARNING_RATE, _WEIGHT_DECAY, _WARMUP = 3e-3, 0.1, 0.05
_IMAGE_SIZE, _N_TOKENS, _EMBED_DIM = 224, 16, 512
# The shapes of all-MiniLM-L6-v2 and of ViT-Ti/16.
_MINILM = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
_VIT = {
    "hidden_size": 192,
    "num_hidden_layers": 12,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "image_size": _IMAGE_SIZE,
}


class EpochTimes(Callback):
    """Callback that records the seconds of every epoch.

    Parameters
    ----------
    clock : callable
        Clock, such as `time.process_time`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds: list[float] = []

    def __deepcopy__(self, memo: Any) -> EpochTimes:
        """Return this object: aligners copy their callbacks, and the copies must record here."""
        return self

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.start_ = self.clock()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Record the seconds since the start of the epoch."""
        self.seconds.append(self.clock() - self.start_)


def measure(quick: bool) -> list[Comparison]:
    """Measure seconds of epochs and rows per second."""
    n_rows, n_repeats = (2_000, 1) if quick else (20_000, 3)
    rows = [
        _compare_with_hand_written(n_rows, 2048, 1024, n_repeats, "at most 1.1"),
        _compare_with_hand_written(n_rows, 64, 64, n_repeats, ""),
        _compare_map_with_memory(27_000, 64) if quick else _compare_map_with_memory(40_000, 2048),
        _compare_checkpoint(n_rows, 2048, 5, n_repeats),
    ]
    n_images = 32 if quick else 256
    rate = n_images / min(time_epochs(*make_features(n_images), max_epochs=5, batch_size=32))
    peers = {
        "open_clip's train_one_epoch, EfficientNet-Lite0 and MiniLM locked": time_open_clip_epoch,
        "transformers' VisionTextDualEncoderModel, ViT-Ti/16 and MiniLM frozen": (
            time_transformers_epoch
        ),
    }
    for peer, time_epoch in peers.items():
        peer_rate = n_images / time_epoch(n_images, batch_size=32)
        name = f"an epoch of {n_images} pairs, encoded once"
        rows.append(Comparison(name, rate, "rows/s", peer, peer_rate))
    return rows


def make_features(n_rows: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((n_rows, width), dtype=np.float32) for width in _WIDTHS)


def time_epochs(
    image: np.ndarray,
    text: np.ndarray,
    clock: Callable[[], float] = time.perf_counter,
    device: str = "cpu",
    **parameters: object,
) -> list[float]:
    """Return the seconds of each epoch of a fit without validation."""
    times = EpochTimes(clock)
    aligner = APEAligner(
        init=None,
        depth=2,
        optimizer_params={"dtype": "float32"},
        early_stopping=False,
        random_state=0,
        device=device,
        callbacks=[("times", times)],
    )
    aligner.set_params(**parameters).fit(image, text)
    return times.seconds


def _compare_with_hand_written(
    n_rows: int, width: int, batch_size: int, n_repeats: int, target: str
) -> Comparison:
    image, text = make_features(n_rows)
    shape = {"width": width, "batch_size": batch_size, "max_epochs": 2}
    seconds: list[float] = []
    peer_seconds: list[float] = []
    for _ in range(n_repeats):
        seconds += time_epochs(image, text, time.process_time, **shape)
        peer_seconds += train_by_hand(image, text, **shape)
    name = f"an epoch of {n_rows:,} pairs, head of width {width}, batches of {batch_size:,}"
    return Comparison(
        name, min(seconds), "s", "the same written by hand", min(peer_seconds), target
    )


def train_by_hand(
    image: np.ndarray,
    text: np.ndarray,
    width: int,
    batch_size: int,
    max_epochs: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.process_time,
) -> list[float]:
    """Train the head of `APEAligner` in a plain loop and return the seconds of each epoch."""
    x, y = (torch.from_numpy(side).to(device) for side in (image, text))
    (x_mean, x_scale), (y_mean, y_scale) = (
        (side.mean(dim=0), side.std(dim=0, unbiased=False)) for side in (x, y)
    )
    head = nn.Sequential(
        nn.Linear(text.shape[1], width),
        nn.GELU(),
        nn.Dropout(_DROPOUT),
        nn.Linear(width, image.shape[1]),
    )
    head = head.to(device).train()
    log_scale = nn.Parameter(torch.tensor(_LOGIT_SCALE, device=device).log())
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in head.parameters() if p.ndim > 1],
                "weight_decay": _WEIGHT_DECAY,
            },
            {
                "params": [*(p for p in head.parameters() if p.ndim == 1), log_scale],
                "weight_decay": 0.0,
            },
        ],
        lr=_LEARNING_RATE,
    )
    n_batches = -(-len(x) // batch_size)
    n_steps, n_warmup = max_epochs * n_batches, round(_WARMUP * max_epochs * n_batches) or 1

    def schedule_rate(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        return 0.5 * (1 + np.cos(np.pi * min(1.0, (step - n_warmup) / (n_steps - n_warmup))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule_rate)
    rng, seconds = np.random.default_rng(0), []
    for _ in range(max_epochs):
        start = clock()
        total = 0.0
        for index in np.array_split(rng.permutation(len(x)), n_batches):
            rows = torch.from_numpy(index).to(device)
            embeddings = functional.normalize((x[rows] - x_mean) / x_scale, dim=1)
            targets = functional.normalize(head((y[rows] - y_mean) / y_scale), dim=1)
            logits = log_scale.exp() * embeddings @ targets.T
            classes = torch.arange(len(rows), device=device)
            loss = functional.cross_entropy(logits, classes)
            loss = (loss + functional.cross_entropy(logits.T, classes)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                log_scale.clamp_(max=np.log(_MAX_LOGIT_SCALE))
            total += loss.item()
        seconds.append(clock() - start)
    return seconds


def _compare_map_with_memory(n_rows: int, width: int) -> Comparison:
    """Compare an epoch on uncached memory maps with one on the same arrays in memory."""
    arrays = make_features(n_rows)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{side}.npy" for side in ("image", "text")]
        for path, array in zip(paths, arrays, strict=True):
            np.save(path, array)
        rates: dict[str, list[float]] = {"memory": [], "map": []}
        for _ in range(2):
            rates["memory"] += [
                n_rows / s for s in time_epochs(*arrays, max_epochs=1, width=width)
            ]
            for path in paths:
                _drop_from_page_cache(path)
            maps = (np.load(path, mmap_mode="r") for path in paths)
            rates["map"] += [n_rows / s for s in time_epochs(*maps, max_epochs=1, width=width)]
    name = f"train on a memory map of {n_rows:,} pairs, head of width {width}"
    return Comparison(
        name,
        max(rates["map"]),
        "rows/s",
        "the same arrays in memory",
        max(rates["memory"]),
        "at least 0.8",
    )


def _compare_checkpoint(n_rows: int, width: int, n_epochs: int, n_repeats: int) -> Comparison:
    """Compare a fit that writes a checkpoint after each epoch with one that writes none."""
    image, text = make_features(n_rows)
    aligner = APEAligner(init=None, early_stopping=False, random_state=0, device="cpu")
    aligner.set_params(width=width, max_epochs=n_epochs)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(n_repeats):
        for has_checkpoint, times in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                aligner.set_params(checkpoint=folder if has_checkpoint else None).fit(image, text)
                times.append(time.perf_counter() - start)
    name = f"{n_epochs} epochs of {n_rows:,} pairs, head of width {width}, with a checkpoint"
    peer = "the same without a checkpoint"
    return Comparison(name, min(seconds[True]), "s", peer, min(seconds[False]), "at most 1.1")


def _drop_from_page_cache(path: Path) -> None:
    """Make the next read come from the disk, as it does for a file larger than memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def time_open_clip_epoch(n_pairs: int, batch_size: int) -> float:
    """Return the seconds of an epoch of open_clip.

    The model is a CustomTextCLIP of a timm and a transformers tower, which ``lock_image_tower``
    and ``lock_text_tower`` lock. ``train_one_epoch`` trains the projections with ``ClipLoss``.
    """
    from open_clip.loss import ClipLoss
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
    from open_clip_train.train import train_one_epoch
    from transformers import BertConfig

    with tempfile.TemporaryDirectory() as folder:
        BertConfig(**_MINILM).save_pretrained(folder)
        model = CustomTextCLIP(
            _EMBED_DIM,
            CLIPVisionCfg(timm_model_name="tf_efficientnet_lite0", image_size=_IMAGE_SIZE),
            CLIPTextCfg(
                hf_model_name=folder,
                hf_model_pretrained=False,
                hf_proj_type="mlp",
                hf_pooler_type="mean_pooler",
            ),
            output_dict=True,
        )
    model.lock_image_tower(freeze_bn_stats=True)
    model.lock_text_tower()
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) < 2e6  # projections and logit scale
    images, tokens = _make_batches(n_pairs)
    batches = list(zip(images.split(batch_size), tokens.split(batch_size), strict=True))
    loader = _Loader(batches)
    loader.num_batches, loader.num_samples = len(batches), n_pairs
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    args = SimpleNamespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=True,
        grad_clip_norm=None,
        horovod=False,
        log_every_n_steps=10**9,
        rank=0,
        local_rank=0,
        log_local=False,
        world_size=1,
        batch_size=batch_size,
        wandb=False,
    )
    optimizer = torch.optim.AdamW(trainable)
    start = time.perf_counter()
    train_one_epoch(model, data, ClipLoss(), 0, optimizer, None, None, None, args)
    return time.perf_counter() - start


def time_transformers_epoch(n_pairs: int, batch_size: int) -> float:
    """Return the seconds of an epoch of transformers' VisionTextDualEncoderModel.

    Both towers are frozen. The two linear projections train with the loss that the model returns.
    """
    from transformers import (
        BertConfig,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
        ViTConfig,
    )

    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**_VIT), BertConfig(**_MINILM), projection_dim=_EMBED_DIM
    )
    model = VisionTextDualEncoderModel(config).train()
    for tower in (model.vision_model, model.text_model):
        tower.requires_grad_(False)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    images, tokens = _make_batches(n_pairs)
    start = time.perf_counter()
    for rows in torch.randperm(n_pairs).split(batch_size):
        optimizer.zero_grad()
        output = model(input_ids=tokens[rows], pixel_values=images[rows], return_loss=True)
        output.loss.backward()
        optimizer.step()
    return time.perf_counter() - start


class _Loader(list[Any]):
    """List of batches with the two attributes that open_clip reads."""

    num_batches: int
    num_samples: int


def _make_batches(n_pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n_pairs, 3, _IMAGE_SIZE, _IMAGE_SIZE, generator=generator)
    return images, torch.randint(1000, 20_000, (n_pairs, _N_TOKENS), generator=generator)
