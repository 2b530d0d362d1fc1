"""LiT: the image tower locked, the text tower trained by backpropagation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils import check_random_state

from ..devices import resolve_device
from ..heads import FrozenHead, TwoTower, head_state, restored_head
from ..persistence import FittedState
from ..training import (
    AlignmentNet,
    PairDataset,
    StoredRows,
    as_tensor,
    current_ranks,
    embed,
)
from ..training.callbacks import collect_result, make_callbacks
from ..training.data import Pairs, held_out
from ..training.net import seed_generators
from ..utils.sklearn_compat import FitContext, with_callbacks
from ..utils.torch_state import default_state
from ._ape_trainer import fitted_attributes
from ._base import BaseAligner
from ._checkpoint import Checkpoint, prepare_folder
from ._serialization import history_state, restore_history
from ._text_tower import TextTower, check_text_training, tower_net

_CAPTIONS_FOR_STATISTICS = 1000


class LiTAligner(BaseAligner):
    """Align a text encoder with a frozen image encoder by training the text encoder itself.

    This is locked-image tuning [1]_, which the APE paper compares itself with: features of
    images are computed once, and the whole text tower learns, by backpropagation, to meet
    them. It takes far more time and memory than `APEAligner`, and can say in the end what no
    frozen text encoder could.

    Parameters
    ----------
    image_encoder : transformer, str or None, default=None
        Turns images into features, such as `TimmImageEncoder`. A str is the name of an encoder
        with default parameters, such as ``"efficientnet_lite0"``; see `APEAligner`. With None, X
        is features.
    text_encoder : TransformersTextEncoder, str or None, default=None
        What to train, or the name of its model. `fit` trains a copy: the encoder, and all others
        that share its network, stay as they are.
    n_components : int or None, default=None
        Size of the embeddings. None is the width of the image features; fewer keep their
        principal directions.
    loss : {"infonce", "sigmoid"}, default="infonce"
        CLIP's loss, or SigLIP's, which suits small batches.
    logit_scale : float, default=1 / 0.07
        Factor of the cosines at the start of training.
    learn_logit_scale : bool, default=True
        Whether it is trained.
    max_logit_scale : float, default=100.0
        Bound on it.
    learning_rate : float, default=1e-4
        Of the tower by AdamW, at the top of a cosine schedule with a short linear rise.
    head_learning_rate : float, default=1e-3
        The same of the linear map on top, and of the logit scale.
    weight_decay : float, default=0.01
        Of weight matrices.
    batch_size : int, default=64
        Pairs compared with one another in a step. Memory grows with it and with the length of
        the captions.
    max_epochs : int, default=10
        The most passes over the training pairs.
    early_stopping : bool, default=True
        Hold pairs out, find the epoch with the best recall on them, keep its weights and stop
        when it has not risen for long. Needs at least 50 groups of pairs that share no image or
        caption; with fewer, all epochs run on all pairs.
    validation_fraction : float, default=0.1
        Share of the pairs held out; no image or caption stands on both sides.
    n_iter_no_change : int, default=3
        Epochs without a rise before training stops.
    unlocked_layers : int or None, default=None
        Layers of the tower that are trained, counted from the last; 0 trains the linear map
        alone. None trains all, the word embeddings too.
    gradient_checkpointing : bool, default=False
        Compute activations twice instead of keeping them: less memory, a third more time.
    max_length : int or None, default=None
        Tokens of a caption that are read; the rest is cut. None is the encoder's own limit.
    device : {"auto"}, str or torch.device, default="auto"
        Where the tower is trained and used; ``"auto"`` takes a GPU when there is one.
    dtype : {"auto", "float32", "bfloat16"}, default="auto"
        Precision of the tower by autocast; its weights are float32 in any case. ``"auto"`` is
        bfloat16 on a GPU that has it.
    random_state : int, RandomState instance or None, default=None
        Seeds the linear map, batches, dropout and the held-out pairs. On a CPU, an int makes fits
        on one machine equal to the bit. torch's global generator is left as it was.
    verbose : int, default=0
        1 shows a progress bar over epochs, 2 or more skorch's table of them.
    callbacks : list of skorch callbacks or None, default=None
        Told of batches and epochs. scikit-learn's own (1.9 and later) are set by `set_callbacks`.
    checkpoint : str, path-like or None, default=None
        Folder in which the training is kept, so that `fit` on the same pairs with the same
        parameters goes on after a kill, as in `APEAligner`. None keeps nothing.

    Attributes
    ----------
    module_ : sklearn_ape.heads.TwoTower
        The trained tower, on the CPU; pickles carry it.
    logit_scale_ : float
        Factor of the cosines at the end of training.
    history_ : list of dict
        One dict an epoch: ``train_loss``, ``valid_recall`` (on the pairs held out, the mean of
        recall@1, 5 and 10 both ways), ``logit_scale``, ``dur`` (seconds).
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
    image_encoder_ : transformer
        The image encoder used, where one was given.
    device_ : torch.device
        Where it was trained.
    bank_ : Bank
        Embeddings of up to 1,000 training images and captions, which `similarity` and
        `ZeroShotClassifier` standardise by.
    fingerprint_ : str
        Digest of all weights.

    See Also
    --------
    APEAligner : Leaves both encoders as they are: a fraction of the time.
    CLIPAligner : Both towers trained together, by others.

    Notes
    -----
    There is no projection of the image's side: its features are standardised, as by
    `APEAligner` with ``side="text"``. Gradients are clipped to norm 1, as in the authors' code.
    Texts that the tokenizer cannot tell apart are one text to train on.

    References
    ----------
    .. [1] X. Zhai et al., "LiT: Zero-Shot Transfer with Locked-image text Tuning", CVPR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_ape import LiTAligner
    >>> rng = np.random.default_rng(0)
    >>> words = ["cat", "dog", "bus", "tree", "house", "apple"]
    >>> image_features = rng.standard_normal((6, 32))
    >>> aligner = LiTAligner(text_encoder="all-MiniLM-L6-v2", unlocked_layers=1, random_state=0)
    >>> aligner = aligner.fit(image_features, words)
    >>> aligner.transform_text(["a cat", "a dog"]).shape
    (2, 32)
    >>> aligner.score(image_features, words)  # on the pairs that it was fitted on
    1.0
    """

    def __init__(
        self,
        *,
        image_encoder: Any = None,
        text_encoder: Any = None,
        n_components: int | None = None,
        loss: str = "infonce",
        logit_scale: float = 1 / 0.07,
        learn_logit_scale: bool = True,
        max_logit_scale: float = 100.0,
        learning_rate: float = 1e-4,
        head_learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        batch_size: int = 64,
        max_epochs: int = 10,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 3,
        unlocked_layers: int | None = None,
        gradient_checkpointing: bool = False,
        max_length: int | None = None,
        device: str | torch.device | None = "auto",
        dtype: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        callbacks: Sequence[Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.n_components = n_components
        self.loss = loss
        self.logit_scale = logit_scale
        self.learn_logit_scale = learn_logit_scale
        self.max_logit_scale = max_logit_scale
        self.learning_rate = learning_rate
        self.head_learning_rate = head_learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.unlocked_layers = unlocked_layers
        self.gradient_checkpointing = gradient_checkpointing
        self.max_length = max_length
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose
        self.callbacks = callbacks
        self.checkpoint = checkpoint

    @with_callbacks
    def fit(self, X: Any, y: Any) -> Self:
        """Train the text tower on pairs of images and captions.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            Images if `image_encoder` is set, else features of images.
        y : sequence of length n_samples
            A caption or a list of captions for every image.

        Returns
        -------
        self : object
            The fitted aligner.

        Raises
        ------
        ValueError
            When parameters or data cannot be used; the message names the row and the remedy.
        TypeError
            When `text_encoder` is no network of the transformers library.
        FloatingPointError
            When training diverges.
        RuntimeError
            When torch.distributed is set up for several processes: they would not share the
            training.
        OSError
            When the folder `checkpoint` cannot be written to, or holds other things.

        Warns
        -----
        ConvergenceWarning
            When callbacks or Ctrl-C stopped the training.
        """
        self._check_parameters()
        _check_single_process()
        prepare_folder(self.checkpoint)
        fit = FitContext(self, self.max_epochs, X, y)
        try:
            with default_state():
                data = self._fit_pairs(X, y)
                random = check_random_state(self.random_state)
                seed = int(random.randint(np.iinfo(np.int32).max))
                self.device_ = resolve_device(self.device)
                with Checkpoint(self, data, seed, tower=self._tower) as kept:
                    if not kept.restore():
                        with seed_generators(kept.seed, self.device_):
                            self._train(data, self._tower, fit, kept)
                        kept.finish()
                self._set_bank(data)
        finally:
            self.__dict__.pop("_tower", None)
        fit.end()
        return self

    def _train(self, data: Pairs, tower: TextTower, fit: FitContext, kept: Checkpoint) -> None:
        seed = kept.seed
        train_pairs, valid_pairs = data, None
        if self.early_stopping:
            train_pairs, valid_pairs = held_out(data, self.validation_fraction, seed)
        train = _dataset(train_pairs)
        valid = None if valid_pairs is None else _dataset(valid_pairs.by_item())
        n_image = data.image.shape[1]
        n_out = self.n_components or n_image
        if n_out > n_image:
            raise ValueError(
                f"n_components must be None or at most {n_image}, the width of the image features "
                f"(which have no projection), not {n_out}."
            )
        tower.unlock(self.unlocked_layers)
        tower.precision = self._precision(self.device_)
        some = torch.randperm(len(train.text))[:_CAPTIONS_FOR_STATISTICS]
        tower.to(self.device_).project(train.text[some].to(self.device_), n_out)
        module = TwoTower(FrozenHead(n_image, n_out), tower)
        module.image_head.set_statistics(train.image)
        watching = make_callbacks(
            self, valid, fit, _learned_so_far, "tune", kept.callbacks("tune")
        )
        net = tower_net(self, module, len(train), seed, watching)
        try:
            with tower.checkpointing(self.gradient_checkpointing):
                net.fit(train, y=None)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} Or lower head_learning_rate (now {self.head_learning_rate:g})."
            ) from None
        course = collect_result(net, self)
        kept.note_course(course)
        self.history_, self.n_epochs_, self.best_epoch_, _ = course
        self._keep(net)

    def _keep(self, net: AlignmentNet) -> None:
        """Take what prediction needs from the net; the rest goes with it."""
        self._keep_module(net.module_, net.criterion_.logit_scale.item())

    def _keep_module(self, module: TwoTower, logit_scale: float) -> None:
        self.__dict__.update(_learned(module, logit_scale))
        self.module_.zero_grad()

    def _learned_state(self) -> dict[str, Any]:
        return {
            "image_head": head_state(self.module_.image_head),
            "text_tower": self.module_.text_head.trained_state(),
            **history_state(self),
        }

    def _restore_learned(self, state: FittedState, logit_scale: float) -> tuple[int, int | None]:
        restore_history(self, state)
        image = restored_head(state.part("image_head"))
        tower = TextTower.restored(state.part("text_tower"), image.n_out)
        self._keep_module(TwoTower(image, tower).eval(), logit_scale)
        return image.n_in, None

    def _encoded_texts(self, texts: list[str], reset: bool) -> np.ndarray:
        """Return tokens in the place of features: those change with every step of the tower."""
        if reset:
            self._tower = TextTower(self.text_encoder, self.max_length)
            return self._tower.tokenize(texts)
        return self.module_.text_head.tokenize(texts)

    def _text_features(self, y: Any, reset: bool) -> np.ndarray:
        raise ValueError(
            "LiTAligner trains the text encoder itself, so it takes texts, not features of texts: "
            "pass captions, and text_encoder=TransformersTextEncoder('all-MiniLM-L6-v2'). "
            "APEAligner takes features."
        )

    def _embed_image(self, features: np.ndarray) -> np.ndarray:
        return embed(self.module_, "image", features, torch.device("cpu"))

    def _embed_text(self, features: np.ndarray) -> np.ndarray:
        tokens, rows = np.unique(features, axis=0, return_inverse=True)
        device = resolve_device(self.device)
        module = self.module_ if device.type == "cpu" else deepcopy(self.module_).to(device)
        module.text_head.precision = self._precision(device)
        return embed(module, "text", torch.from_numpy(tokens), device)[rows.ravel()]

    def _precision(self, device: torch.device) -> str:
        if self.dtype != "auto":
            return self.dtype
        has_it = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return "bfloat16" if has_it else "float32"

    def _check_parameters(self) -> None:
        check_text_training(self)


def _dataset(data: Pairs) -> PairDataset:
    image = data.image if isinstance(data.image, StoredRows) else as_tensor(data.image)
    return PairDataset(image, as_tensor(data.text), data.pairs)


def _check_single_process() -> None:
    ranks = current_ranks()
    if ranks is not None:
        raise RuntimeError(
            "LiTAligner does not support distributed training, and torch.distributed is set up "
            f"for {ranks.size} processes, of which each would train a model of its own. Call fit "
            "in a process without a process group, or use APEAligner."
        )


def _learned(module: TwoTower, scale: float) -> dict[str, Any]:
    return fitted_attributes(module, scale, (p for p in module.parameters() if p.requires_grad))


def _learned_so_far(net: AlignmentNet) -> dict[str, Any]:
    return _learned(deepcopy(net.module_), net.criterion_.logit_scale.item())
