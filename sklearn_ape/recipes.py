"""Published hyperparameters of methods that align two encoders.

The methods were published for millions of pairs. Three rules apply to those that train by gradient
descent:

- **Batch size**: as published. An aligner reduces it to the number of pairs.
- **Number of steps**: as published, rather than the number of epochs. ``max_epochs`` is the
  published number of steps divided by the number of batches per epoch. It is at most 500, which is
  the largest published number of epochs (FuseMix), and at most 30 for LiT, which trains a whole
  tower. Pass `n_pairs` to compute it; otherwise one batch per epoch is assumed.
- **Early stopping**: always enabled, with a patience of 50 epochs (ShareLock's patience is 50
  evaluations), and of 3 for LiT, since the last epoch is rarely the best on few pairs.

`recipe_notes` gives the source of each value and the other changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

from .utils.validation import check_choice, check_integer

__all__ = ["list_recipes", "make_aligner", "recipe", "recipe_notes"]


def list_recipes() -> list[str]:
    """Return the names of the recipes.

    Returns
    -------
    names : list of str
        Sorted names.

    Examples
    --------
    >>> from sklearn_ape.recipes import list_recipes
    >>> list_recipes()
    ['ape', 'asif', 'csa', 'freeze_align', 'fusemix', 'linear', 'lit', 'sail', 'sharelock']
    """
    return sorted(RECIPES)


def recipe_notes(name: str) -> str:
    """Return the sources of a recipe's values, and what differs from the publication.

    Parameters
    ----------
    name : str
        Name of a recipe; see `list_recipes`.

    Returns
    -------
    notes : str
        Text of several lines.

    Raises
    ------
    ValueError
        If the recipe does not exist.

    Examples
    --------
    >>> from sklearn_ape.recipes import recipe_notes
    >>> print(recipe_notes("ape").splitlines()[0])
    Aligning Pretrained Encoders (Rosenfeld et al., HITY workshop, NeurIPS 2022).
    """
    return "\n".join(line.strip() for line in _get_recipe(name).notes.splitlines())


def recipe(name: str, *, n_pairs: int | None = None, **overrides: Any) -> dict[str, Any]:
    """Return the published hyperparameters of a method, as parameters of an aligner.

    Parameters
    ----------
    name : str
        Name of a recipe; see `list_recipes`.
    n_pairs : int or None, default=None
        Number of training pairs, from which ``max_epochs`` is computed. None assumes one batch per
        epoch.
    **overrides : object
        Parameters that replace the published ones. For `loss_params` and `optimizer_params`, only
        the keys that are passed are replaced.

    Returns
    -------
    parameters : dict
        Parameters of the aligner that `make_aligner` returns, without the encoders.

    Raises
    ------
    ValueError
        If the recipe does not exist, or `n_pairs`, the batch size or a dict of parameters is
        invalid.

    See Also
    --------
    make_aligner : Returns the aligner.
    recipe_notes : Returns the sources of the values.

    Examples
    --------
    >>> from sklearn_ape.recipes import recipe
    >>> parameters = recipe("fusemix", dropout=0.3)
    >>> parameters["head"], parameters["depth"], parameters["width"], parameters["dropout"]
    ('residual', 9, '4x', 0.3)
    >>> recipe("sharelock", n_pairs=100_000)["max_epochs"]
    52
    """
    published = _get_recipe(name)
    check_integer(n_pairs, "n_pairs", 2, optional=True)
    parameters: dict[str, Any] = published.parameters | overrides
    for key in {"loss_params", "optimizer_params"}.intersection(published.parameters):
        changes = overrides.get(key) or {}
        if not isinstance(changes, Mapping):
            raise ValueError(f"{key} must be None or a dict, not {changes!r}.")
        parameters[key] = {**published.parameters[key], **changes}
    if published.n_steps and "max_epochs" not in overrides:
        check_integer(parameters["batch_size"], "batch_size", 2)
        n_batches = 1 if n_pairs is None else math.ceil(n_pairs / parameters["batch_size"])
        n_epochs = math.ceil(published.n_steps / n_batches)
        parameters["max_epochs"] = min(published.max_epochs_limit, n_epochs)
    if name == "csa" and n_pairs is not None and "n_components" not in overrides:
        parameters["n_components"] = min(parameters["n_components"], n_pairs - 1)
    return parameters


def make_aligner(
    name: str,
    image_encoder: Any = None,
    text_encoder: Any = None,
    *,
    n_pairs: int | None = None,
    **overrides: Any,
) -> Any:
    """Return an unfitted aligner with the published hyperparameters of a method.

    Parameters
    ----------
    name : str
        Name of a recipe; see `list_recipes`.
    image_encoder, text_encoder : transformer, str or None, default=None
        Encoders of the aligner; see `APEAligner`.
    n_pairs : int or None, default=None
        Number of training pairs, from which ``max_epochs`` is computed; see `recipe`.
    **overrides : object
        Parameters to add, such as `random_state`, or to replace parameters of the recipe.

    Returns
    -------
    aligner : estimator
        An `APEAligner`, `CCAAligner`, `ASIFAligner` or `LiTAligner`.

    Raises
    ------
    ValueError
        If the recipe does not exist, or `n_pairs`, the batch size or a dict of parameters is
        invalid.
    TypeError
        If the aligner does not have one of the parameters.

    See Also
    --------
    recipe : Returns only the parameters.

    Examples
    --------
    >>> from sklearn_ape.recipes import make_aligner
    >>> aligner = make_aligner("csa", n_components=10)
    >>> type(aligner).__name__, aligner.n_components
    ('CCAAligner', 10)
    """
    parameters = recipe(name, n_pairs=n_pairs, **overrides)
    # Import on demand, so that parameters can be read without loading torch and skorch.
    aligner = getattr(import_module("sklearn_ape.aligners"), _get_recipe(name).aligner)
    return aligner(image_encoder=image_encoder, text_encoder=text_encoder, **parameters)


def _get_recipe(name: str) -> Recipe:
    check_choice(name, "name", list_recipes())
    return RECIPES[name]


class Recipe(NamedTuple):
    """Parameters of an aligner, notes on their sources, and the number of training steps."""

    aligner: str
    parameters: dict[str, Any]
    notes: str
    n_steps: int | None = None
    max_epochs_limit: int = 500


# These functions set all parameters that a publication determines, so that recipes do not depend
# on the defaults of the aligners.
def _head(
    head: str, side: str, depth: int, width: int | str, n_components: int | None, dropout: float
) -> dict[str, Any]:
    shape = {"depth": depth, "width": width, "n_components": n_components, "dropout": dropout}
    return {"head": head, "side": side, "init": None, **shape}


def _loss(
    loss: str, logit_scale: float, max_logit_scale: float, learn_logit_scale: bool = True
) -> dict[str, Any]:
    scale = {"learn_logit_scale": learn_logit_scale, "max_logit_scale": max_logit_scale}
    params = {"logit_scale": logit_scale, "structure_weight": 0.0, **scale}
    return {"loss": loss, "loss_params": params}


def _training(
    learning_rate: float,
    weight_decay: float,
    batch_size: int,
    warmup: float,
    clip_norm: float | None = None,
    optimizer: str = "adamw",
    mixup: float = 0.0,
) -> dict[str, Any]:
    return {
        "optimizer": optimizer,
        "optimizer_params": {"warmup": warmup, "clip_norm": clip_norm},
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "mixup": mixup,
        "early_stopping": True,
        "n_iter_no_change": 50,
    }


RECIPES = {
    "ape": Recipe(
        "APEAligner",
        _head("mlp", "text", depth=4, width=2048, n_components=None, dropout=0.0)
        | _loss("infonce", logit_scale=1 / 0.07, max_logit_scale=100.0)
        | _training(learning_rate=1e-3, weight_decay=0.1, batch_size=1024, warmup=0.05)
        | {"max_epochs": 100},
        """Aligning Pretrained Encoders (Rosenfeld et al., HITY workshop, NeurIPS 2022).

        Published: MLPs of 4 to 6 linear layers on frozen encoders, CLIP's contrastive loss
        (abstract and introduction); pass depth=5 or 6 for the deeper ones.
        Ours, since the paper gives no values and has no code: the side (one MLP, from texts to the
        features of images, as in its only public re-implementation, sramshetty/APD), the width,
        optimizer, batch size and epochs, and CLIP's temperature 0.07 with its upper bound of 100
        for the logit scale.""",
    ),
    "fusemix": Recipe(
        "APEAligner",
        _head("residual", "both", depth=9, width="4x", n_components=512, dropout=0.6)
        | _loss("infonce", logit_scale=1 / 0.07, max_logit_scale=1000.0)
        | _training(1e-3, weight_decay=0.1, batch_size=20480, warmup=0.05, mixup=1.0),
        """FuseMix (Vouitsis et al., CVPR 2024), code layer6ai-labs/fusemix.

        Published: on both sides 4 pre-norm residual blocks of expansion 4, dropout 0.6, layer norm
        and a projection to 512 (Block and MLPContrastiveFusion in
        lavis/models/fusion_models/mlp_contrastive_fusion.py); temperature 0.07 in [0.001, 0.5];
        learning rate 1e-3, weight decay 0.1, 500 epochs, batch 40,960, mixup Beta(1, 1)
        (lavis/projects/fusion/..._coco_vg_sbu_cap_cc3m.yaml). Over its 5 million pairs that is
        61,000 steps.
        Changed: the batch size is 20,480, which their mixing leaves of 40,960; the logarithm of
        the temperature is learned, and only its lower bound is enforced (the upper bound is a
        logit scale of 2); the warm-up is 5 % of the steps instead of 100 steps, which are 20 % of
        500; the learning rate decays to 0 instead of 1e-6; the residual paths carry standardized
        features.""",
        n_steps=61_000,
    ),
    "sail": Recipe(
        "APEAligner",
        _head("star", "both", depth=2, width="8x", n_components=1024, dropout=0.0)
        | _loss("sigmoid", logit_scale=20.0, max_logit_scale=100.0)
        | _training(1e-5, weight_decay=1e-4, batch_size=32768, warmup=0.1, optimizer="lion"),
        """SAIL (Zhang et al., CVPR 2025), code lezhang7/SAIL.

        Published: on both sides layer norm, relu6(W1 x) * (W2 x) of width 8 times the features and
        a projection to 1024, Xavier initialization (StarMLP in model/linear.py); sigmoid loss,
        logit scale 20 (training scripts), upper bound 100; Lion, learning rate 1e-5, weight decay
        1e-4, batch size 32,768, cosine decay after a warm-up of 10 % of the steps (scripts). With
        its 23 million pairs 50 epochs are 35,000 steps.
        Changed: the bias is initialized to minus the logarithm of the batch size instead of -10,
        which suits batches of 22,000; the loss is divided by the batch size instead of its square,
        which does not change the updates of Lion, as they use the sign of the gradient; no second,
        long caption is generated (several captions of an image are all positives).
        Note: 500 steps at 1e-5 hardly train the heads. For a few thousand pairs pass batch_size=64
        or learning_rate=1e-4.""",
        n_steps=35_000,
    ),
    "sharelock": Recipe(
        "APEAligner",
        _head("batchnorm_mlp", "text", depth=4, width=4096, n_components=None, dropout=0.2)
        | _loss("infonce", math.exp(2.6592), max_logit_scale=100.0, learn_logit_scale=False)
        | _training(1e-3, 1e-4, batch_size=1024, warmup=0.03, clip_norm=1.0, optimizer="adam"),
        """ShareLock (Ruthardt et al., TMLR 2026), code JonaRuthardt/ShareLock.

        Published: only texts pass a head, 4 linear layers of width 4096 with batch norm, ReLU and
        dropout 0.2 (sharelock/models/projection.py), which maps to the features of images; the
        logit scale is fixed at exp(2.6592) (sharelock/utils/misc.py); Adam with learning rate 1e-3
        and coupled weight decay 1e-4, cosine decay after 150 of 5,000 steps, batch size 1024,
        gradients clipped at 1, patience 50 (configs/default_config.yaml).
        Changed: gradients are not accumulated over 16 batches, which adds no negatives and leaves
        no complete step for a few thousand pairs; features are standardized, also those of images;
        weight decay applies to matrices only; patience counts epochs.""",
        n_steps=5_000,
    ),
    "freeze_align": Recipe(
        "APEAligner",
        _head("skip_mlp", "both", depth=4, width=1024, n_components=1024, dropout=0.1)
        | _loss("infonce", logit_scale=1 / 0.07, max_logit_scale=1000.0)
        | _training(learning_rate=1e-3, weight_decay=0.02, batch_size=1800, warmup=0.05),
        """Freeze-Align (Maniparambil et al., CVPR 2025), code mayug/freeze-align.

        Published: layer norm, dropout 0.1, and a linear map plus an MLP to 1024 on each token;
        texts then pass a residual MLP (Patch_Projection and ProjectionHead in
        train/models/clip_adjustable_combined_vis_cls.py); temperature 0.07 in [0.001, 0.5]; AdamW,
        learning rate 1e-3, weight decay 0.02, cosine decay, 15 epochs of 17 million pairs on 8
        devices with batches of 1,800 (train/configs-v2/dinov2-arl-wds-combined.yaml): 17,700
        steps, with 1,800 negatives, as embeddings are not gathered across devices.
        Changed: features are pooled before the projector instead of after it, and the class token
        of an image has no separate projector; both sides have the residual MLP of the texts, since
        the two heads of an aligner are of one kind (depth=2 removes it from both); the logarithm
        of the temperature is learned; the warm-up is 5 % of the steps.""",
        n_steps=17_700,
    ),
    "linear": Recipe(
        "APEAligner",
        _head("linear", "both", depth=1, width=1, n_components=512, dropout=0.0)
        | _loss("infonce", logit_scale=math.exp(2.6592), max_logit_scale=100.0)
        | _training(learning_rate=1e-3, weight_decay=0.1, batch_size=1024, warmup=0.05)
        | {"max_epochs": 100},
        """Linear heads, as in transformers' VisionTextDualEncoder and in open_clip.

        Published: a linear map to 512 on both sides, logit scale exp(2.6592)
        (VisionTextDualEncoderConfig); weight decay 0.1 (transformers'
        examples/pytorch/contrastive-image-text).
        Ours: learning rate, batch size and epochs, since the example trains both whole towers
        (5e-5, batch size 64); the upper bound of 100 is open_clip's.
        Changed: the linear maps have a bias, and features are standardized. A linear head ignores
        depth, width and dropout.""",
    ),
    "csa": Recipe(
        "CCAAligner",
        {"n_components": 200, "power": 1.0, "ridge": 1.0},
        """CSA (Li et al., ICLR 2025), code UTAustin-SwarmLab/Multi-modal-Data-Alignment.

        Published: CCA, and a cosine weighted by the correlations; 200 directions for retrieval on
        Flickr30k, 700 for ImageNet (sim_dim and equal_weights in config/main.yaml).
        Changed: the ridge is the mean variance, since without a ridge the fit fails when there are
        fewer pairs than features; if n_pairs is passed, n_components is at most n_pairs - 1.""",
    ),
    "asif": Recipe(
        "ASIFAligner",
        {"k": 800, "power": 8.0, "center": False},
        """ASIF (Norelli et al., NeurIPS 2023), code noranta4/ASIF.

        Published: the 800 nearest anchors (non_zeros in relreps.py), similarities to the power of
        8 (as in the comparison of UTAustin-SwarmLab/Multi-modal-Data-Alignment,
        config/main.yaml, also with 800 anchors), for 1.6 million pairs.
        Changed: nothing. For a few thousand pairs 800 is a large fraction; the default of the
        aligner is 100.""",
    ),
    "lit": Recipe(
        "LiTAligner",
        {
            "loss": "sigmoid",
            "loss_params": {
                "logit_scale": 10.0,
                "learn_logit_scale": True,
                "max_logit_scale": 100.0,
            },
            "learning_rate": 1e-3,
            "head_learning_rate": 1e-3,
            "weight_decay": 0.01,
            "batch_size": 512,
            "early_stopping": True,
            "unlocked_layers": None,
            "max_length": 16,
        },
        """LiT (Zhai et al., CVPR 2022), code google-research/big_vision.

        Published: the whole text tower is trained, the image tower is frozen and has no head;
        sigmoid loss, logit scale 10; learning rate 1e-3, weight decay 0.01, cosine decay,
        gradients clipped at 1, texts of 16 tokens, batch size 512, 5,000 steps on COCO
        (big_vision/configs/proj/image_text/siglip_lit_coco.py).
        Changed: the bias is initialized to minus the logarithm of the batch size instead of -2.71;
        images are encoded once, so they are not augmented; at most 30 epochs. The learning rate
        1e-3 is for BERT and 600,000 captions: for few pairs the aligner's default of 1e-4 is
        safer.""",
        n_steps=5_000,
        max_epochs_limit=30,
    ),
}
