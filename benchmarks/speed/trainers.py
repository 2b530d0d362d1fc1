"""Training by the recipes of ShareLock and SAIL, compared with plain loops on the same features.

The loops are written here from the published settings; they are not the authors' programs. Both
sides get the same standardized features, batch size, number of steps and number of threads.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional

from sklearn_ape.datasets import load_noto_emoji, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder
from sklearn_ape.recipes import make_aligner

from .._results import Comparison
from .training import EpochTimes

_N_ROUNDS = 3
# SAIL's batches of 32,768 pairs and its 35,000 steps need more pairs and time than there are here,
# and at its learning rate of 1e-5 a few hundred steps hardly train the heads.
_SAIL_LEARNING_RATE = 1e-4
_BATCH_SIZES = {"sharelock": 1024, "sail": 256}
_N_EPOCHS = {"sharelock": 4, "sail": 2}


class Pairs(NamedTuple):
    """Standardized features of images and of their captions, row by row."""

    image: np.ndarray
    text: np.ndarray


class PeerLoop(NamedTuple):
    """Parts of a plain training loop."""

    embed_image: nn.Module
    embed_text: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    warmup: float
    clip_norm: float | None


class Embedders(NamedTuple):
    """Functions that embed features, and the seconds of each epoch of the training."""

    image: Callable[[np.ndarray], np.ndarray]
    text: Callable[[np.ndarray], np.ndarray]
    seconds: list[float]


def measure(quick: bool) -> list[Comparison]:
    """Measure the seconds per step, and recall@1 on held-out pairs."""
    train, test = load_pairs(300, 50) if quick else load_pairs()
    rows = []
    for name, loop in LOOPS.items():
        batch_size, n_epochs = (128, 2) if quick else (_BATCH_SIZES[name], _N_EPOCHS[name])
        n_batches = math.ceil(len(train.image) / batch_size)
        seconds: tuple[list[float], list[float]] = ([], [])
        recalls: tuple[list[float], list[float]] = ([], [])
        for seed in range(1 if quick else _N_ROUNDS):
            for side, fit in enumerate((fit_recipe, fit_by_hand)):
                fitted = fit(name, loop, train, batch_size, n_epochs, seed)
                seconds[side].extend(epoch / n_batches for epoch in fitted.seconds)
                recalls[side].append(compute_recall(fitted, test))
        title = f"{name} recipe, batches of {batch_size:,}"
        peer = f"{name}'s settings in a plain loop"
        ours, theirs = (statistics.median(values) for values in seconds)
        rows.append(
            Comparison(f"{title}: CPU time of a step", ours, "s", peer, theirs, "at most 1.2")
        )
        ours, theirs = (100 * statistics.mean(values) for values in recalls)
        trained = f"{title}: recall@1 after {n_epochs * n_batches} steps"
        rows.append(Comparison(trained, ours, "%", peer, theirs))
    return rows


def load_pairs(n_images: int | None = None, n_test: int = 300) -> tuple[Pairs, Pairs]:
    """Return features of OpenMoji and Noto emoji for training, and of OpenMoji with other names.

    No name of a test pair is among the names of the training pairs. `n_images` limits the number
    of images of each collection.
    """
    openmoji, noto = load_openmoji(), load_noto_emoji()
    images = [*openmoji.images[:n_images], *noto.images[:n_images]]
    captions = np.array([*openmoji.captions[:n_images], *noto.captions[:n_images]])
    image = TimmImageEncoder().transform(images)
    text = TransformersTextEncoder().transform(captions.tolist())
    names, first_rows = np.unique(openmoji.captions[:n_images], return_index=True)
    chosen = np.random.default_rng(0).permutation(len(names))[:n_test]
    is_train = ~np.isin(captions, names[chosen])
    image, text = (
        StandardScaler().fit(side[is_train]).transform(side).astype(np.float32)
        for side in (image, text)
    )
    test = Pairs(image[first_rows[chosen]], text[first_rows[chosen]])
    return Pairs(image[is_train], text[is_train]), test


def fit_recipe(
    name: str,
    loop: Callable[[int, int], PeerLoop],
    train: Pairs,
    batch_size: int,
    n_epochs: int,
    seed: int,
) -> Embedders:
    """Fit the aligner of a recipe."""
    times = EpochTimes(time.process_time)
    changes = {"learning_rate": _SAIL_LEARNING_RATE} if name == "sail" else {}
    aligner = make_aligner(
        name,
        batch_size=batch_size,
        max_epochs=n_epochs,
        early_stopping=False,
        optimizer_params={"dtype": "float32"},  # as the plain loop
        random_state=seed,
        device="cpu",
        callbacks=[("times", times)],
        **changes,
    )
    aligner.fit(train.image, train.text)
    return Embedders(aligner.transform, aligner.transform_text, times.seconds)


def fit_by_hand(
    name: str,
    loop: Callable[[int, int], PeerLoop],
    train: Pairs,
    batch_size: int,
    n_epochs: int,
    seed: int,
) -> Embedders:
    """Train in a plain loop."""
    torch.manual_seed(seed)
    peer = loop(train.image.shape[1], train.text.shape[1])
    image, text = (torch.from_numpy(side) for side in train)
    modules = nn.ModuleList([peer.embed_image, peer.embed_text, peer.loss]).train()
    n_batches = math.ceil(len(image) / batch_size)
    n_steps, n_warmup = n_epochs * n_batches, round(peer.warmup * n_epochs * n_batches) or 1

    def schedule_rate(step: int) -> float:
        if step < n_warmup:
            return (step + 1) / n_warmup
        return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / (n_steps - n_warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(peer.optimizer, schedule_rate)
    rng, seconds = np.random.default_rng(seed), []
    for _ in range(n_epochs):
        start = time.process_time()
        for rows in map(torch.from_numpy, np.array_split(rng.permutation(len(image)), n_batches)):
            embeddings = [
                functional.normalize(embed(side[rows]), dim=1)
                for embed, side in ((peer.embed_image, image), (peer.embed_text, text))
            ]
            loss = peer.loss(*embeddings)
            peer.optimizer.zero_grad()
            loss.backward()
            if peer.clip_norm is not None:
                nn.utils.clip_grad_norm_(modules.parameters(), peer.clip_norm)
            peer.optimizer.step()
            schedule.step()
            loss.item()
        seconds.append(time.process_time() - start)
    modules.eval()

    def make_embedder(module: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
        def embed(features: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return functional.normalize(module(torch.from_numpy(features)), dim=1).numpy()

        return embed

    return Embedders(make_embedder(peer.embed_image), make_embedder(peer.embed_text), seconds)


def compute_recall(fitted: Embedders, test: Pairs) -> float:
    """Return the mean recall@1 of both directions."""
    similarity = fitted.image(test.image) @ fitted.text(test.text).T
    rows = np.arange(len(similarity))
    return float(np.mean([(similarity.argmax(axis=axis) == rows).mean() for axis in (0, 1)]))


class _FixedScaleLoss(nn.Module):
    """Contrastive loss of CLIP with ShareLock's constant logit scale."""

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        logits = math.exp(2.6592) * image @ text.T
        classes = torch.arange(len(logits))
        rows = functional.cross_entropy(logits, classes)
        return (rows + functional.cross_entropy(logits.T, classes)) / 2


class _SigmoidLoss(nn.Module):
    """Pairwise sigmoid loss with SAIL's initial scale and bias, and its mean over all pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.log_scale.clamp_(0, math.log(100))
        logits = self.log_scale.exp() * image @ text.T + self.bias
        signs = 2 * torch.eye(len(logits)) - 1
        return -functional.logsigmoid(signs * logits).mean()


class _StarMLP(nn.Module):
    """Layer norm, the product of two wide linear maps, and a projection to 1,024."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_features)
        self.gate, self.up = (nn.Linear(n_features, 8 * n_features) for _ in range(2))
        self.down = nn.Linear(8 * n_features, 1024)
        for layer in (self.gate, self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        normed = self.norm(features)
        return self.down(functional.relu6(self.gate(normed)) * self.up(normed))


def _make_sharelock(n_image: int, n_text: int) -> PeerLoop:
    def make_layers() -> Iterator[nn.Module]:
        n_in = n_text
        for _ in range(3):
            yield from (nn.Linear(n_in, 4096), nn.BatchNorm1d(4096), nn.ReLU(), nn.Dropout(0.2))
            n_in = 4096
        yield nn.Linear(n_in, n_image)

    head = nn.Sequential(*make_layers())
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3, weight_decay=1e-4)
    return PeerLoop(nn.Identity(), head, _FixedScaleLoss(), optimizer, 0.03, 1.0)


def _make_sail(n_image: int, n_text: int) -> PeerLoop:
    from timm.optim import Lion

    modules = _StarMLP(n_image), _StarMLP(n_text), _SigmoidLoss()
    parameters = chain.from_iterable(module.parameters() for module in modules)
    optimizer = Lion(parameters, lr=_SAIL_LEARNING_RATE, weight_decay=1e-4)
    return PeerLoop(*modules, optimizer, 0.1, None)


LOOPS: dict[str, Callable[[int, int], PeerLoop]] = {
    "sharelock": _make_sharelock,
    "sail": _make_sail,
}
