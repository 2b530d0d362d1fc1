"""Trainable text tower of `LiTAligner`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import clone
from torch import nn

from ..devices import default_state
from ..encoders import TransformersTextEncoder
from ..encoders.resolve import resolve_encoder
from ..encoders.weights import Network, raise_for_random_weights
from ..heads import LinearHead, Standardize, get_head_state, restore_head
from ..persistence.mixins import FittedState
from ..utils.linalg import fingerprint
from ..utils.sklearn_compat import unfreeze

# On a CPU, batches of similar lengths waste less time on padding; a GPU needs large batches.
_BLOCK_SIZE_ON_CPU = 64
_BLOCK_SIZE = 1024

# Fills the rows of tokens behind the end of a text. It is not a token of any tokenizer.
_PADDING = -1


class TextTower(nn.Module):
    """A trainable copy of a text encoder's network, followed by a linear map.

    The network that encoders share is left unchanged. `max_length` is the maximum number of tokens
    of a text; None is the limit of the encoder.
    """

    projection: LinearHead

    def __init__(self, text_encoder: Any, max_length: int | None) -> None:
        super().__init__()
        self.encoder = _copy_encoder(text_encoder, max_length)
        # `_load_network` makes a new network. `_get_network` would return the one that encoders
        # share.
        with default_state():
            with torch.random.fork_rng(devices=[]):
                network = self.encoder._load_network(torch.device("cpu"))
            self.tower = network.model.float().eval()
            self.pipeline = network.prepare
            self.uses_bfloat16 = False
            self._used_names = self._remove_unused_modules()

    def check(self) -> None:
        """Raise ValueError if embeddings depend on random weights or on the rest of a batch."""
        names = self._used_names & self.tower.missing_weights
        raise_for_random_weights(self.encoder.model_name, names)
        network = Network(self.tower, self.pipeline, self.device)
        if self.encoder._is_sensitive_to_padding(network):
            raise ValueError(
                f"text_encoder={self.encoder!r} does not mask padding, so that it cannot be "
                "trained with batches of captions. Pass another text encoder, or use APEAligner."
            )

    def get_state(self) -> dict[str, Any]:
        """Return the trained weights, the linear map and the encoder, without its weights."""
        return {
            "encoder": self.encoder,
            "trained": {name: tensor.numpy() for name, tensor in self._list_trained().items()},
            "projection": get_head_state(self.projection),
        }

    @classmethod
    def from_state(cls, state: FittedState, n_out: int) -> Self:
        """Return the tower whose `get_state` was saved."""
        tower = cls(state.value("encoder"), None)
        trained = state.part("trained")
        for name, parameter in tower.tower.named_parameters():
            parameter.requires_grad_(name in trained)
        for name, tensor in tower._list_trained().items():
            if name in trained:  # older files have no buffers
                array = trained.array(name, tuple(tensor.shape), kinds="fiub")
                tensor.copy_(torch.from_numpy(array))
        projection = restore_head(state.part("projection"))
        if not isinstance(projection, LinearHead) or projection.n_out != n_out:
            raise ValueError(
                f"{state.where}.projection is not a linear map to {n_out} features. The file is "
                "damaged."
            )
        tower.projection = projection
        return tower

    def digest(self) -> str:
        """Return a digest of the weights before training and of the parameters of the encoder."""
        weights = fingerprint(*(tensor.numpy() for tensor in self.tower.state_dict().values()))
        parameters = sorted(self.encoder._get_recorded_params().items())
        return hashlib.sha256(f"{weights}{parameters}".encode()).hexdigest()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.tower.parameters()).device

    def tokenize(self, texts: list[str]) -> np.ndarray:
        """Return tokens, int32 of shape (n_texts, longest), padded with -1."""
        tokens = self.encoder._tokenize(self.pipeline, texts, return_attention_mask=False)
        # A tokenizer may return no token for a text, but a network needs at least one.
        pad = self.pipeline.tokenize.pad_token_id
        rows = [ids or [pad] for ids in tokens["input_ids"]]
        padded = np.full((len(rows), max(map(len, rows))), _PADDING, dtype=np.int32)
        for row, ids in zip(padded, rows, strict=True):
            row[: len(ids)] = ids
        return padded

    def reset_projection(self, tokens: torch.Tensor, n_out: int) -> None:
        """Set a new linear map, which standardizes features by statistics of a sample of texts."""
        with torch.no_grad():
            features = self.features(tokens)
        self.projection = LinearHead(features.shape[1], n_out).to(features.device)
        standardize = self.projection.standardize
        assert isinstance(standardize, Standardize)
        standardize.set(features)
        # One scale for all features. A feature that hardly varies now may vary after training, and
        # would dominate all other features if it was divided by its small scale.
        standardize.scale.fill_(standardize.scale.square().mean().sqrt())

    def unlock(self, n_layers: int | None) -> None:
        """Make the last layers and the modules behind them trainable; None is the whole tower."""
        parameters = list(self.tower.parameters())
        used = {p for name, p in self.tower.named_parameters() if name in self._used_names}
        first = len(parameters) if n_layers == 0 else 0
        if n_layers:
            lists = (m for m in self.tower.modules() if isinstance(m, nn.ModuleList))
            used_lists = (m for m in lists if not used.isdisjoint(m.parameters()))
            layers = next(used_lists, nn.ModuleList())
            if n_layers > len(layers):
                raise ValueError(
                    f"unlocked_layers={n_layers}, but the text encoder has {len(layers)} layers. "
                    f"Pass at most {len(layers)}, or None to train all of it."
                )
            first_unlocked = next(layers[-n_layers].parameters())
            # Modules are registered in the order of the computation, so all parameters before the
            # first unlocked layer are frozen.
            first = next(i for i, p in enumerate(parameters) if p is first_unlocked)
        for index, parameter in enumerate(parameters):
            parameter.requires_grad_(index >= first and parameter in used)

    @contextmanager
    def checkpoint_gradients(self) -> Iterator[None]:
        """Compute activations twice instead of storing them."""
        if not getattr(self.tower, "supports_gradient_checkpointing", False):
            raise ValueError(
                f"gradient_checkpointing=True is not supported by {type(self.tower).__name__}. "
                "Pass False, and reduce batch_size if memory is insufficient."
            )
        # transformers 5 renamed both methods, and warns about the old names.
        kind = (
            "activation" if hasattr(self.tower, "activation_checkpointing_enable") else "gradient"
        )
        getattr(self.tower, f"{kind}_checkpointing_enable")({"use_reentrant": False})
        # These hooks make inputs require gradients, which is not needed here. They cannot be
        # pickled, and disabling checkpointing does not remove them.
        self.tower.disable_input_require_grads()
        try:
            yield
        finally:
            getattr(self.tower, f"{kind}_checkpointing_disable")()

    def features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the features of tokens from `tokenize`."""
        # Texts of similar length in one block need the least padding.
        order = (tokens != _PADDING).sum(dim=1).argsort(descending=True, stable=True)
        size = _BLOCK_SIZE_ON_CPU if self.device.type == "cpu" else _BLOCK_SIZE
        parts = [self._encode(tokens[rows]) for rows in order.split(size)]
        return torch.cat(parts)[order.argsort()]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens from `tokenize` to embeddings of shape (n_texts, n_out)."""
        return self.projection(self.features(tokens))

    def _list_trained(self) -> dict[str, torch.Tensor]:
        """Return the trained weights and the buffers, such as the statistics of batch norms."""
        saved = self.tower.state_dict()
        trained = {n: p.detach() for n, p in self.tower.named_parameters() if p.requires_grad}
        return trained | {n: b for n, b in self.tower.named_buffers() if n in saved}

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        from transformers import BatchEncoding

        longest = int((tokens != _PADDING).sum(dim=1).max())
        pad = self.pipeline.tokenize.pad_token_id

        def pad_tokens(batch: torch.Tensor, *, padding: Any, max_length: int, **_: Any) -> Any:
            width = max_length if padding == "max_length" else longest
            ids = nn.functional.pad(batch[:, :longest], (0, width - longest), value=_PADDING)
            is_token = ids != _PADDING
            ids = ids.long().masked_fill(~is_token, pad)
            return BatchEncoding({"input_ids": ids, "attention_mask": is_token.long()})

        device = self.device
        # The encoder runs as usual, except that its texts are prepared and tokenized already.
        prepared = {"prompt": "", "lower": False, "truncate_dim": None}
        pipeline = self.pipeline._replace(tokenize=pad_tokens, **prepared)
        network = Network(self.tower, pipeline, device)
        # torch drops its bfloat16 copies of weights at the end of the outermost autocast. If the
        # caller is in an autocast, those of the last step are stale. They may be from its backward
        # pass, which computes activations again with `checkpoint_gradients`.
        torch.clear_autocast_cache()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.uses_bfloat16):
            features = self.encoder._forward(network, tokens)  # type: ignore[arg-type]
        return features.float()

    def _remove_unused_modules(self) -> frozenset[str]:
        """Remove modules that texts do not use, such as an image tower.

        Return the names of the weights that texts use, which are the weights with a gradient.
        """
        called, used = self._trace_text()
        children = dict(self.tower.named_children())
        for name, child in children.items():
            # What two children share is not removed with one of them.
            siblings = [sibling for other, sibling in children.items() if other != name]
            modules = set(child.modules()).difference(*(s.modules() for s in siblings))
            weights = set(child.parameters()).difference(*(s.parameters() for s in siblings))
            if weights and modules.isdisjoint(called) and weights.isdisjoint(used.values()):
                delattr(self.tower, name)
        return frozenset(used)

    def _trace_text(self) -> tuple[set[nn.Module], dict[str, nn.Parameter]]:
        """Return the modules that a text passes, and the weights that it uses by name."""
        called: set[nn.Module] = set()
        hooks = [
            module.register_forward_pre_hook(lambda module, _: called.add(module))
            for module in self.tower.modules()
        ]
        with torch.enable_grad():
            self.tower.requires_grad_(True)
            self._encode(torch.from_numpy(self.tokenize(["a"]))).sum().backward()
        for hook in hooks:
            hook.remove()
        used = {name: p for name, p in self.tower.named_parameters() if p.grad is not None}
        self.tower.zero_grad()
        return called, used


def _copy_encoder(text_encoder: Any, max_length: int | None) -> TransformersTextEncoder:
    encoder = unfreeze(text_encoder)
    if isinstance(encoder, str):
        encoder = resolve_encoder(encoder, "text")
    if not isinstance(encoder, TransformersTextEncoder):
        raise TypeError(
            "text_encoder must be a TransformersTextEncoder or the name of its model, not "
            f"{type(encoder).__name__}, because LiTAligner trains it. APEAligner accepts any text "
            "encoder."
        )
    encoder = clone(encoder)
    if max_length is not None:
        encoder.set_params(max_length=max_length)
    return encoder
