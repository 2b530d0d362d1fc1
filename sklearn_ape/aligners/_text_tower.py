"""Trainable text tower, and its network (LiT)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import GradientNormClipping
from torch import nn

from ..devices import resolve_device
from ..encoders import TransformersTextEncoder
from ..encoders.resolve import resolve_encoder
from ..encoders.text_encoder import TOKENIZING, TextPreparation
from ..encoders.weights import Network
from ..heads import LinearHead, Standardize, TwoTower, head_state, restored_head
from ..persistence import FittedState
from ..training import AlignmentNet, DivergenceGuard, PairBatches, cosine_schedule, n_batches
from ..training.net import LOSSES
from ..utils.linalg import fingerprint
from ..utils.torch_state import default_state
from ..utils.validation import check_choice, check_integer, check_number


def check_text_training(aligner: Any) -> None:
    """Refuse parameters of `LiTAligner` that cannot be used; the message names the parameter."""
    check_choice(aligner.loss, "loss", tuple(LOSSES))
    check_choice(aligner.dtype, "dtype", ("auto", "float32", "bfloat16"))
    check_integer(aligner.n_components, "n_components", 1, optional=True)
    check_integer(aligner.batch_size, "batch_size", 2)
    check_integer(aligner.max_epochs, "max_epochs", 1)
    check_integer(aligner.n_iter_no_change, "n_iter_no_change", 1)
    check_integer(aligner.unlocked_layers, "unlocked_layers", 0, optional=True)
    check_integer(aligner.max_length, "max_length", 1, optional=True)
    check_number(aligner.validation_fraction, "validation_fraction", 0, 1, closed="neither")
    check_number(aligner.learning_rate, "learning_rate", 0, closed="neither")
    check_number(aligner.head_learning_rate, "head_learning_rate", 0, closed="neither")
    check_number(aligner.weight_decay, "weight_decay", 0)
    check_number(aligner.logit_scale, "logit_scale", 0, closed="neither")
    check_number(aligner.max_logit_scale, "max_logit_scale", aligner.logit_scale)
    resolve_device(aligner.device)


_ROWS_AT_ONCE = {"cpu": 64}


_ROWS_AT_ONCE_ELSEWHERE = 1024


_END = -1


class TextTower(nn.Module):
    """A trainable copy of a text encoder's network, and a linear map of its features.

    Parameters
    ----------
    text_encoder : TransformersTextEncoder or str
        What to copy, or the name of its model. The network that encoders share is not touched.
    max_length : int or None
        Tokens of a text that are read; None is the encoder's own limit.

    Raises
    ------
    TypeError
        When `text_encoder` is no network of the transformers library.
    """

    projection: LinearHead

    def __init__(self, text_encoder: Any, max_length: int | None) -> None:
        super().__init__()
        self.encoder = _encoder_of(text_encoder, max_length)
        # Not encoder.transform's network, which the whole process shares.
        with default_state():
            with torch.random.fork_rng(devices=[]):
                network = self.encoder._load(torch.device("cpu"))
            self.tower = network.model.float().eval()
            self.declared = network.prepare
            self.precision = "float32"
            self._used = self._strip()

    def trained_state(self) -> dict[str, Any]:
        """Return what was trained; all else is that of the encoder."""
        trained = [(name, p) for name, p in self.tower.named_parameters() if p.requires_grad]
        return {
            "encoder": self.encoder,
            "trained": {name: parameter.detach().numpy() for name, parameter in trained},
            "projection": head_state(self.projection),
        }

    @classmethod
    def restored(cls, state: FittedState, n_out: int) -> Self:
        """Return the tower that `trained_state` described; its encoder must be here."""
        tower = cls(state.value("encoder"), None)
        trained = state.part("trained")
        with torch.no_grad():
            for name, parameter in tower.tower.named_parameters():
                parameter.requires_grad_(name in trained)
                if name in trained:
                    array = trained.array(name, tuple(parameter.shape))
                    parameter.copy_(torch.from_numpy(array))
        projection = restored_head(state.part("projection"))
        if not isinstance(projection, LinearHead) or projection.n_out != n_out:
            raise ValueError(f"The text tower must end in a linear map to {n_out} numbers.")
        tower.projection = projection
        return tower

    def digest(self) -> str:
        """Return what tells the tower, as it is before training, from others."""
        weights = fingerprint(*(tensor.numpy() for tensor in self.tower.state_dict().values()))
        of_encoder = sorted(self.encoder._recorded_params().items())
        return hashlib.sha256(f"{weights}{of_encoder}".encode()).hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.tower.parameters()).device

    @property
    def n_out(self) -> int:
        """Size of the output."""
        return self.projection.n_out

    def tokenize(self, texts: list[str]) -> np.ndarray:
        """Turn texts into int32 (n_texts, longest), with -1 after the end of a text."""
        with TOKENIZING:
            found = self.declared.tokenize(
                self.declared.preparation(texts),
                truncation=True,
                max_length=self.encoder.max_length or self.declared.max_length,
                return_attention_mask=False,
            )["input_ids"]
        # A tokenizer may know no token for a text; a network needs one.
        rows = [row or [self.declared.tokenize.pad_token_id] for row in found]
        tokens = np.full((len(rows), max(map(len, rows))), _END, dtype=np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return tokens

    def project(self, tokens: torch.Tensor, n_out: int) -> None:
        """Set a new linear map, which centres and scales by the features of these texts."""
        with torch.no_grad():
            features = self.features(tokens)
        self.projection = LinearHead(features.shape[1], n_out).to(features.device)
        standardize = self.projection.standardize
        assert isinstance(standardize, Standardize)
        standardize.set(features)
        # One scale for all: a feature that hardly varies now may vary as the tower learns, and
        # its own scale would drown all others.
        standardize.scale.fill_(standardize.scale.square().mean().sqrt())

    def unlock(self, n_layers: int | None) -> None:
        """Let the last layers and what follows them train; None is the whole tower.

        Raises
        ------
        ValueError
            When there are fewer layers.
        """
        parameters, used = list(self.tower.parameters()), self._used_ids()
        first = len(parameters) if n_layers == 0 else 0
        if n_layers:
            layers = self._layers(n_layers)
            if n_layers > len(layers):
                raise ValueError(
                    f"unlocked_layers={n_layers}, but the text encoder has {len(layers)} layers: "
                    f"pass at most {len(layers)}, or None to train all of it."
                )
            wanted = id(next(layers[-n_layers].parameters()))
            # Modules stand in the order of the data: what comes before is locked.
            first = [id(parameter) for parameter in parameters].index(wanted)
        for number, parameter in enumerate(parameters):
            parameter.requires_grad_(number >= first and id(parameter) in used)

    @contextmanager
    def checkpointing(self, wanted: bool) -> Iterator[None]:
        """Compute activations twice instead of keeping them, while in the context.

        Raises
        ------
        ValueError
            When the network cannot do it.
        """
        if not wanted:
            yield
            return
        if not getattr(self.tower, "supports_gradient_checkpointing", False):
            raise ValueError(
                f"gradient_checkpointing=True, but {type(self.tower).__name__} cannot do it: pass "
                "False, and a smaller batch_size if memory is short."
            )
        # transformers renamed both in 5.x and warns of the old names.
        kind = (
            "activation" if hasattr(self.tower, "activation_checkpointing_enable") else "gradient"
        )
        getattr(self.tower, f"{kind}_checkpointing_enable")({"use_reentrant": False})
        # Its hooks are for inputs that must have gradients, cannot be pickled, and are not undone.
        self.tower.disable_input_require_grads()
        try:
            yield
        finally:
            getattr(self.tower, f"{kind}_checkpointing_disable")()

    def features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tower's features of texts as `tokenize` gives them."""
        # Texts of like length side by side need the least padding.
        order = (tokens != _END).sum(dim=1).argsort(descending=True, stable=True)
        size = _ROWS_AT_ONCE.get(self.device.type, _ROWS_AT_ONCE_ELSEWHERE)
        parts = [self._encode(tokens[rows]) for rows in order.split(size)]
        return torch.cat(parts)[order.argsort()]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map texts, as `tokenize` gives them, to (n_texts, n_out)."""
        return self.projection(self.features(tokens))

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        from transformers import BatchEncoding

        longest = int((tokens != _END).sum(dim=1).max())
        pad = self.declared.tokenize.pad_token_id

        def padded(batch: torch.Tensor, *, padding: Any, max_length: int, **_: Any) -> Any:
            width = max_length if padding == "max_length" else longest
            ids = nn.functional.pad(batch[:, :longest], (0, width - longest), value=_END).long()
            known = ids != _END
            ids = ids.masked_fill(~known, pad)
            return BatchEncoding({"input_ids": ids, "attention_mask": known.long()})

        device = self.device
        # The encoder pools as it always does; only its tokenizer has already done its work.
        declared = self.declared._replace(tokenize=padded, preparation=TextPreparation())
        network = Network(self.tower, declared, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            features = self.encoder._forward(network, tokens)  # type: ignore[arg-type]
        # torch drops rounded copies of weights where its outermost autocast ends. Inside an
        # autocast of the caller they would outlive the next step of the optimizer.
        torch.clear_autocast_cache()
        return features.float()

    def _layers(self, n_layers: int) -> nn.ModuleList:
        used = self._used_ids()
        for module in self.tower.modules():
            if isinstance(module, nn.ModuleList) and _ids(module) & used:
                return module
        raise ValueError(
            f"unlocked_layers={n_layers}, but {type(self.tower).__name__} is not built of layers: "
            "pass None."
        )

    def _used_ids(self) -> set[int]:
        return {id(p) for name, p in self.tower.named_parameters() if name in self._used}

    def _strip(self) -> frozenset[str]:
        """Drop what no text passes (an image tower, a decoder); name the weights that matter."""
        called: set[int] = set()
        hooks = [
            module.register_forward_pre_hook(lambda module, _: called.add(id(module)))
            for module in self.tower.modules()
        ]
        named = dict(self.tower.named_parameters())
        tokens = torch.from_numpy(self.tokenize(["a"]))
        with torch.enable_grad():
            self.tower.requires_grad_(True)
            features = self._encode(tokens)
            gradients = torch.autograd.grad(
                features.sum(), list(named.values()), allow_unused=True
            )
        for hook in hooks:
            hook.remove()
        used = {
            name: parameter
            for (name, parameter), gradient in zip(named.items(), gradients, strict=True)
            if gradient is not None
        }
        needed = {id(parameter) for parameter in used.values()}
        children = dict(self.tower.named_children())
        for name, child in children.items():
            siblings = [sibling for other, sibling in children.items() if other != name]
            shared = {id(module) for sibling in siblings for module in sibling.modules()}
            was_called = called & ({id(module) for module in child.modules()} - shared)
            weights = _ids(child).difference(*map(_ids, siblings))
            if weights and not was_called and not weights & needed:
                delattr(self.tower, name)
        return frozenset(used)


def _ids(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters()}


def _encoder_of(text_encoder: Any, max_length: int | None) -> TransformersTextEncoder:
    inner = text_encoder.estimator if isinstance(text_encoder, FrozenEstimator) else text_encoder
    if isinstance(inner, str):
        inner = resolve_encoder(inner, "text")
    if not isinstance(inner, TransformersTextEncoder):
        raise TypeError(
            "LiTAligner trains the text encoder itself, so text_encoder must be a "
            f"TransformersTextEncoder or the name of its model, not {type(inner).__name__}. "
            "APEAligner takes any encoder of texts."
        )
    encoder = clone(inner)
    if max_length is not None:
        encoder.set_params(max_length=max_length)
    return encoder


def adamw_of_two_rates(
    groups: Iterable[dict[str, Any]], lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return AdamW that keeps the rate of every group and decays matrices alone."""
    split = []
    for group in groups:
        trained = [parameter for parameter in group["params"] if parameter.requires_grad]
        for decay, some in (
            (weight_decay, [p for p in trained if p.ndim >= 2]),
            (0.0, [p for p in trained if p.ndim < 2]),
        ):
            if some:
                split.append({**group, "params": some, "weight_decay": decay})
    return torch.optim.AdamW(split, lr=lr)


_LARGEST_GRADIENT = 1.0


def tower_net(
    aligner: Any, module: TwoTower, n_pairs: int, seed: int, callbacks: list[Any]
) -> AlignmentNet:
    """Return the net that trains a tower as an aligner's parameters want it.

    Parameters
    ----------
    aligner : LiTAligner
        Its parameters, and ``device_``, are read.
    module : TwoTower
        A frozen head of images, and a `TextTower`.
    n_pairs : int
        Pairs to train on.
    seed : int
        Of the batches.
    callbacks : list of (str, skorch.callbacks.Callback)
        Besides those that every training has.
    """
    always = [
        ("divergence", DivergenceGuard()),
        ("clipping", GradientNormClipping(_LARGEST_GRADIENT)),
        ("schedule", cosine_schedule(aligner.max_epochs * n_batches(n_pairs, aligner.batch_size))),
    ]
    # What no pattern names (the map and the loss) keeps lr; errors name the tower's.
    rates = [
        ("*projection.*", {"lr": aligner.head_learning_rate}),
        ("log_scale", {"lr": aligner.head_learning_rate}),
        ("bias", {"lr": aligner.head_learning_rate}),
    ]
    return AlignmentNet(
        module=module,
        criterion=LOSSES[aligner.loss],
        criterion__logit_scale=aligner.logit_scale,
        criterion__max_logit_scale=aligner.max_logit_scale,
        criterion__learn_scale=aligner.learn_logit_scale,
        optimizer=adamw_of_two_rates,
        optimizer__param_groups=rates,
        optimizer__weight_decay=aligner.weight_decay,
        lr=aligner.learning_rate,
        batch_size=aligner.batch_size,
        max_epochs=aligner.max_epochs,
        iterator_train=PairBatches,
        iterator_train__shuffle=True,
        iterator_train__seed=seed,
        train_split=None,
        callbacks=always + callbacks,
        device=aligner.device_,
        verbose=int(aligner.verbose >= 2),
    )
