"""Recipes: published architectures, number of steps, and fitting."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sklearn_ape.aligners import APEAligner
from sklearn_ape.heads import make_head
from sklearn_ape.recipes import RECIPES, list_recipes, make_aligner, recipe, recipe_notes

TRAINED = [name for name in list_recipes() if RECIPES[name].aligner == "APEAligner"]
N_IMAGE, N_TEXT = 1280, 384


def make_heads(name):
    """Return the heads of a recipe for the features of EfficientNet-Lite0 and MiniLM."""
    parameters = recipe(name)
    n_out = parameters["n_components"] or N_IMAGE
    shape = {key: parameters[key] for key in ("depth", "width", "dropout")}
    both = parameters["side"] == "both"
    with torch.device("meta"):
        return (
            make_head(parameters["head"] if both else None, N_IMAGE, n_out, **shape),
            make_head(parameters["head"], N_TEXT, n_out, **shape),
        )


# Computed from the publications for 1280 and 384 features.
@pytest.mark.parametrize(
    ("name", "layers", "image", "text"),
    [
        # 384-2048-2048-2048-1280
        ("ape", 4, 0, 788_480 + 2 * 4_196_352 + 2_622_720),
        # four blocks of norm, up, down; norm; projection to 512
        ("fusemix", 9, 4 * 13_116_160 + 658_432, 4 * 1_182_336 + 197_888),
        # norm; two maps to 8 times; projection to 1024
        ("sail", 3, 2_560 + 2 * 13_117_440 + 10_486_784, 768 + 2 * 1_182_720 + 3_146_752),
        # 384-4096-4096-4096-1280, with three batch norms
        ("sharelock", 4, 0, 1_576_960 + 2 * 16_781_312 + 5_244_160 + 3 * 8_192),
        # norm; linear and MLP to 1024; residual MLP with norm
        (
            "freeze_align",
            5,
            2_560 + 2 * 1_311_744 + 1_049_600 + 2_101_248,
            768 + 2 * 394_240 + 1_049_600 + 2_101_248,
        ),
        ("linear", 1, 655_872, 197_120),
    ],
)
def test_heads_have_published_number_of_parameters(name, layers, image, text):
    heads = make_heads(name)
    counts = [sum(parameter.numel() for parameter in head.parameters()) for head in heads]
    assert counts == [image, text]
    text_layers = [m for m in heads[1].modules() if isinstance(m, torch.nn.Linear)]
    assert len(text_layers) == layers


def test_notes_give_sources_and_changes():
    for name in list_recipes():
        notes = recipe_notes(name)
        assert "Published:" in notes, name
        assert "Changed:" in notes or "Ours" in notes, name
        assert "   " not in notes, name


def test_unknown_name_raises_with_known_names():
    for function in (recipe, make_aligner, recipe_notes):
        with pytest.raises(ValueError, match=r"ape, asif, .*sharelock, not 'clip'"):
            function("clip")


def test_recipes_are_copies():
    recipe("ape")["depth"] = 99
    assert recipe("ape")["depth"] == 4
    assert recipe("linear")["head"] == "linear"


@pytest.mark.parametrize(
    ("n_pairs", "epochs"),
    [
        (None, 500),  # one batch per epoch: the maximum
        (1024, 500),
        (4_000, 500),  # 4 batches: 1,250 epochs would be needed
        (100_000, 52),  # 98 batches: 51.02 epochs
        (50_000_000, 1),
    ],
)
def test_number_of_steps_is_kept_up_to_maximum_of_epochs(n_pairs, epochs):
    assert recipe("sharelock", n_pairs=n_pairs)["max_epochs"] == epochs


def test_max_epochs_follows_batch_size():
    assert recipe("sharelock", n_pairs=100_000, batch_size=4096)["max_epochs"] == 200
    assert recipe("sharelock", n_pairs=100_000, max_epochs=7)["max_epochs"] == 7
    assert recipe("lit", n_pairs=4_000)["max_epochs"] == 30
    assert recipe("ape", n_pairs=100_000)["max_epochs"] == 100


def test_components_of_csa_are_limited_by_pairs():
    assert recipe("csa")["n_components"] == 200
    assert recipe("csa", n_pairs=50)["n_components"] == 49
    assert recipe("csa", n_pairs=50, n_components=300)["n_components"] == 300


@pytest.mark.parametrize("n_pairs", [1, 100.5, "100", True])
def test_invalid_number_of_pairs_raises(n_pairs):
    with pytest.raises(
        ValueError, match=f"n_pairs must be None or an integer >= 2, not {n_pairs!r}"
    ):
        recipe("ape", n_pairs=n_pairs)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", 0, "batch_size must be an integer >= 2, not 0"),
        ("batch_size", "64", "batch_size must be an integer >= 2, not '64'"),
        ("loss_params", 20.0, "loss_params must be None or a dict, not 20"),
    ],
)
def test_invalid_override_raises(name, value, message):
    with pytest.raises(ValueError, match=message):
        recipe("fusemix", n_pairs=1000, **{name: value})


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_make_aligners_that_can_be_cloned(name):
    aligner = make_aligner(name, image_encoder="image", text_encoder="text")
    assert type(aligner).__name__ == RECIPES[name].aligner
    parameters = clone(aligner).get_params()
    assert parameters["image_encoder"] == "image"
    assert parameters["text_encoder"] == "text"
    assert {key: parameters[key] for key in recipe(name)} == recipe(name)


@pytest.mark.parametrize("name", [*TRAINED, "csa", "asif"])
def test_recipes_can_be_fitted(name, concepts):
    small = {}
    if name in TRAINED:
        # The same layers, but narrow, so that training is fast.
        width = recipe(name)["width"]
        small = {"max_epochs": 2, "random_state": 0, "device": "cpu"}
        small["width"] = width if isinstance(width, str) else min(width, 32)
    elif name == "csa":
        small = {"n_components": 8}
    aligner = make_aligner(name, **small).fit(concepts.image[:200], concepts.text[:200])
    embeddings = aligner.transform(concepts.image[200:])
    assert np.isfinite(embeddings).all()
    assert embeddings.shape == (100, aligner.n_components_)
    assert np.isfinite(aligner.transform_text(concepts.text[200:])).all()


def test_unknown_parameter_raises():
    with pytest.raises(TypeError, match="widht"):
        make_aligner("csa", widht=3)


def test_recipe_sets_all_parameters_of_its_method():
    # Parameters of heads, loss and schedule are set, so that their defaults may change.
    open_parameters = set(APEAligner._get_param_names()) - set(recipe("fusemix"))
    assert open_parameters <= {
        "callbacks",
        "checkpoint",
        "device",
        "head_pairs",
        "image_encoder",
        "init_params",
        "random_state",
        "refit",
        "text_encoder",
        "validation_fraction",
        "verbose",
    }
    keys = set(APEAligner._dict_defaults["loss_params"]) - set(recipe("fusemix")["loss_params"])
    assert keys == {"tile_size"}
    assert set(recipe("ape")["optimizer_params"]) == {"warmup", "clip_norm"}


def test_overrides_of_dict_parameters_keep_other_published_keys():
    params = recipe("sail", loss_params={"logit_scale": 5.0})["loss_params"]
    assert params["logit_scale"] == 5.0
    assert params["max_logit_scale"] == 100.0
    assert recipe("sail")["loss_params"]["logit_scale"] == 20.0
