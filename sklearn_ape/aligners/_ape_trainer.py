"""Training of heads, and their blend with a closed form, for `APEAligner`.

With the default ``init="auto"``, `train_blend` goes through these phases:

1. Pairs are held out. The images are whitened, and stay as they are from then on.
2. `solve_kernel` computes the closed form, a kernel map of the texts, from the other pairs.
3. `train_correction` trains a linear map of its outputs. `_choose_tuning` applies it if recall on
   the held-out pairs increases.
4. `BlendTraining` trains a head of the texts as a part of a blend with the closed form.
5. `BlendRecall` chooses the epoch and the weight of the blend on the held-out pairs, and
   `fit_logit_scale` the logit scale.
6. The closed form is computed again, from all pairs.

With ``init=None``, ``"linear"`` or ``"kernel"``, `train_heads` trains the heads, chooses the epoch
on held-out pairs, and trains again on all pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from ..heads import BlendedHead, ClosedFormHead, Head, TwoTower, WhitenedMap, make_head
from ..training.callbacks import (
    BlendRecall,
    EpochProgress,
    TrainingResult,
    ValidationRecall,
    collect_result,
    mean_recall,
)
from ..training.data import PairDataset
from ..training.distributed import broadcast
from ..training.net import embed_pairs
from ..utils.messages import warn
from ._closed_form import (
    RIDGE,
    WHITENING,
    Maps,
    Targets,
    fit_held_out_logit_scale,
    fit_logit_scale,
    has_stable_whitening,
    hold_out_pairs,
    make_embedders,
    make_linear_maps,
    whiten_images,
)
from ._head_training import BlendTraining, HeadTraining, apply_correction, train_correction
from ._kernel_maps import choose_smoothness, count_predicted_texts, make_kernel_maps
from ._kernel_ridge import count_fitting_anchors

if TYPE_CHECKING:
    from ._trained import TrainedModule, TrainingRun

# Size of the embeddings without initialization if both sides have a head.
_DEFAULT_COMPONENTS = 512

# Chosen on held-out folders of Open Clip Art.
_LINEAR_RIDGE = 0.1

# Share of the head if all pairs are trained on, so that no pair is left to choose it.
_DEFAULT_WEIGHT = 0.5


class HeadConfig(NamedTuple):
    """Parameters of the heads; see `APEAligner` for their meaning."""

    init: str | None
    head: str
    side: str
    depth: int
    width: int | str
    n_components: int | None
    dropout: float

    @property
    def shape(self) -> dict[str, Any]:
        """Arguments of `make_head` apart from the sizes."""
        return {"depth": self.depth, "width": self.width, "dropout": self.dropout}

    def whiten(self, data: PairDataset) -> WhitenedMap:
        """Return the whitening of images by which a closed form maps them."""
        return whiten_images(data, WHITENING, self.n_components)

    def make_text_head(self, data: PairDataset, image_map: WhitenedMap) -> Head:
        """Return a head that maps texts into the space of whitened images."""
        return make_head(self.head, data.text.shape[1], image_map.n_out, **self.shape)


def make_closed_form(
    maps: Maps, run: TrainingRun, correction: np.ndarray | None = None
) -> TwoTower:
    """Return the closed-form solution without trained heads, bitwise identical on all ranks."""
    if correction is not None:
        maps = apply_correction(maps, correction)
    module = maps.make_module()
    if run.ranks is not None:
        run.ranks.broadcast_weights(module)
    return module


def _make_module(head_config: HeadConfig, maps: Maps | None, data: PairDataset) -> TwoTower:
    """Return initialized heads, which are added to the output of the maps if there are any."""
    n_image, n_text = data.image.shape[1], data.text.shape[1]
    if maps is None:
        # The side without a head determines the size of the embeddings.
        sizes = {"image": n_text, "text": n_image, "both": _DEFAULT_COMPONENTS}
        n_out = head_config.n_components or sizes[head_config.side]
    else:
        n_out = maps.image.n_out
    modules: list[Head] = []
    for side, n_in in (("image", n_image), ("text", n_text)):
        is_trained = head_config.side in (side, "both")
        kind = head_config.head if is_trained else None
        if maps is None:
            modules.append(make_head(kind, n_in, n_out, **head_config.shape))
        else:
            residual = make_head(kind, n_in, n_out, **head_config.shape) if is_trained else None
            modules.append(ClosedFormHead(getattr(maps, side), residual))
    return TwoTower(*modules)


def choose_kernel(run: TrainingRun, data: PairDataset, image_map: WhitenedMap) -> dict[str, Any]:
    """Return the parameters that `KernelAligner` chooses by default."""
    smoothness = choose_smoothness(data, image_map, RIDGE, **_get_kernel_options(run))
    return broadcast(run.ranks, smoothness)


def solve_kernel(run: TrainingRun, targets: Targets, **options: Any) -> Maps:
    """Return the solution of `KernelAligner` with the parameters of `choose_kernel`.

    Further `options` are those of `make_kernel_maps`.
    """
    return make_kernel_maps(targets, **options, **_get_kernel_options(run))


def _get_kernel_options(run: TrainingRun) -> dict[str, Any]:
    """Return the options of `make_kernel_maps` that do not depend on the data."""
    return {
        "seed": run.seed,
        "device": run.config.device,
        # The machines of the ranks may have different amounts of memory.
        "max_texts": broadcast(run.ranks, count_fitting_anchors(run.config.device)),
        "verbose": run.verbose,
    }


def train_heads(head_config: HeadConfig, data: PairDataset, run: TrainingRun) -> TrainedModule:
    """Train heads, or keep their initialization if training does not improve it.

    Training has two phases. The first searches for the best epoch on held-out pairs, the second
    trains on all pairs for that number of epochs. Return the heads, the logit scale and the
    history of the first phase. If the second phase is interrupted, its heads may be untrained, so
    those of the first phase are returned, with a warning.
    """
    train, valid = run.split(data)
    smoothness: dict[str, Any] = {}
    if head_config.init == "kernel":
        smoothness = choose_kernel(run, data, head_config.whiten(data))

    def initialize(pairs: PairDataset) -> Maps | None:
        if head_config.init is None:
            return None
        image_map = head_config.whiten(pairs)
        if head_config.init == "linear":
            return make_linear_maps(pairs, image_map, ridge=_LINEAR_RIDGE)
        return solve_kernel(run, Targets(pairs, image_map), **smoothness)

    result, search = run.checkpoint.result, None
    if result is None:
        search = _search_heads(head_config, initialize(train), train, valid, run)
        _, scale, result = search
        if valid is None or not run.config.refit:
            return search
        if result.best_epoch == 0:
            maps = initialize(data)
            assert maps is not None
            return make_closed_form(maps, run), scale, result
    # A checkpoint has a result only during this phase.
    run.checkpoint.begin("refit")
    # The first phase has advanced the generator, and a resumed training skips it.
    torch.manual_seed(run.seed)
    training = HeadTraining(_make_module(head_config, initialize(data), data), data, run)
    return _refit_heads(training, result, search, run)


def _search_heads(
    head_config: HeadConfig,
    maps: Maps | None,
    train: PairDataset,
    valid: PairDataset | None,
    run: TrainingRun,
) -> TrainedModule:
    """Train heads on the training pairs, or return the closed form if no epoch improves it."""
    training = HeadTraining(_make_module(head_config, maps, train), train, run)
    inputs = initial_recall = None
    if valid is not None:
        items = valid.expand_items()
        inputs = training.make_inputs(items)
        if maps is not None:
            initial_recall = training.recall(items)
    callbacks = run.make_callbacks(ValidationRecall(inputs), lambda net: training.module, "align")
    net = training.train(callbacks, run.config.max_epochs)
    result = collect_result(net, run.config.max_epochs)
    if valid is not None and initial_recall is not None:
        min_recall = _compute_min_recall(initial_recall, len(valid.pairs))
        result = _add_closed_form(result, {"valid_recall": initial_recall}, min_recall)
    run.checkpoint.note_result(result)
    if valid is None or maps is None or result.best_epoch > 0:
        return training.module, net.logit_scale, result
    closed_form = make_closed_form(maps, run)
    embeddings = embed_pairs(closed_form, valid)
    scale = fit_logit_scale(*embeddings, valid.pairs, run.config.max_logit_scale)
    return closed_form, scale, result


def _refit_heads(
    training: HeadTraining,
    result: TrainingResult,
    search: TrainedModule | None,
    run: TrainingRun,
) -> TrainedModule:
    """Train on all pairs for the best number of epochs, or return `search` if interrupted.

    `search` is what the search for the best epoch returned. It is None if the run was resumed from
    a checkpoint, which does not have these heads.
    """
    progress = EpochProgress(result.best_epoch, "refit", run.verbose)
    callbacks = [("progress", progress), *run.checkpoint.make_callbacks("refit")]
    net = training.train(callbacks, result.best_epoch)
    n_epochs = sum("train_loss" in row for row in net.history)
    if n_epochs == result.best_epoch:
        return training.module, net.logit_scale, result
    run.checkpoint.stop()
    if search is None:
        raise KeyboardInterrupt
    warn(
        f"Training on all pairs was stopped after {n_epochs} of {result.best_epoch} epochs. The "
        "heads trained without the held-out pairs are used, as with refit=False.",
        ConvergenceWarning,
    )
    return search


def _add_closed_form(
    result: TrainingResult, row: dict[str, float], min_recall: float
) -> TrainingResult:
    """Add the closed form as epoch 0; it is the best one unless a recall exceeds `min_recall`."""
    best = max(epoch["valid_recall"] for epoch in result.history)
    return result._replace(
        history=[{"epoch": 0, **row}, *result.history],
        best_epoch=result.best_epoch if best > min_recall else 0,
    )


def _compute_min_recall(baseline: float, n_valid: int) -> float:
    """Return the recall above which training has improved the closed form.

    The best of many epochs is partly chance, so it must be better by one standard error. With
    4,000 pairs of clip art, blends that gained less had a lower recall on other kinds of images,
    11.1 instead of 11.6 % on the stamps.
    """
    standard_error = (baseline * (1 - baseline) / n_valid) ** 0.5
    return baseline + max(standard_error, 1 / n_valid)


def train_blend(head_config: HeadConfig, data: PairDataset, run: TrainingRun) -> TrainedModule:
    """Compute and tune the closed form, train a head, and blend both by a weight.

    Images are whitened and not trained on, so that both map texts into the same space. The use of
    the tuning and the weight are chosen on held-out pairs. The closed form is computed from the
    training pairs to choose them, then from all pairs. So is the whitening, unless the correction
    or the head needs the space that it was trained in. Return the heads, the logit scale, fitted
    on held-out pairs, and the history, in which epoch 0 is the closed form alone.
    """
    # Images are held out, not captions: a head learns the captions of many images better than the
    # closed form does, and with new captions only this would not count.
    train, valid = run.split(data, by_image=True)
    # Without held-out pairs, nothing shows whether a head improves the closed form.
    is_untested = run.config.early_stopping and valid is None
    if head_config.side != "text" and not is_untested:  # only a text head can be blended
        return train_heads(head_config._replace(init="kernel"), data, run)

    full_map = head_config.whiten(data)
    smoothness = choose_kernel(run, data, full_map)

    def solve(pairs: PairDataset, image_map: WhitenedMap, **options: Any) -> Maps:
        return solve_kernel(run, Targets(pairs, image_map), **smoothness, **options)

    if valid is None:
        return _blend_untested(head_config, data, run, full_map, solve)

    image_map = full_map if has_stable_whitening(data) else head_config.whiten(train)
    items = valid.expand_items()
    # The machines of the ranks may have different amounts of memory.
    n_predicted = broadcast(run.ranks, count_predicted_texts(image_map.n_out))
    maps = solve(train, image_map, max_predicted_texts=n_predicted)
    correction = train_correction(maps, train, run)
    tuned = _choose_tuning(maps, correction, items, len(valid.pairs), run)
    text_head = head_config.make_text_head(data, image_map)
    result = _search_blend(maps, tuned, text_head, train, items, run)
    del maps  # frees the predictions for the training texts
    weight = result.history[result.best_epoch]["blend_weight"]
    # The head is on the device of the training.
    blend = _make_blend(tuned.closed_form, text_head, weight).to("cpu").eval()
    is_untrained = weight == 0 and tuned.correction is None
    if is_untrained and len(hold_out_pairs(data)) > 1:
        # With few pairs, several folds give a more reliable scale than `valid`.
        scale = _fit_closed_form_scale(head_config, data, run, solve)
    else:
        scale = fit_logit_scale(
            *embed_pairs(blend, valid), valid.pairs, run.config.max_logit_scale
        )
    if not run.config.refit or weight == 1:  # with this weight, it contains no kernel
        return blend, scale, result
    maps = solve(data, full_map if is_untrained else image_map)
    closed_form = make_closed_form(maps, run, tuned.correction)
    return _make_blend(closed_form, text_head, weight), scale, result


def _blend_untested(
    head_config: HeadConfig,
    data: PairDataset,
    run: TrainingRun,
    image_map: WhitenedMap,
    solve: Callable[..., Maps],
) -> TrainedModule:
    """Return what `train_blend` does if no pairs are held out: a blend, or the closed form."""
    # The scale of the closed form is used: that of a head would suit its training pairs only.
    scale = _fit_closed_form_scale(head_config, data, run, solve)
    closed_form = make_closed_form(solve(data, image_map), run)
    if run.config.early_stopping:  # there are too few pairs to hold some out
        return closed_form, scale, TrainingResult([], 0, 0)
    text_head = head_config.make_text_head(data, image_map)
    training = HeadTraining(TwoTower(ClosedFormHead(image_map), text_head), data, run)
    result = _train_text_head(training, closed_form, ValidationRecall(None))
    return _make_blend(closed_form, text_head, _DEFAULT_WEIGHT), scale, result


def _fit_closed_form_scale(
    head_config: HeadConfig, data: PairDataset, run: TrainingRun, solve: Callable[..., Maps]
) -> float:
    """Return the logit scale of the closed form, fitted on held-out pairs."""

    def fit(pairs: PairDataset) -> tuple[Callable, Callable]:
        return make_embedders(make_closed_form(solve(pairs, head_config.whiten(pairs)), run))

    return fit_held_out_logit_scale(data, fit, run.config.max_logit_scale)


class _TunedClosedForm(NamedTuple):
    """Closed form, corrected if that increases its recall on held-out pairs.

    `text` are its embeddings of the held-out texts, and `row` is epoch 0 of the history. A blend
    must exceed `min_recall`. `correction` is None if it is not used.
    """

    closed_form: TwoTower
    text: np.ndarray
    row: dict[str, float]
    min_recall: float
    correction: np.ndarray | None


def _choose_tuning(
    maps: Maps, correction: np.ndarray, items: PairDataset, n_valid: int, run: TrainingRun
) -> _TunedClosedForm:
    """Return the closed form, corrected if its recall increases by a standard error.

    `items` are the held-out pairs with one row per image and caption, and `n_valid` is the number
    of those that are distinct.
    """
    modules = [make_closed_form(maps, run, choice) for choice in (None, correction)]
    embeddings = [embed_pairs(module, items) for module in modules]
    recalls = [mean_recall(image, text, items.pairs) for image, text in embeddings]
    untuned, tuned = broadcast(run.ranks, recalls)
    is_tuned = tuned > _compute_min_recall(untuned, n_valid)
    recall = tuned if is_tuned else untuned
    row = {"valid_recall": recall, "blend_weight": 0.0}
    if is_tuned:
        row["untuned_recall"] = untuned
    return _TunedClosedForm(
        closed_form=modules[is_tuned],
        text=embeddings[is_tuned][1],
        row=row,
        min_recall=_compute_min_recall(recall, n_valid),
        correction=correction if is_tuned else None,
    )


def _search_blend(
    maps: Maps,
    tuned: _TunedClosedForm,
    text_head: Head,
    train: PairDataset,
    items: PairDataset,
    run: TrainingRun,
) -> TrainingResult:
    """Train the text head, and return the history with the closed form and the blends."""
    baseline = tuned.row["valid_recall"]
    training = BlendTraining(maps, tuned.correction, text_head, train, run)
    head_inputs = training.make_head_inputs(items)
    recall_callback = BlendRecall(head_inputs, tuned.text, baseline, tuned.min_recall)
    result = _train_text_head(training, tuned.closed_form, recall_callback)
    return _add_closed_form(result, tuned.row, baseline)


def _train_text_head(
    training: HeadTraining, closed_form: TwoTower, recall: ValidationRecall
) -> TrainingResult:
    """Train the text head of a blend, and return the result."""
    run = training.run
    callbacks = run.make_callbacks(
        recall,
        lambda net: _make_blend(closed_form, training.module.text_head, _DEFAULT_WEIGHT),
        "align",
    )
    net = training.train(callbacks, run.config.max_epochs)
    result = collect_result(net, run.config.max_epochs)
    run.checkpoint.note_result(result)
    return result


def _make_blend(closed_form: TwoTower, text_head: Head, weight: float) -> TwoTower:
    """Return the blend, without the part whose weight is 0."""
    if weight == 0:
        return closed_form
    if weight == 1:
        return TwoTower(closed_form.image_head, text_head)
    blended = BlendedHead(closed_form.text_head, text_head, weight)
    return TwoTower(closed_form.image_head, blended)


def summarize_training(history: list[dict[str, Any]], best_epoch: int) -> str:
    """Return a summary of the training of a head in one line."""
    if not history:
        return "closed form; too few pairs to test whether training improves it"
    if "valid_recall" not in history[-1]:
        return f"{len(history)} epochs, without held-out pairs"
    closed_form, *epochs = history
    best = history[best_epoch]
    is_tuned = "untuned_recall" in closed_form
    untuned_recall = closed_form["untuned_recall" if is_tuned else "valid_recall"]
    recalls = f"recall {best['valid_recall']:.3f}; closed form {untuned_recall:.3f}"
    if "blend_weight" not in history[-1]:  # a head of images corrects the closed form
        return f"epoch {best_epoch} of {len(epochs)}: {recalls}"
    if best_epoch == 0:
        best_head = max(row["head_recall"] for row in epochs)
        name = (
            f"tuned closed form: {recalls}"
            if is_tuned
            else f"closed form: recall {untuned_recall:.3f}"
        )
        return (
            f"{name}; no blend was better by a standard error in {len(epochs)} epochs "
            f"(head {best_head:.3f})"
        )
    tuned = f", tuned {closed_form['valid_recall']:.3f}" if is_tuned else ""
    return f"blend {best['blend_weight']:g}: {recalls}{tuned}, head {best['head_recall']:.3f}"
