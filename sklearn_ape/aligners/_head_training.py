"""Training of two heads on a set of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..devices import has_fast_bfloat16
from ..features.memmap import StoredRows
from ..heads import ClosedFormHead, Head, TwoTower
from ..training.callbacks import make_standard_callbacks, mean_recall
from ..training.data import PairDataset, as_tensor
from ..training.distributed import broadcast
from ..training.net import AlignmentNet, embed_pairs, make_net
from ..utils.linalg import l2_normalize

if TYPE_CHECKING:
    from ._trained import TrainingRun

# Number of pairs from which heads are trained in bfloat16 if that is fast. Recall was compared
# with float32 on 30,000 pairs only, so small sets, which take little time, stay in float32.
_MIN_PAIRS_IN_BFLOAT16 = 10_000


class HeadTraining:
    """Two heads, and the steps to train them on a set of pairs.

    The statistics of the heads are computed from the pairs. The caller seeds torch's global
    generator; the seed of `run` is that of the batches.
    """

    def __init__(self, module: TwoTower, data: PairDataset, run: TrainingRun) -> None:
        self.module = module
        self.heads = (module.image_head, module.text_head)
        self.data = data
        self.config, self.seed, self.ranks = run.config, run.seed, run.ranks
        for head, features in zip(self.heads, (data.image, data.text), strict=True):
            head.set_statistics(as_tensor(features))
        if self.ranks is not None:
            self.ranks.broadcast_weights(self.module)

    def train(self, callbacks: list[Any], n_epochs: int) -> AlignmentNet:
        """Train the module for some of the epochs for which the learning rate is scheduled."""
        dataset = self.make_inputs(self.data).to(self.config.device)
        is_low_precision = self._choose_dtype() == "bfloat16"
        make_module = MixedPrecisionTower if is_low_precision else TwoTower
        module = make_module(*self.make_trained_heads())
        callbacks = [*make_standard_callbacks(self.config, len(dataset)), *callbacks]
        net = make_net(self.config, module, self.seed, callbacks, self.ranks, max_epochs=n_epochs)
        if self.ranks is None:
            return net.fit(dataset, y=None)
        # Ranks must not drop the same units in different rows.
        torch.manual_seed(self.seed + self.ranks.rank)
        with self.ranks.defer_interrupts():
            net.fit(dataset, y=None)
        self.ranks.broadcast_weights(self.module)
        return net

    def make_trained_heads(self) -> list[Head]:
        """Return the heads of the trained module, which share the weights of `heads`."""
        return [
            ResidualInputHead(head) if isinstance(head, ClosedFormHead) else head
            for head in self.heads
        ]

    def make_inputs(self, data: PairDataset) -> PairDataset:
        """Return pairs with the inputs of the trained module, which include the base's output."""
        sides = zip(self.heads, (data.image, data.text), strict=True)
        image, text = (_make_inputs(head, features) for head, features in sides)
        return PairDataset(image, text, data.pairs)

    def recall(self, data: PairDataset) -> float:
        """Return the recall that `ValidationRecall` records, for the present heads."""
        recall = mean_recall(*embed_pairs(self.module, data), data.pairs)
        return broadcast(self.ranks, recall)

    def _choose_dtype(self) -> str:
        if self.config.dtype != "auto":
            return self.config.dtype
        is_fast = self.config.device.type == "cpu" and has_fast_bfloat16()
        is_large = len(self.data.pairs) >= _MIN_PAIRS_IN_BFLOAT16
        return "bfloat16" if is_fast and is_large else "float32"


class ResidualInputHead(Head):
    """The residual of a `ClosedFormHead`, for inputs that include the output of its base.

    A kernel with thousands of anchors takes more time than the rest of a training step, and its
    output does not change. So it is computed once, and appended to the columns of the features.
    Without a residual the inputs are the output of the base alone.
    """

    scale: torch.Tensor

    def __init__(self, head: ClosedFormHead) -> None:
        super().__init__(head.n_in, head.n_out, standardize=False)
        self.residual = head.residual
        if head.residual is not None:
            self.register_buffer("scale", head.scale.clone())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs of shape (n, n_in + n_out) to (n, n_out)."""
        if self.residual is None:
            return inputs
        features, base = inputs.split([self.n_in, self.n_out], dim=1)
        return base + self.scale * self.residual(features)


class MixedPrecisionTower(TwoTower):
    """Heads that training evaluates in bfloat16. Their weights and embeddings are float32."""

    def forward(
        self, image: torch.Tensor, text: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings of both sides."""
        with torch.autocast(image.device.type, torch.bfloat16):
            image, text = self.image_head(image), self.text_head(text)
        # In bfloat16, logits of up to 100 would be rounded to multiples of 0.5.
        return l2_normalize(image.float()), l2_normalize(text.float())


def _make_inputs(head: Head, features: np.ndarray | StoredRows) -> Any:
    """Return the inputs of the trained part of a head."""
    tensor = as_tensor(features)
    if not isinstance(head, ClosedFormHead):
        return tensor
    inputs = _InputsWithBase(head, tensor)
    # For stored features, the outputs of the base may not fit into memory.
    return inputs if isinstance(features, StoredRows) else inputs[slice(None)]


class _InputsWithBase:
    """Inputs of a `ResidualInputHead`, whose base output is computed for the requested rows."""

    def __init__(self, head: ClosedFormHead, features: torch.Tensor | StoredRows) -> None:
        self.base = head.base
        self.has_residual = head.residual is not None
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> torch.Tensor:
        features = torch.as_tensor(self.features[rows])
        with torch.inference_mode():
            base = self.base(features)
        base = base.clone()  # autograd does not accept tensors made in inference mode
        return torch.cat([features, base], dim=1) if self.has_residual else base
