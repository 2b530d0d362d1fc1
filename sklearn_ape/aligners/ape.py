"""APE: small heads on frozen encoders, trained contrastively."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils import check_random_state

from ..devices import resolve_device
from ..heads import TwoTower, make_head
from ..losses import InfoNCELoss, SigmoidLoss
from ..training import (
    AlignmentNet,
    BestEpoch,
    DivergenceGuard,
    EpochProgress,
    PairBatches,
    PairDataset,
    StopWhenPatient,
    ValidationRecall,
    adamw,
    cosine_schedule,
    embed,
    n_batches,
    split_pairs,
    subset,
)
from ._base import BaseAligner, Pairs
from ._callbacks import CallbackSupportMixin, FitContext, with_callbacks
from ._parameters import check_choice, check_integer, check_number

_LOSSES = {"infonce": InfoNCELoss, "sigmoid": SigmoidLoss}
_WIDTH_OF_BOTH = 512


class APEAligner(CallbackSupportMixin, BaseAligner):
    """Align two frozen encoders by training small heads with a contrastive loss.

    This is "Aligning Pretrained Encoders" [1]_: the encoders stay as they are, their features
    are computed once, and an MLP learns to bring a picture and its caption together.

    Parameters
    ----------
    image_encoder : transformer or None, default=None
        Turns pictures into features, such as `TimmImageEncoder`. With None, X is features (as in
        a Pipeline whose first step is the encoder).
    text_encoder : transformer or None, default=None
        Turns captions into features, such as `TransformersTextEncoder`. With None, y is features.
    head : {"mlp", "residual", "glu", "linear"}, default="mlp"
        Kind of head; see `sklearn_ape.heads`.
    side : {"text", "image", "both"}, default="text"
        Which features go through a head. ``"text"`` maps texts into the space of the image
        features, ``"image"`` the other way round.
    depth : int, default=2
        Linear layers of a head. The paper's heads have 4 to 6; on a few thousand pairs 2 are more
        accurate, so search over it with your own pairs.
    width : int, default=2048
        Units of a hidden layer.
    n_components : int or None, default=None
        Size of the embeddings. None is 512 for ``side="both"``, else the width of the features
        that have no head; fewer keep the principal directions of those.
    dropout : float, default=0.3
        Share of the hidden units dropped in training, in [0, 1).
    loss : {"infonce", "sigmoid"}, default="infonce"
        CLIP's loss, or SigLIP's, which suits small batches.
    logit_scale : float, default=1 / 0.07
        Factor of the cosines at the start of training.
    learn_logit_scale : bool, default=True
        Whether it is trained.
    max_logit_scale : float, default=100.0
        Bound on it.
    learning_rate : float, default=1e-3
        Of AdamW, at the top of a cosine schedule with a short linear rise.
    weight_decay : float, default=0.1
        Of weight matrices.
    batch_size : int, default=1024
        Pairs compared with one another in a step; more is better. Clamped to the training set.
    max_epochs : int, default=100
        The most passes over the training pairs.
    early_stopping : bool, default=True
        Hold pairs out, find the epoch with the best recall on them and stop when it has not risen
        for long. Needs at least 50 groups of pairs that share no picture or caption; with fewer,
        all epochs run on all pairs.
    validation_fraction : float, default=0.1
        Share of the pairs held out; no picture or caption stands on both sides.
    n_iter_no_change : int, default=15
        Epochs without a rise before training stops.
    refit : bool, default=True
        Train once more, on all pairs and as long as was best, so that no pair is lost to
        validation.
    device : {"auto"}, str or torch.device, default="auto"
        Where the heads are trained; ``"auto"`` takes a GPU when there is one.
    random_state : int, RandomState instance or None, default=None
        Seeds weights, batches and the held-out pairs. An int makes fits on one machine equal to
        the bit. torch's global generator is left as it was.
    verbose : int, default=0
        1 shows a progress bar over epochs, 2 or more skorch's table of them.
    callbacks : list of skorch callbacks or None, default=None
        Told of batches and epochs. scikit-learn's own (1.9 and later) are set by `set_callbacks`.

    Attributes
    ----------
    module_ : sklearn_ape.heads.TwoTower
        The trained heads, on the CPU.
    logit_scale_ : float
        Factor of the cosines at the end of training.
    history_ : list of dict
        One dict an epoch: ``train_loss``, ``valid_recall``, ``logit_scale``, ``dur`` (seconds).
    best_epoch_ : int
        The epoch with the best recall on the pairs held out, counted from 1; the last without.
    n_epochs_ : int
        Epochs run.
    n_parameters_ : int
        Trained numbers.
    n_components_ : int
        Size of the embeddings.
    n_features_in_ : int
        Width of the image features.
    n_text_features_in_ : int
        Width of the text features.
    image_encoder_, text_encoder_ : transformer
        The encoders used, where they were given.
    device_ : torch.device
        Where it was trained.
    fingerprint_ : str
        Digest of the trained heads.

    See Also
    --------
    sklearn_ape.ZeroShotClassifier : Classifies by names with a fitted aligner.
    sklearn_ape.heads : The heads.

    Notes
    -----
    A picture's captions are all positives, never negatives. Interrupting a fit keeps the best
    epoch so far, as in scikit-learn's MLP.

    References
    ----------
    .. [1] E. Rosenfeld, P. Nakkiran, H. Pouransari, O. Tuzel and F. Faghri, "APE: Aligning
       Pretrained Encoders to Quickly Learn Aligned Multimodal Representations", HITY workshop,
       NeurIPS 2022.
    .. [2] X. Zhai et al., "LiT: Zero-Shot Transfer with Locked-image text Tuning", CVPR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape import APEAligner
    >>> rng = np.random.default_rng(0)
    >>> concepts = rng.standard_normal((300, 8))
    >>> image_features = concepts @ rng.standard_normal((8, 32))
    >>> text_features = concepts @ rng.standard_normal((8, 16))
    >>> aligner = APEAligner(depth=2, width=64, random_state=0)
    >>> aligner = aligner.fit(image_features[:200], text_features[:200])
    >>> aligner.transform(image_features[200:]).shape
    (100, 32)
    >>> aligner.score(image_features[200:], text_features[200:]) > 0.5
    True
    """

    def __init__(
        self,
        *,
        image_encoder: Any = None,
        text_encoder: Any = None,
        head: str = "mlp",
        side: str = "text",
        depth: int = 2,
        width: int = 2048,
        n_components: int | None = None,
        dropout: float = 0.3,
        loss: str = "infonce",
        logit_scale: float = 1 / 0.07,
        learn_logit_scale: bool = True,
        max_logit_scale: float = 100.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        batch_size: int = 1024,
        max_epochs: int = 100,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 15,
        refit: bool = True,
        device: str | torch.device | None = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        callbacks: Sequence[Any] | None = None,
    ) -> None:
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.head = head
        self.side = side
        self.depth = depth
        self.width = width
        self.n_components = n_components
        self.dropout = dropout
        self.loss = loss
        self.logit_scale = logit_scale
        self.learn_logit_scale = learn_logit_scale
        self.max_logit_scale = max_logit_scale
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.refit = refit
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks

    @with_callbacks
    def fit(self, X: Any, y: Any) -> Self:
        """Train the heads on pairs of pictures and captions.

        Parameters
        ----------
        X : sequence of pictures, or array-like of shape (n_samples, n_features)
            Pictures if `image_encoder` is set, else features of pictures.
        y : sequence of length n_samples, or array-like of shape (n_samples, n_text_features)
            With `text_encoder`, a caption or a list of captions for every picture. Else features.

        Returns
        -------
        self : object
            The fitted aligner.

        Raises
        ------
        ValueError
            When parameters or data cannot be used; the message names the row and the remedy.
        FloatingPointError
            When training diverges.
        """
        self._check_parameters()
        data = self._fit_pairs(X, y)
        fit = FitContext(self, self.max_epochs, X, y)
        random = check_random_state(self.random_state)
        seed = int(random.randint(np.iinfo(np.int32).max))
        self.device_ = resolve_device(self.device)
        devices = [self.device_] if self.device_.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            self._train(data, seed, fit)
        fit.end()
        return self

    def _train(self, data: Pairs, seed: int, fit: FitContext) -> None:
        image, text = (torch.from_numpy(side) for side in (data.image, data.text))
        everything = PairDataset(image, text, data.pairs)
        train, valid = everything, None
        if self.early_stopping:
            split = split_pairs(data.pairs, self.validation_fraction, np.random.RandomState(seed))
            if split.valid is not None:
                train, valid = subset(everything, split.train), subset(everything, split.valid)
        net = self._trained(train, seed, self._watchers(valid, fit))
        self._remember(net, valid is not None)
        if valid is not None and self.refit:
            again = [("progress", EpochProgress(self.best_epoch_, "refit"))]
            net = self._trained(everything, seed, again if self.verbose == 1 else [], last=True)
        self._keep(net)

    def _trained(
        self, train: PairDataset, seed: int, callbacks: list[Any], last: bool = False
    ) -> AlignmentNet:
        """Train new heads; `last` stops where the best epoch was found, on the same schedule."""
        module = self._make_module(train.image.shape[1], train.text.shape[1])
        module.image_head.set_statistics(train.image)
        module.text_head.set_statistics(train.text)
        n_steps = self.max_epochs * n_batches(len(train), self.batch_size)
        always = [("divergence", DivergenceGuard()), ("schedule", cosine_schedule(n_steps))]
        net = AlignmentNet(
            module=module,
            criterion=_LOSSES[self.loss],
            criterion__logit_scale=self.logit_scale,
            criterion__max_logit_scale=self.max_logit_scale,
            criterion__learn_scale=self.learn_logit_scale,
            optimizer=adamw,
            optimizer__weight_decay=self.weight_decay,
            lr=self.learning_rate,
            batch_size=self.batch_size,
            max_epochs=self.best_epoch_ if last else self.max_epochs,
            iterator_train=PairBatches,
            iterator_train__shuffle=True,
            iterator_train__seed=seed,
            train_split=None,
            callbacks=always + callbacks,
            device=self.device_,
            verbose=int(self.verbose >= 2),
        )
        return net.fit(train, y=None)

    def _watchers(self, valid: PairDataset | None, fit: FitContext) -> list[Any]:
        """Return the callbacks of the run that finds the best epoch, in their order."""
        watchers: list[Any] = [("recall", ValidationRecall(valid))]
        if valid is not None:
            best = BestEpoch(
                "valid_recall",
                patience=self.n_iter_no_change,
                lower_is_better=False,
                threshold=0.0,
                load_best=True,
            )
            watchers.append(("best", best))
        if self.verbose == 1:
            watchers.append(("progress", EpochProgress(self.max_epochs, "align")))
        watchers += [(f"bridge{i}", bridge) for i, bridge in enumerate(fit.skorch_callbacks())]
        # Deep copies: skorch writes into its callbacks, and parameters are not ours to change.
        watchers += deepcopy(list(self.callbacks or []))
        return [*watchers, ("stop", StopWhenPatient(best))] if valid is not None else watchers

    def _make_module(self, n_image: int, n_text: int) -> TwoTower:
        n_out = {"image": n_text, "text": n_image, "both": _WIDTH_OF_BOTH}[self.side]
        n_out = self.n_components or n_out
        heads = [
            make_head(
                self.head if self.side in (name, "both") else None,
                n_in,
                n_out,
                depth=self.depth,
                width=self.width,
                dropout=self.dropout,
            )
            for name, n_in in (("image", n_image), ("text", n_text))
        ]
        return TwoTower(*heads)

    def _remember(self, net: AlignmentNet, validated: bool) -> None:
        """Take the course of the training from the net."""
        # Absent when the very first epoch was interrupted.
        rows = [row for row in net.history if "train_loss" in row and "logit_scale" in row]
        if not rows:
            raise KeyboardInterrupt
        kept = ("epoch", "train_loss", "valid_recall", "logit_scale", "dur")
        self.history_ = [
            {key: row[key] if key == "epoch" else float(row[key]) for key in kept if key in row}
            for row in rows
        ]
        self.n_epochs_ = len(rows)
        best = dict(net.callbacks_)["best"] if validated else None
        self.best_epoch_ = (best and best.best_epoch_) or self.n_epochs_
        patience_ran_out = best is not None and best.misses_ >= self.n_iter_no_change
        if self.n_epochs_ < self.max_epochs and not patience_ran_out:
            warnings.warn(
                f"Training was stopped after {self.n_epochs_} of {self.max_epochs} epochs; epoch "
                f"{self.best_epoch_} is taken as the best.",
                UserWarning,
                stacklevel=5,
            )

    def _keep(self, net: AlignmentNet) -> None:
        """Take what prediction needs from the net; the rest goes with it."""
        # On the CPU, so that a pickle opens on a machine without the training device.
        self.module_ = net.module_.to("cpu").eval()
        self.logit_scale_ = float(net.criterion_.logit_scale.item())
        self.n_parameters_ = sum(p.numel() for p in self.module_.parameters())
        self.n_components_ = self._n_features_out = self.module_.n_components
        self.fingerprint_ = self.module_.fingerprint()

    def _embed_image(self, features: np.ndarray) -> np.ndarray:
        return self._embed("image", features)

    def _embed_text(self, features: np.ndarray) -> np.ndarray:
        return self._embed("text", features)

    def _embed(self, side: str, features: np.ndarray) -> np.ndarray:
        device = resolve_device(self.device)
        module = self.module_ if device.type == "cpu" else deepcopy(self.module_).to(device)
        # torch warns of arrays that are not writable, such as a pandas table's.
        tensor = torch.from_numpy(np.require(features, requirements="W"))
        return embed(module, side, tensor, device)

    def _check_parameters(self) -> None:
        check_choice(self, "head", ("mlp", "residual", "glu", "linear"))
        check_choice(self, "side", ("text", "image", "both"))
        check_choice(self, "loss", tuple(_LOSSES))
        check_integer(self, "depth", 1)
        check_integer(self, "width", 1)
        check_integer(self, "n_components", 1, optional=True)
        check_integer(self, "batch_size", 2)
        check_integer(self, "max_epochs", 1)
        check_integer(self, "n_iter_no_change", 1)
        check_number(self, "dropout", 0, 1)
        check_number(self, "validation_fraction", 0, 1, above=True)
        check_number(self, "learning_rate", 0, above=True)
        check_number(self, "weight_decay", 0)
        check_number(self, "logit_scale", 0, above=True)
        check_number(self, "max_logit_scale", self.logit_scale)
        resolve_device(self.device)
