"""Models by folder or by the name that they have on the Hugging Face hub."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from ._folder import FILES, read_model
from ._values import Rebuilder

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
