"""Going over many images, some at a time, with one progress bar."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..encoders import EncodingFailedWarning
from ._errors import noted_when_interrupted, say
from ._models import Machine, image_encoder_of

__all__ = ["Encoded", "answers", "encoded", "say_unreadable"]

_AT_ONCE = 512
_NAMED = 5


def answers(
    model: Any, images: Sequence[Any], method: Any, machine: Machine
) -> Iterator[tuple[slice, np.ndarray, dict[int, str]]]:
    """Yield what a method says of some images at a time.

    Parameters
    ----------
    model : estimator
        What holds the image encoder.
    images : sequence
        All of them.
    method : callable
        Takes some of the images.
    machine : Machine
        How to run.

    Yields
    ------
    rows : slice
        Which images.
    answer : ndarray
        What the method returned for them.
    errors : dict of {int: str}
        What is wrong with those that could not be read, by their row among these.
    """
    from tqdm import tqdm

    encoder = image_encoder_of(model)
    is_one_pass = len(images) <= _AT_ONCE
    with (
        noted_when_interrupted(machine.kept),
        warnings.catch_warnings(),
        tqdm(
            total=len(images), unit="image", disable=machine.quiet or is_one_pass, leave=True
        ) as progress,
    ):
        verbose = encoder.verbose
        encoder.verbose = verbose if is_one_pass else 0
        warnings.simplefilter("ignore", EncodingFailedWarning)  # `say_unreadable` names them
        try:
            for start in range(0, len(images), _AT_ONCE):
                rows = slice(start, min(start + _AT_ONCE, len(images)))
                answer = method(images[rows])
                yield rows, answer, encoder.errors_
                progress.update(rows.stop - rows.start)
        finally:
            encoder.verbose = verbose


class Encoded(NamedTuple):
    """Features of images, NaN where one could not be read, and why."""

    features: np.ndarray
    errors: dict[int, str]

    @property
    def good(self) -> np.ndarray:
        """Rows that could be read."""
        bad = np.array(sorted(self.errors), dtype=np.intp)
        return np.setdiff1d(np.arange(len(self.features)), bad)


def encoded(encoder: Any, images: Sequence[Any], machine: Machine) -> Encoded:
    """Encode all images; say on standard error which could not be read.

    Raises
    ------
    ValueError
        When none could be read.
    """
    with noted_when_interrupted(machine.kept), warnings.catch_warnings():
        warnings.simplefilter("ignore", EncodingFailedWarning)  # `say_unreadable` names them
        features = encoder.transform(images)
    errors = dict(encoder.errors_)
    if len(errors) == len(images):
        raise ValueError(f"None of the {len(images)} images can be read: {errors[0]}")
    say_unreadable(errors, len(images))
    return Encoded(features, errors)


def say_unreadable(errors: dict[int, str], n_images: int) -> None:
    """Name on standard error the first images that could not be read, and count them."""
    if not errors:
        return
    say(f"{len(errors):,} of {n_images:,} images cannot be read and are left out:")
    for row in sorted(errors)[:_NAMED]:
        say(f"  {errors[row]}")
    if len(errors) > _NAMED:
        say(f"  and {len(errors) - _NAMED:,} more.")
