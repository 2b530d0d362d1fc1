"""
See errors in a confusion matrix and a map of images
====================================================

The accuracy of a zero-shot classifier does not explain its errors. Images in the cells of the
confusion matrix help to find their causes.
"""

# %%
import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sklearn_ape import KernelAligner, ZeroShotClassifier
from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

data = load_openmoji()
cache = get_data_home() / "features"
model = make_pipeline(
    TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1),
    KernelAligner(text_encoder=TransformersTextEncoder(cache=cache)),
)
images, X, captions, X_captions, _, y = train_test_split(
    data.images, data.captions, data.categories, test_size=0.2, random_state=0
)
model.fit(images, captions)
names = {
    "Animals & Nature": ["an animal", "a bird", "a plant", "a flower"],
    "Food & Drink": ["food", "a drink", "a fruit", "a meal"],
    "Objects": ["a tool", "clothing", "a household object", "office supplies"],
    "People & Body": ["a person", "a hand gesture", "a man", "a woman"],
    "Smileys & Emotion": ["a smiley face", "an emotion", "a heart"],
    "Travel & Places": ["a vehicle", "a building", "a landscape", "the weather"],
}
rows = np.flatnonzero(np.isin(y, list(names)))
X, X_captions, y = [X[row] for row in rows], [X_captions[row] for row in rows], y[rows]

# %%
# Confusion matrix
# ----------------
# Each cell shows one of its images. Many errors are caused by the labels, which lack a suitable
# name. Images below the threshold have a separate column.
from sklearn_ape.inspection import ZeroShotConfusionDisplay

classifier = ZeroShotClassifier(names, aligner=model, threshold=0.3)
display = ZeroShotConfusionDisplay.from_estimator(classifier, X, y)
# sphinx_gallery_thumbnail_number = 1

# %%
# The most frequent errors:
counts = display.counts.copy()
true, predicted = display.row_labels, display.column_labels
for row, column in np.argwhere(counts > 0):
    if true[row] == predicted[column]:
        counts[row, column] = 0
for cell in np.argsort(-counts, axis=None)[:4]:
    row, column = np.unravel_index(cell, counts.shape)
    print(f"{counts[row, column]:3d} of {true[row]} predicted as {predicted[column]}")

# %%
# Many classes
# ------------
# If every caption is a class, there are hundreds of classes. The display then shows only the
# classes with the most frequent errors, which the title states.
by_caption = ZeroShotClassifier(sorted(set(X_captions)), aligner=model, templates="none")
ZeroShotConfusionDisplay.from_estimator(by_caption, X, X_captions, max_classes=8)

# %%
# Embedding map
# -------------
# The map shows two dimensions of the shared space. Captions (triangles) and images (circles) of
# the same category are close to each other but do not overlap. This is the modality gap, which
# `center=True` removes.
from sklearn_ape.inspection import EmbeddingMapDisplay

subset = slice(0, 150)
EmbeddingMapDisplay.from_estimator(
    model, X[subset], X_captions[subset], labels=y[subset], random_state=0
)

# %%
# t-SNE preserves only neighbourhoods. Distances between groups are meaningless.
EmbeddingMapDisplay.from_estimator(
    model,
    X[subset],
    X_captions[subset],
    labels=y[subset],
    reducer="tsne",
    center=True,
    random_state=0,
    thumbnails=60,
)
