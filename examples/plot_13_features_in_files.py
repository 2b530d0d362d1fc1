"""
More images than fit in memory
================================

Features of a million images are gigabytes. `encode_to` writes them into a file, chunk by chunk,
and goes on where it was stopped; aligners read them from there a bounded number of rows at a time.
"""

# %%
# Encode into a file
# ------------------
# In half precision: half the space. Here a few hundred images stand for the million.
import tempfile
from pathlib import Path

import numpy as np

from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

data = load_openmoji()
images, captions = data.images[::3], data.captions[::3]
temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
folder = Path(temporary.name)
cache = get_data_home() / "features"
image_encoder = TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1)
text_encoder = TransformersTextEncoder(cache=cache)
image_encoder.encode_to(folder / "images.npy", images, dtype="float16", chunk_size=128)
text_encoder.encode_to(folder / "captions.npy", captions, dtype="float16", chunk_size=128)
for path in sorted(folder.glob("*.npy")):
    print(path.name, f"{path.stat().st_size / 2**20:.1f} MiB")

# %%
# A second run only checks: nothing is encoded, nothing is written.
written = (folder / "images.npy").stat().st_mtime_ns
image_encoder.encode_to(folder / "images.npy", images, dtype="float16", chunk_size=128)
print("untouched:", (folder / "images.npy").stat().st_mtime_ns == written)

# %%
# Fit on the files
# ----------------
# ``mmap_mode="r"`` opens a file without reading it. Any aligner takes it in place of an array.
from sklearn_ape import APEAligner

X = np.load(folder / "images.npy", mmap_mode="r")
y = np.load(folder / "captions.npy", mmap_mode="r")
n_train = 4 * len(X) // 5
# A start that scales: linear regression instead of a kernel over all captions.
aligner = APEAligner(init="linear", width=256, max_epochs=5, random_state=0)
aligner.fit(X[:n_train], y[:n_train])

# %%
# What half precision costs
# -------------------------
# The same fit on full precision. The difference is far below what these few pairs can show.
aligner_32 = APEAligner(init="linear", width=256, max_epochs=5, random_state=0)
X_32, y_32 = image_encoder.transform(images), text_encoder.transform(captions)
aligner_32.fit(X_32[:n_train], y_32[:n_train])
for name, one, sides in (
    ("float16, from files", aligner, (X, y)),
    ("float32, in memory", aligner_32, (X_32, y_32)),
):
    print(f"{name:20s} recall@1 {one.score(*(side[n_train:] for side in sides)):.1%}")

# %%
# Plan the disk
# -------------
width = X.shape[1]
print(f"features of {width} numbers in half precision, by number of images:")
for n, what in ((463_622, "ImageNet-Captions"), (12_000_000, "CC12M"), (400_000_000, "CLIP's")):
    print(f"{what:18s} {n:>12,d}  {n * width * 2 / 1e9:8.1f} GB")
del X, y
temporary.cleanup()
