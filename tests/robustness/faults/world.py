"""Images, encoders and expected features that all groups of faults share."""

import hashlib
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import timm
import torch

from sklearn_ape.aligners import ASIFAligner, CCAAligner, KernelAligner
from sklearn_ape.datasets import load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder
from tests.robustness.child_processes import expect, run_in_child

N_IMAGES = 64
BATCH = 8


class SharedInputs:
    """Images, encoders and features, created before torch has started threads in the process."""

    def __init__(self, folder, n_images=N_IMAGES):
        torch.set_num_threads(1)  # a pool of threads would not survive a fork
        self.folder = Path(folder)
        self.images = self.folder / "images"
        self.images.mkdir(parents=True)
        self.network = str(self.folder / "network")
        os.mkdir(self.network)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = timm.create_model("test_vit", pretrained=False, num_classes=7).eval()
            for parameter in model.parameters():
                if parameter.ndim > 1:  # large weights, so that features of images differ clearly
                    torch.nn.init.normal_(parameter, std=0.2)
        timm.models.save_for_hf(model, self.network, safe_serialization=True)
        encoder = self.encoder(None)
        encoder._get_network()  # shared by all children
        self.text_encoder = TransformersTextEncoder(cache=None, engine="torch", device="cpu")
        self.text_encoder._get_network()
        self._choose(n_images, encoder)
        self.texts = run_in_child(lambda: self.text_encoder.transform(self.captions))
        identity = encoder._digest_identity()
        keys = [
            hashlib.sha256(identity + encoder._digest_item(path)).digest() for path in self.paths
        ]
        self.numbers = {key: number for number, key in enumerate(keys)}
        for path in [self.folder, *self.folder.rglob("*")]:
            path.chmod(0o755)  # children may run as the user nobody

    def _choose(self, n_images, encoder):
        """Copy images whose features differ clearly, so that a wrong feature is detected."""
        data = load_openmoji()
        rows = np.random.default_rng(0).permutation(len(data.images))[: 3 * n_images]
        # A child is used because torch must not start threads in this process.
        features = run_in_child(lambda: encoder.transform([data.images[row] for row in rows]))
        self.tolerance = 1e-3 * float(features.std())
        chosen = {}
        for row, feature in zip(rows, features, strict=True):
            path = str(self.images / _file_name(data.captions[row]))
            others = np.array([feature for _, feature in chosen.values()])
            is_apart = not chosen or np.abs(others - feature).max(axis=1).min() > (
                20 * self.tolerance
            )
            if len(chosen) < n_images and path not in chosen and is_apart:
                chosen[path] = (row, feature)
                shutil.copy(data.images[row], path)
        expect(len(chosen) == n_images, f"{len(chosen)} distinguishable images")
        self.paths = sorted(chosen)
        self.captions = [data.captions[chosen[path][0]] for path in self.paths]
        self.features = np.array([chosen[path][1] for path in self.paths])

    def encoder(self, cache):
        return TimmImageEncoder(
            self.network, cache=cache, batch_size=BATCH, engine="torch", device="cpu", n_jobs=1
        )

    def aligners(self):
        """Return fitted aligners with distinct fingerprints."""
        aligners = [KernelAligner(ridge=10.0**n) for n in (-2, -1)] + [
            ASIFAligner(k=10),
            CCAAligner(),
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [aligner.fit(self.features, self.texts) for aligner in aligners]

    def check_rows(self, features, rows=slice(None), what="features"):
        expected = self.features[rows]
        expect(features.shape == expected.shape, f"{what} of shape {features.shape}")
        bad = np.flatnonzero(~(np.abs(features - expected) < self.tolerance).all(axis=1))
        expect(not len(bad), f"{what}: rows {bad[:5]} differ from those of the network")


def _file_name(caption):
    """Return a file name from which `captions="filename"` reads the caption."""
    return "".join(c if c.isalnum() else "_" for c in caption) + ".png"
