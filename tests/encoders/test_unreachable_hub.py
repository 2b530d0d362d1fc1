"""Sentence-transformers models in the local cache of a hub that cannot be reached."""

import shutil
import warnings

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from sklearn_ape import encoders
from sklearn_ape.encoders import TransformersTextEncoder, base
from sklearn_ape.utils.concurrency import LRUCache
from tests.encoders.test_transformers import TEXTS, sentence_model, theirs

SIDE_FILES = ("modules.json", "config_sentence_transformers.json", "1_Pooling/config.json")


class TestUnreachableHub:
    """The hub is unreachable, and a model is in its local cache, with or without all files."""

    commit = "0" * 40

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(base, "shared_networks", LRUCache(max_entries=8))
        folder = tmp_path / "hub" / "models--me--model"
        snapshot = folder / "snapshots" / self.commit
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(self.commit)
        sentence_model(snapshot, {"query": "the dog "}, "query", {"pooling_mode_cls_token": True})
        return folder

    @pytest.fixture
    def snapshot(self, folder):
        """Return the folder of a model of which only the side files are not in the cache."""
        snapshot = folder / "snapshots" / self.commit
        for name in SIDE_FILES:
            (snapshot / name).rename(folder / name.replace("/", "-"))
        return snapshot

    def complete(self, folder):
        for name in SIDE_FILES:
            (folder / name.replace("/", "-")).rename(folder / "snapshots" / self.commit / name)

    @pytest.mark.parametrize("name", ["TransformersTextEncoder", "SentenceTransformerEncoder"])
    def test_incomplete_model_warns_and_has_other_cache_keys(
        self, name, folder, snapshot, tmp_path
    ):
        if name.startswith("Sentence"):
            pytest.importorskip("sentence_transformers")
        encoder = getattr(encoders, name)("me/model", cache=str(tmp_path / "features"))
        with pytest.warns(UserWarning, match=r"'me/model' was loaded without modules\.json and"):
            incomplete = encoder.transform(TEXTS)
        plain = TransformersTextEncoder(str(snapshot), cache=None, pooling="mean")
        np.testing.assert_allclose(incomplete, plain.transform(TEXTS), atol=1e-5)
        self.complete(folder)
        base.shared_networks.clear()
        features = encoder.transform(TEXTS)
        np.testing.assert_allclose(features, theirs(snapshot, TEXTS), atol=1e-5)
        assert np.abs(features - incomplete).max() > 1e-3

    def test_downloaded_files_give_the_usual_cache_keys(self, folder, snapshot, monkeypatch):
        """A load that downloads the files precedes the key."""
        load = TransformersTextEncoder._load_network

        def download_and_load(encoder, device):
            self.complete(folder)
            return load(encoder, device)

        monkeypatch.setattr(TransformersTextEncoder, "_load_network", download_and_load)
        assert "unknown_files" not in TransformersTextEncoder("me/model")._get_identity()

    @pytest.mark.parametrize("moment", ["after", "during"])
    def test_moved_branch_is_loaded_again(self, folder, tmp_path, monkeypatch, moment):
        """The features of the earlier weights were stored as those of the new ones."""
        other = folder / "snapshots" / ("1" * 40)
        shutil.copytree(folder / "snapshots" / self.commit, other)
        weights = load_file(other / "model.safetensors")
        noise = np.random.default_rng(0).standard_normal
        weights = {k: v + noise(v.shape).astype(v.dtype) for k, v in weights.items()}
        save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
        load = TransformersTextEncoder._load_network

        def load_and_move(encoder, device):
            network = load(encoder, device)
            (folder / "refs" / "main").write_text(other.name)
            return network

        with monkeypatch.context() as patch:
            if moment == "during":
                patch.setattr(TransformersTextEncoder, "_load_network", load_and_move)
            TransformersTextEncoder("me/model")._get_network()
        (folder / "refs" / "main").write_text(other.name)
        cache = str(tmp_path / "features")
        moved = TransformersTextEncoder("me/model", cache=cache).transform(TEXTS)
        pinned = TransformersTextEncoder("me/model", revision=other.name, cache=None)
        np.testing.assert_allclose(moved, pinned.transform(TEXTS), atol=1e-5)

    def test_downloaded_model_is_loaded_once(self, folder, monkeypatch):
        """The commit, which is part of the key of the network, is unknown before the download."""
        load = TransformersTextEncoder._load_network
        loads = []

        def download_and_load(encoder, device):
            loads.append(device)
            (folder.parent / "later").rename(folder)
            return load(encoder, device)

        folder.rename(folder.parent / "later")
        monkeypatch.setattr(TransformersTextEncoder, "_load_network", download_and_load)
        TransformersTextEncoder("me/model", cache=None).transform(TEXTS)
        assert len(loads) == 1

    def test_representation_does_not_load_an_incomplete_model(self, snapshot):
        TransformersTextEncoder("me/model")._repr_html_()
        assert len(base.shared_networks) == 0

    def test_recorded_absence_does_not_warn(self, folder, snapshot):
        """huggingface_hub records files that a model does not have."""
        record = folder / ".no_exist" / self.commit / "modules.json"
        record.parent.mkdir(parents=True)
        record.touch()
        encoder = TransformersTextEncoder("me/model", cache=None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encoder.transform(TEXTS)
        assert "unknown_files" not in encoder._get_identity()
