"""LiT: locked image tower, text tower trained by backpropagation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch

from ..devices import resolve_device
from ..heads import FrozenHead, TwoTower, get_head_state, restore_head
from ..persistence.mixins import FittedState
from ..training.callbacks import ValidationRecall, collect_result, make_standard_callbacks
from ..training.data import PairDataset, as_tensor
from ..training.distributed import current_ranks
from ..training.net import embed, make_net
from ..utils.validation import check_boolean, check_choice, check_integer, check_number
from ._text_tower import TextTower
from ._trained import LOSS_DEFAULTS, TrainedAligner, TrainedModule, TrainingRun

# Number of captions from whose features the linear map is initialized.
_N_STATISTICS = 1000

# As in the authors' code.
_CLIP_NORM = 1.0


@dataclass(eq=False, repr=False, kw_only=True)
class LiTAligner(TrainedAligner):
    """Align a text encoder with a frozen image encoder by training the text encoder.

    Locked-image tuning [1]_ is a baseline of the APE paper. Features of images are computed once,
    and the whole text tower is trained by backpropagation to match them. It takes far more time
    and memory than `APEAligner`, and can learn distinctions that the features of a frozen text
    encoder do not contain.

    Parameters
    ----------
    image_encoder : transformer, str or None, default=None
        **Data.** Encoder of images, such as `TimmImageEncoder`. A str is the name of an encoder
        with default parameters, such as ``"efficientnet_lite0"``; see `APEAligner`. With None, X
        contains features.
    text_encoder : TransformersTextEncoder, str or None, default=None
        Text encoder to train, or the name of its model. `fit` trains a copy of its network, which
        leaves this encoder and all encoders that share the network unchanged.
    n_components : int or None, default=None
        **Head.** Size of the embeddings. None is the number of image features. If it is smaller,
        their principal directions are kept.
    unlocked_layers : int or None, default=None
        Number of the last layers of the tower that are trained. With 0 only the linear map is
        trained. With None the whole tower is trained, including the token embeddings.
    max_length : int or None, default=None
        Maximum number of tokens of a caption; longer captions are truncated. None is the limit of
        the encoder.
    loss : {"infonce", "sigmoid"}, default="infonce"
        **Loss.** Contrastive loss. ``"infonce"`` is the loss of CLIP. ``"sigmoid"`` is the loss
        of SigLIP, which is suited to small batches.
    loss_params : dict or None, default=None
        Parameters of the loss. Missing keys have the following defaults:

        - ``"logit_scale"``: initial logit scale (factor of the cosines), ``1 / 0.07``;
        - ``"learn_logit_scale"``: whether the logit scale is learned, True;
        - ``"max_logit_scale"``: upper bound of the logit scale, 100.0.
    learning_rate : float, default=1e-4
        **Optimization.** Peak learning rate of the tower, after a short linear warm-up. It is
        followed by a cosine decay to zero. The optimizer is AdamW.
    head_learning_rate : float, default=1e-3
        Peak learning rate of the linear map on top of the tower, and of the logit scale.
    weight_decay : float, default=0.01
        Weight decay of weight matrices. Biases, norms and the logit scale are not decayed.
    batch_size : int, default=64
        Number of pairs per batch, which are compared with each other. Memory grows with it and
        with the length of the captions.
    max_epochs : int, default=10
        Maximum number of epochs.
    early_stopping : bool, default=True
        **Early stopping.** Whether to hold out validation pairs, keep the weights of the epoch
        with the best recall on them, and stop when recall no longer improves. It requires at least
        50 groups of pairs that share no image or caption. With fewer, all epochs are run on all
        pairs.
    validation_fraction : float, default=0.1
        Fraction of the pairs held out for validation. They share no image or caption with the
        training pairs.
    n_iter_no_change : int, default=3
        Number of epochs without improvement after which training stops.
    gradient_checkpointing : bool, default=False
        **Execution.** Whether to compute activations twice instead of storing them, which takes
        less memory and a third more time.
    dtype : {"auto", "float32", "bfloat16"}, default="auto"
        Precision of the tower by autocast. The weights are float32 in any case. ``"auto"`` is
        bfloat16 on a GPU that supports it.
    device : {"auto"}, str or torch.device, default="auto"
        Device on which the tower is trained and used. ``"auto"`` is a GPU if available.
    random_state : int, RandomState instance or None, default=None
        Seed of the linear map, batches, dropout and validation pairs. With an int, fits on the CPU
        of one machine are bitwise identical. torch's global generator is left unchanged.
    verbose : int or None, default=None
        1 shows a progress bar over epochs, 2 shows skorch's table of epochs, 0 shows nothing. None
        shows a bar in terminals and notebooks if the work takes more than two seconds.
    callbacks : list of skorch callbacks or None, default=None
        Callbacks of skorch, of which copies are called; see `APEAligner`. Callbacks of
        scikit-learn (1.9 and later) are set by `set_callbacks`.
    checkpoint : str, path-like or None, default=None
        Folder in which the state of the training is saved, so that `fit` on the same pairs with
        the same parameters resumes an interrupted training, as in `APEAligner`. None disables
        checkpoints.

    Attributes
    ----------
    module_ : sklearn_ape.heads.TwoTower
        The trained tower, on the CPU. Pickles contain it.
    logit_scale_ : float
        Logit scale (factor of the cosines) at the end of training.
    history_ : list of dict
        One dict per epoch: ``epoch``, ``train_loss``, ``valid_recall`` (the mean of recall@1, 5
        and 10 in both directions on validation pairs), ``logit_scale`` and ``dur`` (seconds).
    best_epoch_ : int
        Epoch with the best validation recall, counted from 1, or the last one without validation.
    n_epochs_ : int
        Number of epochs that were run.
    n_parameters_ : int
        Number of trained parameters.
    n_components_ : int
        Size of the embeddings.
    n_features_in_ : int
        Number of image features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the image features, if X is a table with column names.
    image_encoder_ : transformer
        The fitted image encoder, if `image_encoder` is set.
    device_ : torch.device
        Device on which the tower was trained.
    bank_ : Bank
        Embeddings of up to 1,000 training images and captions, by which cosines are standardized.
    fingerprint_ : str
        Digest of all weights.

    See Also
    --------
    APEAligner : Trains small heads on frozen encoders, in a fraction of the time.
    CLIPAligner : Uses a model whose towers were trained together.

    Notes
    -----
    Image features are not projected. They are standardized, as by `APEAligner` with
    ``side="text"``. Gradients are clipped to norm 1, as in the authors' code. Texts with the same
    tokens are one text. `fit` takes captions only. It raises TypeError if `text_encoder` is not a
    network of the transformers library, and RuntimeError if torch.distributed is set up for
    several ranks.

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

    image_encoder: Any = None
    text_encoder: Any = None
    n_components: int | None = None
    unlocked_layers: int | None = None
    max_length: int | None = None
    loss: str = "infonce"
    loss_params: Mapping[str, Any] | None = None
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 64
    max_epochs: int = 10
    early_stopping: bool = True
    validation_fraction: float = 0.1
    n_iter_no_change: int = 3
    gradient_checkpointing: bool = False
    dtype: str = "auto"
    device: str | torch.device | None = "auto"
    random_state: int | np.random.RandomState | None = None
    verbose: int | None = None
    callbacks: Sequence[Any] | None = None
    checkpoint: str | os.PathLike[str] | None = None

    _dict_defaults: ClassVar = {"loss_params": LOSS_DEFAULTS}

    def _fit(self, X: Any, y: Any) -> Self:
        ranks = current_ranks()
        if ranks is not None:
            raise RuntimeError(
                "LiTAligner does not support distributed training, and torch.distributed is set "
                f"up for {ranks.size} ranks, each of which would train its own model. Call fit in "
                "a process without a process group, or use APEAligner."
            )
        try:
            return super()._fit(X, y)
        finally:
            self.__dict__.pop("_tower", None)  # which `_encode_texts` sets for `_train`

    def _train(self, data: PairDataset, run: TrainingRun) -> TrainedModule:
        train, valid = run.split(data)
        train = _as_tensors(train)
        valid = None if valid is None else _as_tensors(valid.expand_items())
        callbacks = run.make_callbacks(ValidationRecall(valid), lambda net: net.module_, "tune")
        rate = self.head_learning_rate
        # The parameters of the tower do not match a pattern. They have the learning rate of the
        # net, which error messages name.
        patterns = ("text_head.projection.*", "log_scale", "bias")
        config, tower = replace(run.config, clip_norm=_CLIP_NORM), self._tower
        net = make_net(
            config,
            self._make_module(train),
            run.seed,
            [*make_standard_callbacks(config, len(train)), *callbacks],
            optimizer__param_groups=[(name, {"lr": rate}) for name in patterns],
        )
        try:
            with tower.checkpoint_gradients() if self.gradient_checkpointing else nullcontext():
                net.fit(train, y=None)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} Or lower head_learning_rate (now {rate:g})."
            ) from None
        result = collect_result(net, self.max_epochs)
        run.checkpoint.note_result(result)
        return net.module_, net.logit_scale, result

    def _make_module(self, train: PairDataset) -> TwoTower:
        """Return the image head and the tower, with a new projection, before they are trained."""
        n_image = train.image.shape[1]
        n_out = self.n_components or n_image
        image_head = FrozenHead(n_image, n_out)
        image_head.set_statistics(train.image)
        tower = self._tower.to(self.device_)
        tower.unlock(self.unlocked_layers)
        tower.uses_bfloat16 = self._uses_bfloat16(self.device_)
        sample = torch.randperm(len(train.text))[:_N_STATISTICS]
        tower.reset_projection(train.text[sample].to(self.device_), n_out)
        return TwoTower(image_head, tower)

    def _get_learned_state(self) -> dict[str, Any]:
        return {
            "image_head": get_head_state(self.module_.image_head),
            "text_tower": self.module_.text_head.get_state(),
            **self._get_history_state(),
        }

    def _restore_learned(self, state: FittedState) -> None:
        self._restore_history(state)
        image = restore_head(state.part("image_head"))
        tower = TextTower.from_state(state.part("text_tower"), image.n_out)
        self._set_module(TwoTower(image, tower).eval(), self.logit_scale_)
        self.n_features_in_ = image.n_in

    def _get_result(self) -> dict[str, Any]:
        learned = super()._get_result()
        del learned["text_tower"]["encoder"]  # the aligner has it
        return learned

    def _set_result(self, learned: dict[str, Any], logit_scale: float) -> None:
        learned["text_tower"]["encoder"] = self._tower.encoder
        super()._set_result(learned, logit_scale)

    def _get_compared_weights(self) -> dict[str, str]:
        return {"text_encoder": self._tower.digest()}

    def _encode_texts(self, texts: list[str], reset: bool) -> np.ndarray:
        """Return tokens in place of features, which change with every step of the tower."""
        if reset:
            self._tower = TextTower(self.text_encoder, self.max_length)
            self._tower.check()
            return self._tower.tokenize(texts)
        return self.module_.text_head.tokenize(texts)

    def _get_text_features(self, y: Any, reset: bool) -> np.ndarray:
        raise ValueError(
            "y contains features, and LiTAligner trains the text encoder. Pass captions, and "
            "text_encoder=TransformersTextEncoder('all-MiniLM-L6-v2'), or use APEAligner for "
            "features."
        )

    def _embed(self, side: str, features: np.ndarray) -> np.ndarray:
        if side == "image":
            return embed(self.module_, "image", features, torch.device("cpu"))
        tokens, rows = np.unique(features, axis=0, return_inverse=True)
        device = resolve_device(self.device)
        module = self.module_ if device.type == "cpu" else deepcopy(self.module_).to(device)
        module.text_head.uses_bfloat16 = self._uses_bfloat16(device)
        return embed(module, "text", torch.from_numpy(tokens), device)[rows.ravel()]

    def _uses_bfloat16(self, device: torch.device) -> bool:
        if self.dtype != "auto":
            return self.dtype == "bfloat16"
        return device.type == "cuda" and torch.cuda.is_bf16_supported()

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice(self.dtype, "dtype", ("auto", "float32", "bfloat16"))
        check_boolean(self.gradient_checkpointing, "gradient_checkpointing")
        check_integer(self.max_epochs, "max_epochs", 1)
        check_integer(self.unlocked_layers, "unlocked_layers", 0, optional=True)
        check_integer(self.max_length, "max_length", 1, optional=True)
        check_number(self.head_learning_rate, "head_learning_rate", 0, closed="neither")


def _as_tensors(data: PairDataset) -> PairDataset:
    return PairDataset(as_tensor(data.image), as_tensor(data.text), data.pairs)
