"""
See what is confused with what
==============================

A number says how often a zero-shot classifier errs. Images say why.
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
# Confusion with images
# -----------------------
# Each cell shows one of its images. Many mistakes turn out to be the fault of the labels: a name
# is missing that a person would have given. What is below the threshold stands in a column of
# its own.
from sklearn_ape.inspection import ZeroShotConfusionDisplay

classifier = ZeroShotClassifier(names, aligner=model, threshold=0.3)
display = ZeroShotConfusionDisplay.from_estimator(classifier, X, y)
# sphinx_gallery_thumbnail_number = 1

# %%
# Most frequent mistakes, and what would have to be told apart.
counts = display.counts.copy()
labels, called = display.row_labels, display.column_labels
for row, column in np.argwhere(counts > 0):
    if labels[row] == called[column]:
        counts[row, column] = 0
for place in np.argsort(-counts, axis=None)[:4]:
    row, column = np.unravel_index(place, counts.shape)
    print(f"{counts[row, column]:3d} of {labels[row]} called {called[column]}")

# %%
# Many classes
# ------------
# With the captions themselves as classes there are hundreds; the classes of the most frequent
# mistakes are shown, and the title says so.
by_caption = ZeroShotClassifier(sorted(set(X_captions)), aligner=model, templates="none")
ZeroShotConfusionDisplay.from_estimator(by_caption, X, X_captions, max_classes=8)

# %%
# Both modalities on one map
# --------------------------
# Two of many dimensions. Captions (triangles) and images (circles) of one category lie together,
# and yet not on each other: the modality gap, which `center=True` takes out.
from sklearn_ape.inspection import EmbeddingMapDisplay

some = slice(0, 150)
EmbeddingMapDisplay.from_estimator(
    model, X[some], X_captions[some], labels=y[some], random_state=0
)

# %%
# t-SNE keeps neighbours, and nothing else: distances between groups mean nothing.
EmbeddingMapDisplay.from_estimator(
    model,
    X[some],
    X_captions[some],
    labels=y[some],
    reducer="tsne",
    center=True,
    random_state=0,
    thumbnails=60,
)
