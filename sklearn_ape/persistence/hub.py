"""Loading of models from folders and the Hugging Face Hub, uploads, and model cards."""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from ..utils.files import expand_user
from ..utils.messages import escape_controls, escape_markdown
from .files import FILES, read_model
from .serialize import Deserializer, Serializer, iter_records

_MAX_CHARACTERS = 120

_LIMITATIONS = (
    "Images and texts that differ from the training data are matched less well. Evaluate the "
    "model on your own data.",
    "It inherits the knowledge and the biases of its encoders.",
)


@dataclass
class Facts:
    """Contents of a model card that depend on the estimator.

    `what` and `limits` are sentences in Markdown, in which names given by users must be escaped.
    `rows` and `scores` are tables of plain text, `usage` is code that uses the variable
    ``model``, and `tags` are for the Hub.
    """

    what: str = ""
    rows: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    usage: str = ""
    tags: list[str] = field(default_factory=list)


def check_scores(scores: Mapping[str, float] | None) -> dict[str, float]:
    """Return scores as plain numbers; raise ValueError unless they are finite and have names."""
    if scores is None:
        return {}
    if not isinstance(scores, Mapping):
        raise ValueError(
            f"scores must be a mapping such as {{'accuracy': 0.9}}, not {type(scores).__name__}."
        )
    for name, score in scores.items():
        is_number = isinstance(score, Real) and not isinstance(score, bool)
        if not isinstance(name, str) or not is_number or not math.isfinite(score):
            raise ValueError(f"scores must map names to finite numbers, got {name!r}: {score!r}.")
    return {name: float(score) for name, score in scores.items()}


def write_card(
    model: Mapping[str, Any],
    facts: Facts,
    scores: Mapping[str, float],
    serializer: Serializer,
    version: str,
) -> str:
    """Return the text of a model card."""
    name = model["$class"]
    n_bytes = sum(array.nbytes for array in serializer.tensors.values())
    encoders = [record for record in iter_records(model) if record["$class"].endswith("Encoder")]
    rows = {
        **facts.rows,
        "encoders": ", ".join(dict.fromkeys(map(_describe_encoder, encoders)))
        or facts.rows.get("encoders", "none (input is features)"),
        "size": f"{n_bytes / 1e6:.3g} MB",
        "created with": f"sklearn-ape {version}",
    }
    scores = {**facts.scores, **scores}
    score_rows = [(_escape_cell(key), f"{score:.4g}") for key, score in scores.items()]
    load = "import sklearn_ape\n\nmodel = sklearn_ape.load_pretrained('owner/name or folder')"
    usage = f"{load}  # {name}\n{facts.usage}"
    params = "".join(f"    {k}={_format_param(value)},\n" for k, value in model["params"].items())
    no_scores = "No scores were passed to `save_pretrained(folder, scores={...})`."
    parts = [
        _format_front_matter(facts.tags),
        f"# {name}",
        facts.what,
        _format_table([(key, _escape_cell(value)) for key, value in rows.items()]),
        "## Usage",
        f"```python\n{usage.rstrip()}\n```",
        "## Scores",
        _format_table(score_rows) if scores else no_scores,
        "## Parameters",
        f"```python\n{name}(\n{params})\n```",
    ]
    if serializer.left_out:
        places = ", ".join(f"`{_escape_code(place)}`" for place in serializer.left_out)
        parts += [f"Parameters that were not saved: {places}."]
    limits = [f"- {limit}" for limit in (*facts.limits, *_LIMITATIONS)]
    parts += ["## Limitations", "\n".join(limits)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _format_table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)])


def _format_front_matter(tags: list[str]) -> str:
    """Return the YAML header that the Hub reads."""
    lines = ["library_name: sklearn-ape", "tags:"]
    # Tags with other characters are quoted as JSON, which is valid YAML.
    lines += [
        f"- {tag if re.fullmatch('[a-z][a-z0-9-]*', tag) else json.dumps(tag)}"
        for tag in ("sklearn-ape", "scikit-learn", *tags)
    ]
    # Only the user knows the license of the training data.
    return "\n".join(["---", *lines, "# license: apache-2.0", "---"])


def _describe_encoder(record: Mapping[str, Any]) -> str:
    """Return the class and the model of an encoder, and the start of its weights' digest."""
    weights = str((record["state"] or {}).get("weights") or "")
    digest = f" ({weights[:24]})" if weights else ""
    return f"{record['$class']}({str(record['params'].get('model_name'))!r}){digest}"


def _format_param(value: Any) -> str:
    if isinstance(value, dict):
        if "$class" in value:
            return f"{value['$class']}(...)"
        if "$pipeline" in value:
            return "Pipeline(...)"
        if len(value) == 1 and next(iter(value)).startswith("$"):
            return _format_param(*value.values())
    return _escape_code(_short.repr(value))


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _MAX_CHARACTERS
_short.maxlist = _short.maxdict = 8


def _escape_cell(value: Any) -> str:
    return escape_markdown(value if isinstance(value, str) else _short.repr(value))


def _escape_code(text: str) -> str:
    r"""Return Python code without characters that could end a code block or begin HTML.

    The characters come from string literals, in which the escapes have the same meaning.
    """
    return re.sub("[`<>]", lambda match: f"\\x{ord(match[0]):02x}", escape_controls(text))


_REPO_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def load_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache: Any = None,
    device: Any = "auto",
) -> Any:
    """Load an aligner, classifier or retriever that was saved with `save_pretrained`.

    The class is read from the file, and must be a class of this package. No code in the files is
    executed.

    Parameters
    ----------
    source : str or path-like
        Path of a folder, or ID of a model on the Hugging Face Hub, ``"owner/name"``.
    revision : str or None, default=None
        Branch, tag or commit on the Hub.
    token : str, bool or None, default=None
        Access token for the Hub. None uses the token of the local login.
    cache : str, path-like, FeatureCache or None, default=None
        Feature cache of the encoders. None uses their default.
    device : {"auto"}, str or torch.device, default="auto"
        Device for encoders and heads.

    Returns
    -------
    estimator : estimator
        Fitted estimator.

    Raises
    ------
    ValueError
        If the folder has no model, the model is damaged or has a newer format, or its encoders
        have other weights here than when it was fitted.
    ImportError
        If the package with an encoder's weights is not installed.
    OSError
        If the files cannot be read, or the Hub cannot be reached.

    See Also
    --------
    sklearn_ape.ZeroShotClassifier.save_pretrained : Save a fitted estimator to a folder.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from sklearn_ape import CCAAligner, load_pretrained
    >>> features = np.random.default_rng(0).standard_normal((50, 6))
    >>> aligner = CCAAligner().fit(features, features[:, :4])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     aligner.save_pretrained(f"{folder}/my-aligner")
    ...     load_pretrained(f"{folder}/my-aligner")
    CCAAligner()
    """
    folder = _locate_model(source, revision, token)
    settings = {"device": device} | ({} if cache is None else {"cache": cache})
    try:
        config, tensors = read_model(folder)
        deserializer = Deserializer(tensors, settings)
        estimator = deserializer.decode_estimator(config.get("model"))
        deserializer.close()
        return estimator
    except (ValueError, OSError, ImportError):
        raise  # some are also of a class below, such as scikit-learn's InvalidParameterError
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        # A damaged or forged file can cause errors that no check anticipates.
        raise ValueError(
            f"{str(folder)!r} has no model that this version of sklearn-ape can read: {error}"
        ) from error


def _locate_model(source: str | os.PathLike[str], revision: str | None, token: Any) -> Path:
    """Return the local folder of a model, which is downloaded from the Hub if necessary."""
    path = expand_user(source)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(
            f"{str(source)!r} is a file. Pass the folder that save_pretrained wrote. Pickles "
            "and torch checkpoints are never opened."
        )
    if not isinstance(source, str) or not _REPO_ID.fullmatch(source) or source.startswith("."):
        raise FileNotFoundError(
            f"{str(source)!r} is not a folder, and not the ID of a model on the Hub, such as "
            "'owner/name'."
        )
    return _download(source, revision, token)


def upload(folder: str, repo_id: str, token: Any, private: bool | None, message: str) -> str:
    """Upload a folder to the Hub and return the URL of the repository."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(repo_id, str) or not repo_id or repo_id.startswith((".", "/")):
        raise ValueError(f"repo_id must have the form 'owner/name', not {repo_id!r}.")
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
            f"The Hub rejected {repo_id!r}: {error} Log in with `hf auth login` or pass token=, "
            "and check that you own the namespace."
        ) from error
    except Exception as error:  # its class depends on the version of huggingface_hub
        raise OSError(
            f"{repo_id!r} was not uploaded: {error or type(error).__name__}. Check the connection "
            "to the Hub. save_pretrained saves the model to a local folder."
        ) from error
    return str(repo)


def _download(repo_id: str, revision: str | None, token: Any) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            allow_patterns=list(FILES),
            library_name="sklearn-ape",
        )
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id!r} is neither a folder nor a public model on the Hub. If the model is "
            "private, log in with `hf auth login` or pass token=."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise OSError(
            f"{repo_id!r} is not a folder, and cannot be loaded from the Hub or from the local "
            f"cache: {error}"
        ) from error
    return Path(folder)
