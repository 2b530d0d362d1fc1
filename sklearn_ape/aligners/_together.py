"""Processes that train heads together, and what they must have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..training import Ranks, current_ranks
from ._bank import evenly_spaced
from ._fingerprint import fingerprint
from ._pairs import Pairs

# What may differ, or has no text that says what it is.
OF_ONE_PROCESS = {
    "image_encoder",
    "text_encoder",
    "head_pairs",
    "device",
    "random_state",
    "verbose",
    "callbacks",
    "checkpoint",
}


def join_ranks(aligner: Any, data: Pairs, seed: int) -> tuple[Ranks | None, int]:
    """Return the processes to train heads with, if any, and the seed that all of them take.

    Parameters
    ----------
    aligner : APEAligner
        Its parameters are compared with those in the other processes.
    data : Pairs
        As are these; of the features, 1,000 rows at equal distances.
    seed : int
        What this process would take alone.

    Returns
    -------
    ranks : Ranks or None
        None where torch.distributed is not set up, or for one process.
    seed : int
        That of the first process.

    Raises
    ------
    ValueError
        In every process: when pairs or parameters differ, or several cannot train such a head.
    """
    ranks = current_ranks()
    if ranks is None:
        return None, seed
    parameters = aligner.get_params(deep=False)
    told = {name: parameters[name] for name in sorted(parameters.keys() - OF_ONE_PROCESS)}
    some = (side[evenly_spaced(len(side))] for side in (data.image, data.text))
    sizes = np.array([len(data.image), len(data.text), data.n_prototypes])
    items = [] if data.items is None else [data.items]
    ranks.check_alike(f"{told} {fingerprint(data.pairs, sizes, *items, *some)}")
    if aligner.head == "batchnorm_mlp":
        raise ValueError(
            "head='batchnorm_mlp' normalises over the rows of a batch, of which every process has "
            "its own: train it in one process, or take head='mlp'."
        )
    return ranks, ranks.of_first(seed)
