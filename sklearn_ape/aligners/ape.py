"""APE: small heads on frozen encoders, trained contrastively."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from ..devices import default_state, resolve_device
from ..encoders.base import FrozenEncoder
from ..heads import HEAD_KINDS, ConcatenatedHead, TwoTower, hidden_width
from ..persistence.mixins import FittedState
from ..training.data import PairDataset, count_batches
from ..training.net import OPTIMIZERS, check_warmup
from ..utils.messages import warn
from ..utils.sklearn_compat import FitContext, restored_on_failure
from ..utils.validation import check_boolean, check_choice, check_integer, check_number
from ._ape_trainer import HeadConfig, summarize_training, train_blend, train_heads
from ._closed_form import fit_held_out_logit_scale, make_embedders
from ._extension import Extension, choose_encoder, resolve_base
from ._serialization import HeadsMixin
from ._trained import LOSS_DEFAULTS, TrainedAligner, TrainedModule, TrainingRun
from .pairs import as_sequence, holds_images, holds_texts

# Number of steps for max_epochs="auto", and bounds of the number of epochs. On 30,000 pairs of
# icons, 400 steps were no more accurate than 200.
_N_STEPS = 200
_MIN_EPOCHS, _MAX_EPOCHS = 10, 100

_TRAINED_INITS = ("auto", "kernel", "linear")


@dataclass(eq=False, repr=False, kw_only=True)
class APEAligner(HeadsMixin, TrainedAligner):
    """Align two frozen encoders by a closed-form solution and a trained head.

    "Aligning Pretrained Encoders" [1]_ leaves the encoders unchanged. Their features are computed
    once. By default, the solution of `KernelAligner` is tuned by a contrastive loss, and blended
    with an MLP that is trained by the same loss, if this is better. ``init=None`` uses the MLP
    alone, as in the paper.

    Parameters
    ----------
    image_encoder : transformer, str or None, default=None
        **Data.** Encoder of images, such as `TimmImageEncoder`. A str is the name of an encoder
        with default parameters: a name of `sklearn_ape.encoders.list_encoders` such as
        ``"efficientnet_lite0"``, any model of timm, ``"transformers:NAME"`` or
        ``"open_clip:NAME"``. With None, X contains features, as in a Pipeline whose first step
        is the encoder.
    text_encoder : transformer, str or None, default=None
        Encoder of captions, such as `TransformersTextEncoder`. A str is the name of an encoder
        with default parameters: ``"all-MiniLM-L6-v2"``, any model of the transformers library, or
        ``"open_clip:NAME"``. With None, y contains features.
    head_pairs : image encoder, str, HeadPairs or None, default=None
        Image encoder whose class names, synonyms and definitions are used as additional training
        pairs; see `sklearn_ape.encoders.classifier_head_pairs`.
    init : {"auto", "kernel", "linear", "starter"}, fitted aligner or None, default="auto"
        **Head.** Initialization in closed form:

        - ``"auto"``: the solution of `KernelAligner`. It is tuned, and blended with a trained
          head, if this is better on held-out pairs; see Notes.
        - ``"kernel"`` (the same solution) and ``"linear"`` (a ridge regression): a head is trained
          to correct the solution, and used if it is better by a standard error.
        - None: no initialization. Plain heads are trained, as in the paper.
        - ``"starter"`` (the model of `load_starter`) or a fitted aligner: the aligner is extended
          by the pairs in closed form, without training. Its encoders are used if `image_encoder`
          and `text_encoder` are None. The aligner may be the last step of a Pipeline, whose other
          steps are then the image encoder. Searches clone it, so wrap a fitted aligner in
          `sklearn.frozen.FrozenEstimator`.
    init_params : dict or None, default=None
        Parameters of the extension of an aligner. Missing keys have the following defaults:

        - ``"weight"``: weight of a pair in the correction of the aligner, whose strength is chosen
          on held-out pairs; the larger the weight, the closer the pairs are fitted, 0.1;
        - ``"center"``: whether the mean of the image embeddings is subtracted, True;
        - ``"own_share"``: share of a `KernelAligner` of the pairs alone in the cosines, from 0 to
          1. ``"auto"``, the default, chooses it on held-out pairs, and 0 with few pairs.
    head : str, default="mlp"
        Kind of head, one of `sklearn_ape.heads.HEAD_KINDS`. `sklearn_ape.heads.make_head`
        describes the kinds, and the meaning of `depth` and `width` for each.
    side : {"text", "image", "both"}, default="text"
        Side whose features are mapped by a head. With ``init=None``, ``"text"`` maps texts into
        the space of the image features, and ``"image"`` maps images into the space of the text
        features. Otherwise embeddings are in the space of whitened image features, and
        ``init="auto"`` is the same as ``"kernel"`` unless `side` is ``"text"``.
    depth : int, default=3
        Number of linear layers of a head. The heads of the paper have 4 to 6.
    width : int or str, default=2048
        Number of units of a hidden layer, or a multiple of the number of features such as
        ``"4x"``.
    n_components : int or None, default=None
        Size of the embeddings. If smaller than the default, the principal directions are kept.
        With initialization, None keeps all image directions with variance; directions without
        variance are never kept, so that N images give at most N - 1. With ``init=None``, None is
        the number of features of the side without a head, or 512 with ``side="both"``.
    dropout : float, default=0.1
        Fraction of the hidden units dropped during training, in [0, 1).
    mixup : float, default=0.0
        If above 0, the features of two pairs are mixed by a share drawn from
        Beta(mixup, mixup); see `sklearn_ape.training.PairBatches`.
    loss : {"infonce", "sigmoid"}, default="infonce"
        **Loss.** Contrastive loss. ``"infonce"`` is the loss of CLIP. ``"sigmoid"`` is the loss
        of SigLIP, which is suited to small batches.
    loss_params : dict or None, default=None
        Parameters of the loss. Missing keys have the following defaults:

        - ``"logit_scale"``: initial logit scale (factor of the cosines), ``1 / 0.07``;
        - ``"learn_logit_scale"``: whether the logit scale is learned, True;
        - ``"max_logit_scale"``: upper bound of the logit scale, 100.0;
        - ``"tile_size"``: number of rows and columns of the logit matrix that are in memory at
          once, which does not change the loss, ``"auto"``: all of them up to batches of 4,096
          pairs, otherwise 1,024; None is always all of them;
        - ``"structure_weight"``: weight of `sklearn_ape.losses.StructureLoss`, a regularizer that
          preserves neighbourhoods of the frozen features, 0.0.
    optimizer : {"adamw", "adam", "lion"}, default="adamw"
        **Optimization.** Optimizer; see `sklearn_ape.training`.
    optimizer_params : dict or None, default=None
        Parameters of the optimization. Missing keys have the following defaults:

        - ``"warmup"``: length of the linear warm-up of the learning rate, as a fraction of all
          steps (float) or a number of steps (int), 0.05;
        - ``"clip_norm"``: maximum norm of the gradients, None for no clipping;
        - ``"dtype"``: precision of training; ``"auto"`` is ``"bfloat16"`` from 10,000 pairs on a
          processor with AMX instructions, and ``"float32"`` otherwise.
    learning_rate : float, default=3e-3
        Peak learning rate. It is followed by a cosine decay to zero.
    weight_decay : float, default=0.1
        Weight decay of weight matrices. Biases, norms and the logit scale are not decayed.
    batch_size : int, default=2048
        Number of pairs per batch, which are compared with each other. Larger batches are better.
        It is clipped to the number of training pairs.
    max_epochs : int or "auto", default="auto"
        Maximum number of epochs, over which the learning rate decays to zero. ``"auto"`` is the
        number of epochs that take 200 steps, but at least 10 and at most 100.
    early_stopping : bool, default=True
        **Early stopping.** Whether to hold out validation pairs, use the epoch with the best
        recall on them, and stop when recall no longer improves. At least 50 groups of pairs are
        needed that share no image or caption (50 images with ``init="auto"``). With fewer,
        ``init="auto"`` gives the closed form; other heads are trained for all epochs.
    validation_fraction : float, default=0.1
        Fraction of the pairs held out for validation. They share no image with the training
        pairs, and, unless ``init="auto"``, no caption.
    n_iter_no_change : int, default=15
        Number of epochs without improvement after which training stops. With ``init="auto"``, an
        epoch must also be better than the closed form by a standard error.
    refit : bool, default=True
        Whether to use the held-out pairs, too, once they are no longer needed: with
        ``init="auto"`` the closed form is solved again, otherwise the heads are trained again for
        the best number of epochs.
    device : {"auto"}, str or torch.device, default="auto"
        **Execution.** Device on which the heads are trained and used. ``"auto"`` is a GPU if
        available.
    random_state : int, RandomState instance or None, default=None
        Seed of weights, batches and validation pairs. With an int, fits on one machine are bitwise
        identical, unless free memory limits the anchors of the kernel.
    verbose : int or None, default=None
        1 shows a progress bar over epochs, 2 shows skorch's table of epochs, 0 shows nothing. None
        shows a bar in terminals and notebooks if the work takes more than two seconds.
    callbacks : list of skorch callbacks or None, default=None
        Callbacks of skorch, which are called while heads are trained. Deep copies of them are
        called, so values that they store in their attributes are not kept. They are not called
        when heads are trained again on all pairs (`refit`), so pass ``refit=False`` with callbacks
        that change weights or gradients. The learning rate of a scheduler is overridden after each
        batch, by the cosine decay. Callbacks of scikit-learn (1.9 and later) are set by
        `set_callbacks`.
    checkpoint : str, path-like or None, default=None
        Folder in which the state of the training is saved, so that `fit` on the same pairs with
        the same parameters resumes an interrupted training; see Notes. None disables checkpoints.

    Attributes
    ----------
    module_ : sklearn_ape.heads.TwoTower
        The trained heads, on the CPU.
    logit_scale_ : float
        Logit scale (factor of the cosines). It is learned by training, or fitted on held-out pairs
        if the closed form, a blend with it or an extended aligner is used. With fewer than four
        images it is 1, or that of the extended aligner.
    history_ : list of dict
        One dict per epoch, with these keys:

        - ``epoch``, ``train_loss``, ``logit_scale`` and ``dur`` (seconds);
        - ``valid_recall``: mean of recall@1, 5 and 10 in both directions on held-out pairs;
        - ``blend_weight``, with ``init="auto"``: weight of the head in the blend whose recall is
          ``valid_recall``. It is 0 if no blend exceeds the closed form by a standard error;
        - ``head_recall``, with ``init="auto"``: recall of the head alone;
        - ``untuned_recall``, in epoch 0: recall before the tuning, if the tuning is used.

        Epoch 0 is the closed form, tuned if this is better, if training was compared with it.
    best_epoch_ : int
        Epoch with the best recall on held-out pairs, or else the last one, counted from 1. 0 is
        the closed form: no epoch was better by a standard error, or there were too few pairs.
    training_summary_ : str
        Summary of the training in one line: ``"blend 0.4: recall 0.310; closed form 0.270, tuned
        0.285, head 0.120"``. Only with ``init="auto"``.
    own_share_ : float
        If `init` is ``"starter"`` or a fitted aligner: share of a `KernelAligner` of the pairs
        alone in the cosines. Otherwise 0.
    n_epochs_ : int
        Number of epochs that were run.
    n_parameters_ : int
        Number of parameters that were trained or computed in closed form.
    n_components_ : int
        Size of the embeddings: `n_components`, or fewer if the images vary in fewer directions.
    n_features_in_, n_text_features_in_ : int
        Numbers of image features and of text features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the image features, if X is a table with column names.
    image_encoder_, text_encoder_ : transformer
        The fitted encoders, if `image_encoder` or `text_encoder` is set.
    device_ : torch.device
        Device on which the heads were trained.
    bank_ : Bank
        Embeddings of up to 1,000 training images and captions, by which cosines are standardized.
    fingerprint_ : str
        Digest of the trained heads.

    See Also
    --------
    sklearn_ape.ZeroShotClassifier : Classifies by names with a fitted aligner.
    KernelAligner : Closed-form solution, without training.
    sklearn_ape.recipes : Published parameters of other methods.
    sklearn_ape.heads : The heads.

    Notes
    -----
    With ``init="auto"``, the embedding of a text is the weighted sum of two L2-normalized
    embeddings: one by kernel ridge regression, one by the head. Images are only whitened. First, a
    linear map of the regression's predictions is trained to tell the texts apart, for at most 10
    epochs or 400 steps, and multiplied into the coefficients. Then the head is trained. Both
    trainings compare each image with a prediction that leaves out this image and all of its
    captions [2]_. Each part is used if it raises the recall on held-out pairs by a standard error.
    With ``early_stopping=False``, the closed form is not tuned, the head is trained on its own,
    for all epochs on all pairs, and both have the same weight. The page "What fit learns" of the
    user guide has the details, also of `checkpoint`.

    If the training of a head is interrupted, the best epoch so far is used, as in scikit-learn's
    MLP. If its training on all pairs (`refit`) is interrupted, the result is that of
    ``refit=False``. If the tuning or a resumed refit is interrupted, KeyboardInterrupt is raised.

    Features in a memory map (``numpy.load(..., mmap_mode="r")``) or in half precision that would
    take more than 128 MiB as float32 are read in blocks of rows and not copied. With ``"kernel"``
    and ``"linear"``, the solution is computed again for every batch, which takes long with
    ``"kernel"``. With ``"auto"``, its predictions are in memory while the head is trained: those
    that fit in a tenth of the available memory, but at least 100,000.

    With torch.distributed (``accelerate.Accelerator()`` under ``accelerate launch``), several
    ranks train one model. Each calls `fit` on the same pairs with the same parameters and
    processes its part of the rows of every batch. If a rank ends, all others raise RuntimeError at
    once; if it hangs, after the timeout of the process group.

    References
    ----------
    .. [1] E. Rosenfeld, P. Nakkiran, H. Pouransari, O. Tuzel and F. Faghri, "APE: Aligning
       Pretrained Encoders to Quickly Learn Aligned Multimodal Representations", HITY workshop,
       NeurIPS 2022.
    .. [2] R. D. Cook, "Detection of Influential Observation in Linear Regression", Technometrics
       1977.

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
    (100, 8)
    >>> aligner.score(image_features[200:], text_features[200:]) > 0.5
    True
    """

    image_encoder: Any = None
    text_encoder: Any = None
    head_pairs: Any = None
    init: Any = "auto"
    init_params: Mapping[str, Any] | None = None
    head: str = "mlp"
    side: str = "text"
    depth: int = 3
    width: int | str = 2048
    n_components: int | None = None
    dropout: float = 0.1
    mixup: float = 0.0
    loss: str = "infonce"
    loss_params: Mapping[str, Any] | None = None
    optimizer: str = "adamw"
    optimizer_params: Mapping[str, Any] | None = None
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    batch_size: int = 2048
    max_epochs: int | str = "auto"
    early_stopping: bool = True
    validation_fraction: float = 0.1
    n_iter_no_change: int = 15
    refit: bool = True
    device: str | torch.device | None = "auto"
    random_state: int | np.random.RandomState | None = None
    verbose: int | None = None
    callbacks: Sequence[Any] | None = None
    checkpoint: str | os.PathLike[str] | None = None

    _dict_defaults: ClassVar = {
        "loss_params": {**LOSS_DEFAULTS, "tile_size": "auto", "structure_weight": 0.0},
        # With a weight of 4, recall was 1 to 4 points lower for other emoji, and lower for other
        # images of captions among the pairs, but 0.1 to 1.5 points higher for other stamps.
        "init_params": {"weight": 0.1, "center": True, "own_share": "auto"},
        "optimizer_params": {"warmup": 0.05, "clip_norm": None, "dtype": "auto"},
    }

    def __sklearn_clone__(self) -> Self:
        from .starter import is_starter  # which imports this module

        cloned = super().__sklearn_clone__()
        if is_starter(self):
            cloned._lost_fit = "starter"
        return cloned

    def _fit(self, X: Any, y: Any) -> Self:
        from .starter import is_starter  # which imports this module

        if is_starter(self):  # the steps of a Pipeline are not cloned
            raise ValueError(
                "load_starter() returns the aligner that all estimators with aligner=None use, so "
                "it cannot be fitted again. Use FrozenEstimator(load_starter()) as a step of a "
                "Pipeline, APEAligner(init='starter') to extend it, or a clone to train a new one."
            )
        if getattr(self, "_lost_fit", None) == "starter":
            warn(
                "This is a clone of the starter model, as cross-validation, searches and "
                "ColumnTransformer make it. Clones are not fitted, so it is trained from scratch. "
                "To use the starter model itself, pass FrozenEstimator(load_starter())."
            )
        if self.init is None or self.init in _TRAINED_INITS:
            return super()._fit(X, y)
        return self._fit_extension(X, y)

    def _fit_extension(self, X: Any, y: Any) -> Self:
        """Extend the fitted aligner `init` by the pairs."""
        self._check_parameters()
        base, image_encoder = resolve_base(self.init)
        if self.n_components not in (None, base.n_components_):
            raise ValueError(f"n_components must be None or that of init, {base.n_components_}.")
        context = FitContext(self, 0, X, y)
        options = self._resolve_dicts("init_params")
        own_share = options.pop("own_share")
        with default_state(), restored_on_failure(self):
            self.device_ = resolve_device(self.device)
            self._forget_fit()
            self._choose_encoders(X, y, image_encoder, getattr(base, "text_encoder_", None))
            data = self._fit_pairs(X, y)
            extension = Extension(base, data, **options, device=self.device_, verbose=self.verbose)
            parameters = extension.choose_parameters(None if own_share == "auto" else own_share)
            max_scale = self._resolve_dicts("loss_params")["max_logit_scale"]
            self._set_module(
                extension.fit(data.pairs, *parameters),
                fit_held_out_logit_scale(
                    data,
                    lambda part: make_embedders(extension.fit(part.pairs, *parameters)),
                    max_scale,
                    expected=base.logit_scale_,
                ),
            )
            self.history_, self.n_epochs_, self.best_epoch_ = [], 0, 0
            self._set_bank(data)
        context.end()
        return self

    def _choose_encoders(self, X: Any, y: Any, image_encoder: Any, text_encoder: Any) -> None:
        """Set the encoders that `_fit_pairs` fits in place of the parameters, if any are needed.

        `image_encoder` and `text_encoder` are those of the base.
        """
        # An array holds features if the encoder of the base is a network, which takes images. If
        # it is another transformer, such as StandardScaler, an array holds its inputs.
        takes_arrays = image_encoder is not None and not isinstance(image_encoder, FrozenEncoder)
        if self.image_encoder is not None or holds_images(X) or takes_arrays:
            self.image_encoder_ = choose_encoder(self.image_encoder, image_encoder, "image")
        if y is not None and holds_texts(as_sequence(y)):
            self.text_encoder_ = choose_encoder(self.text_encoder, text_encoder, "text")

    def _get_recorded_params(self) -> dict[str, Any]:
        params = super()._get_recorded_params()
        if self.init is not None and not isinstance(self.init, str):
            # The heads of the base are part of the fitted heads. Its class and encoders are not
            # needed to use them.
            params["init"] = None
        return params

    def _train(self, data: PairDataset, run: TrainingRun) -> TrainedModule:
        head_config = HeadConfig(**{name: getattr(self, name) for name in HeadConfig._fields})
        if self.init != "auto":
            return train_heads(head_config, data, run)
        module, logit_scale, result = train_blend(head_config, data, run)
        if run.verbose:
            # To standard error, as progress bars, so that the output of a program is unchanged.
            print(summarize_training(result.history, result.best_epoch), file=sys.stderr)
        return module, logit_scale, result

    def _count_epochs(self, n_pairs: int | None) -> int:
        if self.max_epochs != "auto":
            return int(self.max_epochs)
        if n_pairs is None:
            return _MAX_EPOCHS
        n_epochs = math.ceil(_N_STEPS / count_batches(n_pairs, self.batch_size))
        return min(max(n_epochs, _MIN_EPOCHS), _MAX_EPOCHS)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if isinstance(self.init, str) and self.init not in (*_TRAINED_INITS, "starter"):
            raise ValueError(
                f"init={self.init!r} is not the name of an initialization. Pass 'auto', 'kernel', "
                "'linear', 'starter', a fitted APEAligner or KernelAligner, or None."
            )
        check_integer(self.max_epochs, "max_epochs", 1, auto=True)
        values = self._resolve_dicts("loss_params")
        check_number(values["structure_weight"], "loss_params['structure_weight']", 0)
        name = "loss_params['tile_size']"
        check_integer(values["tile_size"], name, 1, optional=True, auto=True)
        values = self._resolve_dicts("init_params")
        check_number(values["weight"], "init_params['weight']", 0, closed="neither")
        check_boolean(values["center"], "init_params['center']")
        if not (isinstance(values["own_share"], str) and values["own_share"] == "auto"):
            name = "init_params['own_share'], if not 'auto',"
            check_number(values["own_share"], name, 0, 1, closed="both")
        check_choice(self.head, "head", HEAD_KINDS)
        check_choice(self.side, "side", ("text", "image", "both"))
        check_choice(self.optimizer, "optimizer", tuple(OPTIMIZERS))
        check_integer(self.depth, "depth", 1)
        hidden_width(self.width, 1)
        check_number(self.dropout, "dropout", 0, 1)
        check_number(self.mixup, "mixup", 0)
        check_boolean(self.refit, "refit")
        values = self._resolve_dicts("optimizer_params")
        check_warmup(values["warmup"], "optimizer_params['warmup']")
        name = "optimizer_params['clip_norm']"
        check_number(values["clip_norm"], name, 0, closed="neither", optional=True)
        check_choice(values["dtype"], "optimizer_params['dtype']", ("auto", "float32", "bfloat16"))

    @property
    def training_summary_(self) -> str:
        """Summary of the training in one line."""
        check_is_fitted(self)
        if not self._has_summary:
            raise AttributeError("training_summary_ is available only with init='auto'.")
        return summarize_training(self.history_, self.best_epoch_)

    @property
    def own_share_(self) -> float:
        """Share in the cosines of a `KernelAligner` of the pairs alone."""
        check_is_fitted(self)
        image_head = self.module_.image_head
        if not isinstance(image_head, ConcatenatedHead):
            return 0.0
        return round(float(image_head.weight), 6)  # a buffer in single precision

    def _set_module(self, module: TwoTower, logit_scale: float) -> None:
        super()._set_module(module, logit_scale)
        self._has_summary = isinstance(self.init, str) and self.init == "auto"

    def _get_learned_state(self) -> dict[str, Any]:
        return super()._get_learned_state() | self._get_history_state()

    def _restore_learned(self, state: FittedState) -> None:
        self._restore_history(state)
        super()._restore_learned(state)
