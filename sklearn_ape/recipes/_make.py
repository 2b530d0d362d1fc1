"""Recipes by name."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from ._published import RECIPES, Recipe


def list_recipes() -> list[str]:
    """Return the names of the recipes.

    Returns
    -------
    names : list of str
        For `recipe`, `make_aligner` and `recipe_notes`.

    Examples
    --------
    >>> from sklearn_ape.recipes import list_recipes
    >>> list_recipes()
    ['ape', 'asif', 'csa', 'freeze_align', 'fusemix', 'linear', 'lit', 'sail', 'sharelock']
    """
    return sorted(RECIPES)


def recipe_notes(name: str) -> str:
    """Return where a recipe's numbers come from and what was changed.

    Parameters
    ----------
    name : str
        One of `list_recipes`.

    Returns
    -------
    notes : str
        Some lines of text.

    Raises
    ------
    ValueError
        When there is no such recipe.

    Examples
    --------
    >>> from sklearn_ape.recipes import recipe_notes
    >>> print(recipe_notes("ape").splitlines()[0])
    Aligning Pretrained Encoders (Rosenfeld et al., HITY workshop, NeurIPS 2022).
    """
    return "\n".join(line.strip() for line in _named(name).notes.splitlines())


def recipe(name: str, *, n_pairs: int | None = None, **overrides: Any) -> dict[str, Any]:
    """Return a method's published settings as parameters of an aligner.

    Parameters
    ----------
    name : str
        One of `list_recipes`.
    n_pairs : int or None, default=None
        Pairs that will be trained on, from which ``max_epochs`` follows; None takes them to fit
        into one batch.
    **overrides : object
        Parameters to set otherwise.

    Returns
    -------
    parameters : dict
        Those of the aligner that `make_aligner` makes, encoders excepted.

    Raises
    ------
    ValueError
        When there is no such recipe, or `n_pairs` is below 2.

    See Also
    --------
    make_aligner : Makes the estimator.
    recipe_notes : Says where the numbers come from.

    Examples
    --------
    >>> from sklearn_ape.recipes import recipe
    >>> parameters = recipe("fusemix", dropout=0.3)
    >>> parameters["head"], parameters["depth"], parameters["width"], parameters["dropout"]
    ('residual', 9, '4x', 0.3)
    >>> recipe("sharelock", n_pairs=100_000)["max_epochs"]
    52
    """
    published = _named(name)
    if n_pairs is not None and n_pairs < 2:
        raise ValueError(f"n_pairs must be None or at least 2, not {n_pairs!r}.")
    parameters = {**published.parameters, **overrides}
    if published.n_steps and "max_epochs" not in overrides:
        n_batches = 1 if n_pairs is None else math.ceil(n_pairs / parameters["batch_size"])
        parameters["max_epochs"] = min(
            published.most_epochs, math.ceil(published.n_steps / n_batches)
        )
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
    """Return an unfitted aligner with a method's published settings.

    Parameters
    ----------
    name : str
        One of `list_recipes`.
    image_encoder, text_encoder : transformer, str or None, default=None
        See `APEAligner`.
    n_pairs : int or None, default=None
        See `recipe`.
    **overrides : object
        Parameters to set otherwise, such as `random_state`.

    Returns
    -------
    aligner : estimator
        An `APEAligner`, `CCAAligner`, `ASIFAligner` or `LiTAligner`.

    Raises
    ------
    ValueError
        When there is no such recipe, or `n_pairs` is below 2.
    TypeError
        When the aligner has no such parameter.

    See Also
    --------
    recipe : Returns the parameters alone.

    Examples
    --------
    >>> from sklearn_ape.recipes import make_aligner
    >>> aligner = make_aligner("csa", n_components=10)
    >>> type(aligner).__name__, aligner.n_components
    ('CCAAligner', 10)
    """
    parameters = recipe(name, n_pairs=n_pairs, **overrides)
    # Named and not imported above: parameters can be read without loading torch and skorch.
    aligner = getattr(import_module("sklearn_ape.aligners"), _named(name).aligner)
    return aligner(image_encoder=image_encoder, text_encoder=text_encoder, **parameters)


def _named(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"name must be one of {', '.join(list_recipes())}, not {name!r}.")
    return RECIPES[name]
