"""Models on the Hugging Face hub, and their model cards."""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.escape import escape_controls, escape_markdown
from ._serialize import Rebuilder
from .files import FILES, read_model

if TYPE_CHECKING:
    from ._serialize import Recorder

_LONGEST = 120


_LIMITS = (
    "Images and texts unlike those that it was fitted on are matched less well: measure on your "
    "own before relying on it.",
    "It inherits what its encoders know and what they are biased towards.",
)


@dataclass
class Facts:
    """What an estimator tells of itself.

    Parameters
    ----------
    what : str
        A sentence or two, in Markdown: names that a user gave are to be escaped in it.
    facts : dict of str to object
        Rows of a table, as plain text.
    scores : dict of str to float
        What it measured itself, by names in plain text.
    limits : list of str
        Sentences, in Markdown.
    usage : str
        Code that uses ``model``.
    tags : list of str
        Of the hub.
    """

    what: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    usage: str = ""
    tags: list[str] = field(default_factory=list)


def checked_scores(scores: Mapping[str, float] | None) -> dict[str, float]:
    """Return scores as plain numbers.

    Raises
    ------
    ValueError
        When one is not finite, or has no name.
    """
    if scores is None:
        return {}
    if not isinstance(scores, Mapping):
        raise ValueError(
            f"scores must be a mapping such as {{'accuracy': 0.9}}, not {type(scores).__name__}."
        )
    for name, score in scores.items():
        known = isinstance(name, str) and isinstance(score, Real) and not isinstance(score, bool)
        if not known or not math.isfinite(score):
            raise ValueError(f"scores holds {name!r}: {score!r}: expected a name and a number.")
    return {name: float(score) for name, score in scores.items()}


def card_of(
    model: Mapping[str, Any],
    facts: Facts,
    scores: Mapping[str, float],
    recorder: Recorder,
    version: str,
) -> str:
    """Return the text of a model card."""
    name = model["$class"]
    n_bytes = sum(array.nbytes for array in recorder.tensors.values())
    rows = {
        **facts.facts,
        "encoders": ", ".join(dict.fromkeys(_encoders(model)))
        or facts.facts.get("encoders", "none: it takes features"),
        "size": f"{n_bytes / 1e6:.3g} MB",
        "made with": f"sklearn-ape {version}",
    }
    parts = [
        _front(facts.tags),
        f"# {name}",
        facts.what,
        "| | |\n|---|---|\n" + "\n".join(f"| {k} | {_cell(v)} |" for k, v in rows.items()),
        "## Use",
        f"```python\n{_usage(name, facts.usage)}\n```",
    ]
    measured = {**facts.scores, **scores}
    parts += ["## Measured"]
    if measured:
        parts += [
            "| | |\n|---|---|\n"
            + "\n".join(f"| {_cell(k)} | {v:.4g} |" for k, v in measured.items())
        ]
    else:
        parts += ["Nothing was given: `save_pretrained(folder, scores={...})` puts figures here."]
    parts += ["## Made by", f"```python\n{name}(\n{_params(model)})\n```"]
    if recorder.left_out:
        places = ", ".join(f"`{_in_code(place)}`" for place in recorder.left_out)
        parts += [f"Not saved, since it has no form in a file: {places}."]
    limits = [*facts.limits, *_LIMITS]
    parts += ["## Limits", "\n".join(f"- {limit}" for limit in limits)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(tags: list[str]) -> str:
    lines = ["library_name: sklearn-ape", "tags:"]
    # Of other tags, JSON is YAML that says nothing but this text.
    lines += [
        f"- {tag if re.fullmatch('[a-z][a-z0-9-]*', tag) else json.dumps(tag)}"
        for tag in ("sklearn-ape", "scikit-learn", *tags)
    ]
    # Whose images, whose license: only who fitted it knows.
    return "\n".join(["---", *lines, "# license: apache-2.0", "---"])


def _usage(name: str, usage: str) -> str:
    load = "import sklearn_ape\n\nmodel = sklearn_ape.load_pretrained('owner/name or folder')"
    return f"{load}  # a {name}\n{usage}".rstrip()


def _encoders(value: Any) -> Iterator[str]:
    """Yield the encoders in a record, with what tells their weights from others."""
    if isinstance(value, dict):
        name = str(value.get("$class", ""))
        if name.endswith("Encoder"):
            weights = str((value.get("state") or {}).get("weights") or "")
            at = f" ({weights[:24]})" if weights else ""
            yield f"{name}({str(value['params'].get('model_name'))!r}){at}"
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _encoders(item)


def _params(model: Mapping[str, Any]) -> str:
    lines = []
    for name, value in model["params"].items():
        if isinstance(value, dict) and len(value) == 1:
            tag, inner = next(iter(value.items()))
            value = _Named("Pipeline(...)") if tag == "$pipeline" else inner
        if isinstance(value, dict) and "$class" in value:
            value = _Named(f"{value['$class']}(...)")
        lines.append(f"    {name}={_in_code(_short.repr(value))},\n")
    return "".join(lines)


class _Named(str):
    """Shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


_short = reprlib.Repr()


_short.maxstring = _short.maxother = _LONGEST


_short.maxlist = _short.maxdict = 8


def _cell(value: Any) -> str:
    return escape_markdown(value if isinstance(value, str) else _short.repr(value))


def _in_code(text: str) -> str:
    r"""Return the same Python without what could end a code block or begin HTML.

    In a literal, which is where such characters come from, the escapes mean the same text.
    """
    return re.sub("[`<>]", lambda found: f"\\x{ord(found[0]):02x}", escape_controls(text))


_REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


_NO_HUB = 'Models on the hub need huggingface_hub: pip install "sklearn-ape[hub]".'


def load_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache: Any = None,
    device: Any = "auto",
) -> Any:
    """Load an aligner, classifier or retriever that `save_pretrained` wrote.

    The class is read from the file, and is one of this package. Nothing that a file says is ever
    executed.

    Parameters
    ----------
    source : str or path-like
        A folder, or the name of a model on the Hugging Face hub, ``"owner/name"``.
    revision : str or None, default=None
        Branch, tag or commit on the hub.
    token : str, bool or None, default=None
        Of the hub; None takes the one that you are logged in with.
    cache : str, path-like, FeatureCache or None, default=None
        Where the encoders keep features; None is their own default.
    device : {"auto"}, str or torch.device, default="auto"
        Where encoders and heads are computed.

    Returns
    -------
    estimator : estimator
        Fitted.

    Raises
    ------
    ValueError
        When there is no such model, it is damaged, of a newer format, or its encoders have other
        weights here than it was fitted with.
    ImportError
        When the package with an encoder's weights, or huggingface_hub, is not installed.
    OSError
        When the files cannot be read, or the hub cannot be reached.

    See Also
    --------
    sklearn_ape.ZeroShotClassifier.save_pretrained : Writes such a folder.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from sklearn_ape import CCAAligner, load_pretrained
    >>> rng = np.random.default_rng(0)
    >>> features = rng.standard_normal((50, 6))
    >>> aligner = CCAAligner().fit(features, features[:, :4])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     aligner.save_pretrained(f"{folder}/my-aligner")
    ...     again = load_pretrained(f"{folder}/my-aligner")
    >>> bool(np.array_equal(again.transform(features), aligner.transform(features)))
    True
    """
    folder = located(source, revision, token)
    return restored(folder, {"device": device} | ({} if cache is None else {"cache": cache}))


def restored(folder: Path, settings: dict[str, Any]) -> Any:
    """Return the estimator in a folder."""
    try:
        config, tensors = read_model(folder)
        rebuilder = Rebuilder(tensors, settings)
        found = rebuilder.object(config.get("model"))
        rebuilder.close()
    except (ValueError, OSError, ImportError):
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        RuntimeError,
        TypeError,
    ) as error:
        # What a file says may make no sense in more ways than are foreseen.
        raise ValueError(
            f"{str(folder)!r} holds no model that this version of sklearn-ape can read: {error}"
        ) from error
    return found


def located(source: str | os.PathLike[str], revision: str | None, token: Any) -> Path:
    """Return the local folder of a model, fetched from the hub if it is there.

    Raises
    ------
    ValueError
        When the source is neither a folder nor a name of the hub.
    OSError
        When the hub has no such model, or cannot be reached.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(
            f"{str(source)!r} is a file: expected the folder that save_pretrained wrote. Pickles "
            "and torch checkpoints are never opened."
        )
    if not isinstance(source, str) or not _REPO.fullmatch(source) or source.startswith("."):
        raise FileNotFoundError(
            f"There is no folder {str(source)!r}, and it is no name of a model on the hub (those "
            "read 'owner/name')."
        )
    return _fetched(source, revision, token)


def upload(folder: Path, repo_id: str, token: Any, private: bool | None, message: str) -> str:
    """Upload a folder to the hub and return its address."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ImportError(_NO_HUB) from error
    if not isinstance(repo_id, str) or not repo_id or repo_id.startswith((".", "/")):
        raise ValueError(f"repo_id must read 'owner/name', not {repo_id!r}.")
    api = HfApi(token=token, library_name="sklearn-ape")
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            commit_message=message,
            allow_patterns=list(FILES),
        )
    except HfHubHTTPError as error:
        raise OSError(
            f"The hub did not take {repo_id!r}: {error} Log in with `hf auth login`, or pass "
            "token=, and see that the name's owner is you."
        ) from error
    except Exception as error:  # of the library below, which differs by the hub's version
        raise OSError(
            f"{repo_id!r} was not uploaded: {error or type(error).__name__}. Can the hub be "
            "reached? save_pretrained keeps the model in a folder meanwhile."
        ) from error
    return str(repo)


def _fetched(repo_id: str, revision: str | None, token: Any) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise ImportError(f"There is no folder {repo_id!r}. {_NO_HUB}") from error
    try:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            allow_patterns=list(FILES),
            library_name="sklearn-ape",
        )
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is neither a folder nor a hub model {repo_id!r}, or it is private: log in "
            "with `hf auth login`, or pass token=."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"The hub model {repo_id!r} has no revision {revision!r}."
        ) from error
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a hub model: {error}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise OSError(
            f"There is no folder {repo_id!r}, and the hub model of this name is neither in the "
            f"local cache nor can the hub be reached: {error}"
        ) from error
    return Path(folder)


def temporary() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that is removed in the end."""
    return tempfile.TemporaryDirectory(prefix="sklearn_ape_")
