"""
Classify with no pairs at all
=============================

You have images and names, and nobody has captioned anything yet. The starter model, a head that
ships with the package for EfficientNet-Lite0 and MiniLM, gives a first answer at once.
"""

# %%
# Names are enough
# ----------------
# Up to ten images of each kind. No `fit`: without an aligner the classifier uses the starter
# model.
import re

import numpy as np

from sklearn_ape import ZeroShotClassifier
from sklearn_ape.datasets import load_openmoji

data = load_openmoji()
names = ["arrow", "cat", "clock", "flag", "heart", "moon", "train", "woman"]
rows, y = [], []
for name in names:
    of_name = [i for i, text in enumerate(data.captions) if re.search(rf"\b{name}\b", text)]
    rows += of_name[:10]
    y += [name] * len(of_name[:10])
X, y = [data.images[row] for row in rows], np.array(y)

classifier = ZeroShotClassifier(names)
predicted = classifier.predict(X)
print(f"accuracy on {len(X)} images that the starter model knows: {np.mean(predicted == y):.1%}")
print(f"chance: {1 / len(names):.1%}")

# %%
# The figure flatters: emoji were among the images that the starter model was made with, as its
# model card says. It shows how to begin, not what to expect. On images of your own, label fifty
# by hand and look at the same figure.
from sklearn_ape.inspection import ZeroShotConfusionDisplay

ZeroShotConfusionDisplay.from_predictions(y, predicted, images=X)

# %%
# Cosines relative to what is usual
# ---------------------------------
# Some names are similar to everything, and win too often. Taking cosines relative to the images
# to be sorted, which need no labels, can mend that.
relative = ZeroShotClassifier(names, standardize=X)
print(f"accuracy on the same images with standardize=X: {relative.score(X, y):.1%}")

# %%
# Broad words are harder
# ----------------------
# The model knows things better than categories of them: descriptions help, see the example on
# prompts, and so do a few hundred pairs of your own.
fine = ZeroShotClassifier(["an animal", "a building", "a vehicle", "a plant", "food", "a symbol"])
labels, probabilities = fine.predict_top_k(X[::10], k=3)
for row, some, how_sure in zip(rows[::10], labels, probabilities, strict=True):
    guesses = ", ".join(f"{a} {p:.0%}" for a, p in zip(some, how_sure, strict=True))
    print(f"{data.captions[row]:28s} {guesses}")
