"""
Load your own images and captions
=================================

Captioned images can be loaded from folders with one text file per image, or from a table of paths
and captions. Unreadable files are reported and skipped.
"""

# %%
# Load a folder
# -------------
# This example creates a folder. The names of the subfolders are the labels, and ``tiger.txt``
# contains the caption of ``tiger.png``. Replace it with the path of your own folder.
import csv
import shutil
import tempfile
from pathlib import Path

from sklearn_ape.datasets import load_image_folder, load_openmoji, load_pairs

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
source = load_openmoji()
for number, (image, caption, category) in enumerate(
    zip(source.images, source.captions, source.categories, strict=True)
):
    if category in ("Animals & Nature", "Food & Drink"):
        target = folder / "images" / category.split()[0].lower()
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target / f"{number}.png")
        (target / f"{number}.txt").write_text(caption, encoding="utf-8")

data = load_image_folder(folder / "images")
print(len(data.images), "images, labels", sorted(set(data.labels.tolist())))
print("the first caption:", data.captions[0])

# %%
# Fit an aligner
# --------------
# The cache identifies images by content: renamed or copied images are not encoded again.
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sklearn_ape import APEAligner, ZeroShotClassifier
from sklearn_ape.datasets import get_data_home
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

cache = get_data_home() / "features"
encoder = TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1, on_error="nan")
images, test_images, captions, test_captions, _, test_labels = train_test_split(
    data.images, data.captions, data.labels, test_size=0.25, random_state=0
)
model = make_pipeline(
    encoder, APEAligner(text_encoder=TransformersTextEncoder(cache=cache), random_state=0)
).fit(images, captions)
classifier = ZeroShotClassifier(
    {"animals": ["an animal", "a plant"], "food": ["food", "a drink"]}, aligner=model
)
print(f"accuracy on {len(test_images)} held-out images:", end=" ")
print(f"{classifier.score(test_images, test_labels):.1%} (chance 50.0%)")

# %%
# Load a table
# ------------
# `load_pairs` reads csv, tsv, JSON Lines and parquet files and DataFrames with any column names.
with open(folder / "pairs.csv", "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["file", "text"])
    writer.writerows(zip(data.images, data.captions, strict=True))
table = load_pairs(folder / "pairs.csv", image="file", caption="text")
print(len(table.images), "pairs from the table, same captions:", table.captions == data.captions)

# %%
# Unreadable files
# ----------------
# With ``on_error="nan"``, the encoder skips an unreadable file with a warning, and the classifier
# predicts "unknown". The default, ``"raise"``, raises an error that names the row.
import warnings

broken = folder / "broken.png"
broken.write_bytes(b"not an image")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(classifier.predict([test_images[0], str(broken)]))
for warning in caught:
    print("warning:", str(warning.message).replace(temporary.name, "..."))

# %%
# Plot the similarity matrix
# --------------------------
# Right pairs are framed. They should be the brightest cells of their row and column.
from sklearn_ape.inspection import SimilarityMatrixDisplay

SimilarityMatrixDisplay.from_estimator(model, test_images[:10], test_captions[:10])
temporary.cleanup()
