"""
Classify by label names without training pairs
==============================================

If you have images and label names but no captions yet, use the starter model. It is an aligner for
EfficientNet-Lite0 and MiniLM that is included in the package.
"""

# %%
# Classify by label names
# -----------------------
# This example uses up to ten images per class. Without an aligner, the classifier uses the starter
# model and needs no call of `fit`.
import re

import numpy as np

from sklearn_ape import ZeroShotClassifier
from sklearn_ape.datasets import load_openmoji

data = load_openmoji()
names = ["arrow", "cat", "clock", "flag", "heart", "moon", "train", "woman"]
rows, y = [], []
for name in names:
    matches = [i for i, text in enumerate(data.captions) if re.search(rf"\b{name}\b", text)]
    rows += matches[:10]
    y += [name] * len(matches[:10])
X, y = [data.images[row] for row in rows], np.array(y)

classifier = ZeroShotClassifier(names)
predicted = classifier.predict(X)
accuracy = np.mean(predicted == y)
print(f"accuracy on {len(X)} images: {accuracy:.1%}")
print(f"chance: {1 / len(names):.1%}")

# %%
# The starter model has not seen these images, but it was trained on emoji of other styles (see its
# model card). For your own images, label about 200 by hand to estimate the accuracy. The confusion
# matrix shows which classes are confused.
from sklearn_ape.inspection import ZeroShotConfusionDisplay

ZeroShotConfusionDisplay.from_predictions(y, predicted, images=X)

# %%
# Standardized similarities
# -------------------------
# Some names are similar to all images and are predicted too often. Standardizing the similarities
# with respect to the images to be classified can correct this. It needs no labels.
standardized = ZeroShotClassifier(names, standardize=X)
print(f"accuracy on the same images with standardize=X: {standardized.score(X, y):.1%}")

# %%
# Broad categories are harder
# ---------------------------
# The model recognizes specific objects better than broad categories. Descriptions improve the
# accuracy (see the example on prompts), and so do a few hundred training pairs of your own.
broad = ZeroShotClassifier(["an animal", "a building", "a vehicle", "a plant", "food", "a symbol"])
labels, probabilities = broad.predict_top_k(X[::10], k=3)
for row, top_labels, top_probabilities in zip(rows[::10], labels, probabilities, strict=True):
    top = zip(top_labels, top_probabilities, strict=True)
    print(f"{data.captions[row]:28s}", ", ".join(f"{label} {p:.0%}" for label, p in top))
