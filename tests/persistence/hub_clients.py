"""Uploads and downloads in processes of their own, since the hub client is set up by its import.

The processes are forked from one that has imported the package, but not the hub client; see
`tests/conftest.py`.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from sklearn_ape import CCAAligner, KernelAligner, load_pretrained


def run(work, hub, cache, *arguments, **settings):
    """Call ``work(*arguments)`` in a new process with these environment variables."""
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_TOKEN": "", **settings}
    can_fork = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if can_fork else "spawn")
    with ProcessPoolExecutor(1, context, _set_environment, (settings,)) as pool:
        return pool.submit(work, *arguments).result(timeout=300)


def _set_environment(settings):
    os.environ.update(settings)


def upload_and_download(old_commit):
    """Upload two models to the same repository, and return what downloads of them give."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 5)), rng.standard_normal((60, 4))
    first = KernelAligner().fit(X, y)
    second = KernelAligner(ridge=2.0).fit(X, y)
    outputs = {}
    outputs["address"] = first.push_to_hub("me/aligner", token="hf_secret", scores={"recall": 0.5})
    outputs["first"] = load_pretrained("me/aligner").fingerprint_ == first.fingerprint_
    second.push_to_hub("me/aligner", token="hf_secret", commit_message="better", private=True)
    found = KernelAligner.from_pretrained("me/aligner")
    outputs["second"] = found.fingerprint_ == second.fingerprint_
    old = load_pretrained("me/aligner", revision=old_commit)
    outputs["old"] = np.array_equal(old.transform(X), first.transform(X))
    for name, load in {
        "missing": lambda: load_pretrained("me/nothing"),
        "revision": lambda: load_pretrained("me/aligner", revision="no-such"),
        "class": lambda: CCAAligner.from_pretrained("me/aligner"),
        "other": lambda: load_pretrained("me/bert"),
    }.items():
        outputs[name] = _get_error(load)
    return outputs


def download():
    """Return the fingerprint of a model, or the error."""
    fingerprints = []
    error = _get_error(lambda: fingerprints.append(load_pretrained("me/aligner").fingerprint_))
    return error or fingerprints[0]


def upload():
    """Return the error of an upload."""
    rng = np.random.default_rng(0)
    model = KernelAligner().fit(rng.standard_normal((30, 5)), rng.standard_normal((30, 4)))
    return _get_error(lambda: model.push_to_hub("me/aligner", token="hf_secret"))


def _get_error(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
