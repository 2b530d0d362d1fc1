"""
Fit on features larger than memory
==================================

The features of a million images take gigabytes. `encode_to` writes them to a file in chunks and
resumes after an interruption. Aligners read the file in blocks of rows.
"""

# %%
# Encode to a file
# ----------------
# Half precision takes half of the space. This example uses only a few hundred images.
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
# A second run only validates the file. It does not encode or write anything.
modified = (folder / "images.npy").stat().st_mtime_ns
image_encoder.encode_to(folder / "images.npy", images, dtype="float16", chunk_size=128)
print("untouched:", (folder / "images.npy").stat().st_mtime_ns == modified)

# %%
# Fit on the files
# ----------------
# ``mmap_mode="r"`` opens the file as a memory map without reading it. All aligners accept memory
# maps.
from sklearn_ape import APEAligner

X = np.load(folder / "images.npy", mmap_mode="r")
y = np.load(folder / "captions.npy", mmap_mode="r")
n_train = 4 * len(X) // 5
# Linear initialization scales to more pairs than a kernel over all captions.
aligner = APEAligner(init="linear", width=256, max_epochs=5, random_state=0)
aligner.fit(X[:n_train], y[:n_train])

# %%
# Effect of half precision
# ------------------------
# The same aligner is fitted on features in full precision. The difference is not significant for
# so small a test set.
aligner_32 = APEAligner(init="linear", width=256, max_epochs=5, random_state=0)
X_32, y_32 = image_encoder.transform(images), text_encoder.transform(captions)
aligner_32.fit(X_32[:n_train], y_32[:n_train])
for name, recall in (
    ("float16, from files", aligner.score(X[n_train:], y[n_train:])),
    ("float32, in memory", aligner_32.score(X_32[n_train:], y_32[n_train:])),
):
    print(f"{name:20s} recall@1 {recall:.1%}")

# %%
# Estimate the disk space
# -----------------------
width = X.shape[1]
print(f"features of {width} numbers in half precision, by number of images:")
for n, dataset in ((463_622, "ImageNet-Captions"), (12_000_000, "CC12M"), (400_000_000, "CLIP")):
    print(f"{dataset:18s} {n:>12,d}  {n * width * 2 / 1e9:8.1f} GB")
del X, y
temporary.cleanup()
