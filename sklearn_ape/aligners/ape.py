"""APE: small heads on frozen encoders, trained contrastively."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.utils import check_random_state

from ..devices import resolve_device
from ..heads import TwoTower
from ..persistence import FittedState
from ..training.distributed import join_ranks
from ..training.net import seed_generators
from ..utils.sklearn_compat import FitContext, with_callbacks
from ..utils.torch_state import default_state
from ._ape_trainer import check_head_training, head_attributes, train_heads
from ._base import BaseAligner
from ._checkpoint import Checkpoint, prepare_folder
from ._serialization import HeadsMixin, history_state, restore_history


class APEAligner(HeadsMixin, BaseAligner):
    """Align two frozen encoders by training small heads with a contrastive loss.

    "Aligning Pretrained Encoders" [1]_: the encoders stay as they are, their features are
    computed once, and an MLP learns to bring an image and its caption together.

    Parameters
    ----------
    image_encoder : transformer, str or None, default=None
        Turns images into features, such as `TimmImageEncoder`. A str is the name of an encoder
        with default parameters: a name of `sklearn_ape.encoders.list_encoders` such as
        ``"efficientnet_lite0"``, any model of timm, ``"transformers:NAME"`` or
        ``"open_clip:NAME"``. With None, X is features (as in a Pipeline whose first step is the
        encoder).
    text_encoder : transformer, str or None, default=None
        Turns captions into features, such as `TransformersTextEncoder`. A str is the name of an
        encoder with default parameters: ``"all-MiniLM-L6-v2"``, any model of the transformers
        library, or ``"open_clip:NAME"``. With None, y is features.
    head_pairs : image encoder, str, HeadPairs or None, default=None
        Names, synonyms and definitions of the classes that an image encoder can classify, as
        pairs beside those in X and y; see `sklearn_ape.encoders.classifier_head_pairs`.
    init : {"auto", "kernel", "linear"} or None, default="auto"
        Where training starts. ``"kernel"`` is the solution of `KernelAligner`, ``"linear"`` a
        ridge regression; the head is added to it and begins at zero, and the start itself is
        kept unless training beats it on the pairs held out. ``"auto"`` is ``"kernel"`` up to
        16,384 distinct captions, else ``"linear"``. None trains the plain heads of the paper.
    head : str, default="mlp"
        Kind of head, of `sklearn_ape.heads.HEAD_KINDS`; `sklearn_ape.heads.make_head` says which
        is which, and what depth and width mean for it.
    side : {"text", "image", "both"}, default="text"
        Which features go through a head. Without a start ``"text"`` maps texts into the space of
        the image features, ``"image"`` the other way round; with one all lie among the whitened
        image features.
    depth : int, default=2
        Linear layers of a head. The paper's heads have 4 to 6; on a few thousand pairs 2 are more
        accurate, so search over it with your own pairs.
    width : int or str, default=2048
        Units of a hidden layer, or a multiple of the features' width such as ``"4x"``.
    n_components : int or None, default=None
        Size of the embeddings. With a start None is the image directions that vary; without, the
        width of the features that have no head, and 512 for ``side="both"``. Fewer keep the
        principal directions.
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
    tile_size : int, "auto" or None, default="auto"
        Rows of the matrix of all cosines that are in memory at once; the loss is the same.
        ``"auto"`` makes tiles of batches above 4,096 pairs.
    mixup : float, default=0.0
        Above 0, mixes the features of two pairs by a share drawn from Beta(mixup, mixup).
    structure_weight : float, default=0.0
        Of `sklearn_ape.losses.StructureLoss`, which keeps who is whose neighbour.
    optimizer : {"adamw", "adam", "lion"}, default="adamw"
        See `sklearn_ape.training`.
    learning_rate : float, default=1e-3
        At the top of a cosine schedule with a linear rise.
    warmup : float or int, default=0.05
        Length of the rise: a share of all steps (float), or a number of them (int).
    clip_norm : float or None, default=None
        Bound on the norm of the gradients.
    weight_decay : float, default=0.1
        Of weight matrices.
    batch_size : int, default=1024
        Pairs compared with one another in a step; more is better. Clamped to the training set.
    max_epochs : int, default=100
        The most passes over the training pairs.
    early_stopping : bool, default=True
        Hold pairs out, find the epoch with the best recall on them and stop when it has not risen
        for long. Needs at least 50 groups of pairs that share no image or caption; with fewer,
        all epochs run on all pairs.
    validation_fraction : float, default=0.1
        Share of the pairs held out; no image or caption stands on both sides.
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
    checkpoint : str, path-like or None, default=None
        Folder in which the training is kept, so that `fit` on the same pairs with the same
        parameters goes on after a kill; see Notes. None keeps nothing.

    Attributes
    ----------
    module_ : sklearn_ape.heads.TwoTower
        The trained heads, on the CPU.
    logit_scale_ : float
        Factor of the cosines at the end of training.
    history_ : list of dict
        One dict an epoch: ``train_loss``, ``valid_recall`` (on the pairs held out, the mean of
        recall@1, 5 and 10 both ways), ``logit_scale``, ``dur`` (seconds).
        Epoch 0 is the start, if there was one to compare with.
    best_epoch_ : int
        The epoch with the best recall on the pairs held out, counted from 1; the last without.
        0 says that training did not beat its start by one standard error, so that the start was
        kept.
    n_epochs_ : int
        Epochs run.
    n_parameters_ : int
        Numbers trained or solved for.
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
    bank_ : Bank
        Embeddings of up to 1,000 training images and captions, which `similarity` and
        `ZeroShotClassifier` standardise by.
    fingerprint_ : str
        Digest of the trained heads.

    See Also
    --------
    sklearn_ape.ZeroShotClassifier : Classifies by names with a fitted aligner.
    KernelAligner : The start alone.
    sklearn_ape.recipes : Parameters that others published.
    sklearn_ape.heads : The heads.

    Notes
    -----
    With ``init="auto"`` and too few pairs to hold any out, nothing could tell whether training
    helps, and the start is kept. With ``early_stopping=False`` all epochs run from the start.

    An image's captions are all positives, never negatives. Interrupting a fit keeps the best
    epoch so far, as in scikit-learn's MLP.

    With `checkpoint`, the state of the training is written after its epochs, as often as takes a
    twentieth of the time at most, and its result at the end. `fit` on the same pairs with the same
    parameters goes on from there, to the bit of what it would have been, or returns the result
    at once; with ``random_state=None`` a result is not kept, since every fit draws another seed,
    and only a killed training goes on. Trainings of other pairs or parameters have files of their
    own, so that the fits of a search may share a folder.

    With `callbacks`, or callbacks of scikit-learn that do more than show progress, a complete
    result is never returned, since callbacks must be called and can change or stop the training.
    A killed training is resumed when its callbacks were of the same classes and parameters; they
    start from their parameters again.

    Features in a memory map (``numpy.load(..., mmap_mode="r")``), or in half precision, that would
    take more than 128 MiB as float32 stay where they are: they are looked at, and their batches
    are read, a bounded number of rows at a time. Batches are drawn from all rows as in memory, so
    that without a start the fit is the same to the bit. With one, its output is computed anew for
    every batch, which costs little for ``"linear"`` and much for ``"kernel"``.

    Where torch.distributed is set up (``accelerate.Accelerator()`` under ``accelerate launch``),
    the processes train as one: each calls `fit` on the same pairs with the same parameters and
    takes its share of the rows of every batch, embeddings are gathered with gradients, and all
    end with the same heads. A process that ends makes the others raise RuntimeError: at once, or
    after the timeout of the process group where it hangs.

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
    (100, 8)
    >>> aligner.score(image_features[200:], text_features[200:]) > 0.5
    True
    """

    def __init__(
        self,
        *,
        image_encoder: Any = None,
        text_encoder: Any = None,
        head_pairs: Any = None,
        init: str | None = "auto",
        head: str = "mlp",
        side: str = "text",
        depth: int = 2,
        width: int | str = 2048,
        n_components: int | None = None,
        dropout: float = 0.3,
        loss: str = "infonce",
        logit_scale: float = 1 / 0.07,
        learn_logit_scale: bool = True,
        max_logit_scale: float = 100.0,
        tile_size: int | str | None = "auto",
        mixup: float = 0.0,
        structure_weight: float = 0.0,
        optimizer: str = "adamw",
        learning_rate: float = 1e-3,
        warmup: float | int = 0.05,
        clip_norm: float | None = None,
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
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.head_pairs = head_pairs
        self.init = init
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
        self.tile_size = tile_size
        self.mixup = mixup
        self.structure_weight = structure_weight
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.warmup = warmup
        self.clip_norm = clip_norm
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
        self.checkpoint = checkpoint

    @with_callbacks
    def fit(self, X: Any, y: Any) -> Self:
        """Train the heads on pairs of images and captions.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_features)
            Images if `image_encoder` is set, else features of images.
        y : sequence of length n_samples, or array-like of shape (n_samples, n_text_features)
            With `text_encoder`, a caption or a list of captions for every image. Else features.

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
        OSError
            When the folder `checkpoint` cannot be written to, or holds other things.

        Warns
        -----
        ConvergenceWarning
            When callbacks or Ctrl-C stopped the training.
        """
        self._check_parameters()
        prepare_folder(self.checkpoint)
        fit = FitContext(self, self.max_epochs, X, y)
        with default_state():
            data = self._fit_pairs(X, y)
            random = check_random_state(self.random_state)
            seed = int(random.randint(np.iinfo(np.int32).max))
            ranks, seed = join_ranks(self, data, seed)
            self.device_ = resolve_device(self.device)
            with Checkpoint(self, data, seed, ranks) as kept:
                if not kept.restore():
                    with seed_generators(kept.seed, self.device_):
                        trained = train_heads(self, data, ranks, fit, kept)
                    self._keep(trained.module, trained.logit_scale)
                    self.history_, self.n_epochs_, self.best_epoch_, _ = trained.course
                    kept.finish()
            self._set_bank(data)
        fit.end()
        return self

    def _keep(self, module: TwoTower, scale: float) -> None:
        """Take what prediction needs."""
        self.__dict__.update(head_attributes(module, scale))

    def _learned_state(self) -> dict[str, Any]:
        return super()._learned_state() | history_state(self)

    def _restore_learned(self, state: FittedState, logit_scale: float) -> tuple[int, int | None]:
        restore_history(self, state)
        return super()._restore_learned(state, logit_scale)

    def _set_restored(self, module: TwoTower, logit_scale: float) -> None:
        self._keep(module, logit_scale)

    def _check_parameters(self) -> None:
        check_head_training(self)
