"""Blend of a closed-form solution and a trained head, for `APEAligner`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..heads import BlendedHead, ClosedFormHead, Head, TwoTower, make_head
from ..training.callbacks import (
    BlendRecall,
    TrainingResult,
    ValidationRecall,
    collect_result,
    mean_recall,
)
from ..training.data import PairDataset
from ..training.net import embed_pairs
from ._ape_trainer import (
    HeadConfig,
    HeadTraining,
    choose_kernel,
    make_closed_form,
    solve_kernel,
    train_heads,
)
from ._closed_form import (
    WHITENING,
    fit_logit_scale,
    held_out_logit_scale,
    make_embedders,
    whiten_images,
)

if TYPE_CHECKING:
    from ._trained import TrainingRun

# Share of the head if all pairs are trained on, so that no pair is left to choose it.
_DEFAULT_WEIGHT = 0.5


def train_blend(
    heads: HeadConfig, data: PairDataset, run: TrainingRun
) -> tuple[TwoTower, float, TrainingResult]:
    """Solve for a closed form, train a head, and blend them as is best on held-out pairs.

    Images are whitened and not trained on, so that both map texts into the same space. The closed
    form is computed from the training pairs to choose the blend, then from all pairs. Return the
    heads, the logit scale, fitted on held-out pairs, and the history, in which epoch 0 is the
    closed form alone.
    """
    config = run.config
    # Images are held out, not captions: a head learns the captions of many images better than the
    # closed form does, and with new captions only this would not count.
    train, valid = run.split(data, by_image=True)
    image_map = whiten_images(data, WHITENING, heads.n_components)
    smoothness = choose_kernel(heads, run, data, image_map)

    def solve(pairs: PairDataset) -> TwoTower:
        maps = solve_kernel(heads, run, pairs, smoothness, image_map)
        return make_closed_form(maps, run.ranks)

    if config.early_stopping and (valid is None or len(data.text) == 1):
        # It is not known whether a head would improve the closed form. With one text there is
        # nothing to learn.
        scale = held_out_logit_scale(data, lambda pairs: make_embedders(solve(pairs)))
        return solve(data), scale, TrainingResult([], 0, 0)
    if heads.side != "text":  # only a text head can be blended with the closed form
        return train_heads(heads._replace(init="kernel"), data, run)
    closed_form = solve(train)
    text_head = make_head(heads.head, train.text.shape[1], image_map.n_out, **heads.shape)
    module = TwoTower(ClosedFormHead(image_map), text_head)
    training = HeadTraining(module, config, run.seed, train, run.ranks)
    recall = ValidationRecall(None)
    if valid is not None:
        items = valid.expand_items()
        image, text = embed_pairs(closed_form.eval(), items)
        baseline = mean_recall(image, text, items.pairs)
        if run.ranks is not None:
            baseline = run.ranks.broadcast(baseline)
        # A head must be worth at least one of the held-out pairs: a smaller gain is chance.
        least = baseline + 1 / len(items.pairs)
        recall = BlendRecall(training.make_inputs(items), text, least)

    def blend(weight: float) -> TwoTower:
        return _make_blend(closed_form, text_head, weight)

    callbacks = run.make_callbacks(recall, lambda net: blend(_DEFAULT_WEIGHT), "align")
    net = training.run(callbacks, config.max_epochs)
    result, scale = collect_result(net, config.max_epochs), net.logit_scale
    weight = _DEFAULT_WEIGHT
    if valid is not None:
        result, weight = _choose_blend(result, baseline, least)
        module = blend(weight).to("cpu").eval()  # the head was trained on the device
        scale = fit_logit_scale(*embed_pairs(module, valid), valid.pairs)
        if config.refit and weight < 1:
            closed_form = solve(data)
    if result.was_stopped:
        run.checkpoint.stop()
    return blend(weight), scale, result


def _choose_blend(
    result: TrainingResult, baseline: float, least: float
) -> tuple[TrainingResult, float]:
    """Add the closed form as epoch 0; return the share of the head in the best epoch.

    A blend is chosen if its recall is above `least`.
    """
    best = max(result.history, key=lambda row: row["valid_recall"])
    closed_form = {"epoch": 0, "valid_recall": baseline, "blend_weight": 0.0}
    is_improved = best["valid_recall"] > least
    result = result._replace(
        history=[closed_form, *result.history],
        best_epoch=result.best_epoch if is_improved else 0,
    )
    return result, best["blend_weight"] if is_improved else 0.0


def _make_blend(closed_form: TwoTower, text_head: Head, weight: float) -> TwoTower:
    """Return the blend, without the part whose weight is 0."""
    if weight == 0:
        return closed_form
    if weight == 1:
        return TwoTower(closed_form.image_head, text_head)
    blended = BlendedHead(closed_form.text_head, text_head, weight)
    return TwoTower(closed_form.image_head, blended)


def summarize_training(history: list[dict[str, Any]], best_epoch: int) -> str:
    """Return in words what the training of a head brought."""
    if not history:
        return "closed form; too few pairs to test whether training improves it"
    if "valid_recall" not in history[-1]:
        return f"{len(history)} epochs, without held-out pairs"
    closed_form, *epochs = history
    best = history[best_epoch]
    recalls = f"recall {best['valid_recall']:.3f}; closed form {closed_form['valid_recall']:.3f}"
    if "blend_weight" not in history[-1]:  # a head of images corrects the closed form
        return f"epoch {best_epoch} of {len(epochs)}: {recalls}"
    if best_epoch == 0:
        best_head = max(row["head_recall"] for row in epochs)
        return (
            f"closed form: recall {closed_form['valid_recall']:.3f}; no blend was better in "
            f"{len(epochs)} epochs (head {best_head:.3f})"
        )
    return f"blend {best['blend_weight']:g}: {recalls}, head {best['head_recall']:.3f}"
