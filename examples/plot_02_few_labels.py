"""
Combine names with a few labelled images
========================================

With a few labelled images per class, `FewShotClassifier` combines what the names of the classes
say with what the images show. This example compares it with the names alone and with logistic
regression, for an increasing number of labelled images.
"""

# %%
# Images of ten classes
# ---------------------
# The starter model has not seen these drawings. Their features are computed once.
import numpy as np
from matplotlib import pyplot as plt
from sklearn.linear_model import LogisticRegression

from sklearn_ape import FewShotClassifier, ZeroShotClassifier, load_starter
from sklearn_ape.datasets import load_openmoji

names = {
    "animal-bird": "a bird",
    "animal-mammal": "a mammal",
    "clothing": "clothing",
    "drink": "a drink",
    "food-prepared": "a meal",
    "household": "a household object",
    "place-building": "a building",
    "sky & weather": "the sky or the weather",
    "tool": "a tool",
    "transport-ground": "a land vehicle",
}
data = load_openmoji()
rows = [row for row, kind in enumerate(data.subcategories) if kind in names]
X = np.array([data.images[row] for row in rows])
y = np.array([names[data.subcategories[row]] for row in rows])
labels = sorted(names.values())
features = load_starter().image_encoder_.transform(X)
print(f"{len(X)} images of {len(labels)} classes")

# %%
# Accuracy by number of labelled images
# -------------------------------------
# Each point is the mean over three random choices of the labelled images. All other images are
# used for testing.
counts = [1, 4, 16]
curves = {"names and images": [], "images alone": [], "names alone": []}
for count in counts:
    scores = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(y))
        chosen = [[row for row in order if y[row] == label][:count] for label in labels]
        train = np.concatenate(chosen)
        test = np.setdiff1d(order, train)
        few = FewShotClassifier(labels).fit(X[train], y[train])
        regression = LogisticRegression(max_iter=500).fit(features[train], y[train])
        zero_shot = ZeroShotClassifier(labels)
        scores.append(
            [
                few.score(X[test], y[test]),
                regression.score(features[test], y[test]),
                zero_shot.score(X[test], y[test]),
            ]
        )
    for curve, score in zip(curves.values(), np.mean(scores, axis=0), strict=True):
        curve.append(score)

figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for name, curve in curves.items():
    ax.plot(counts, curve, marker="o", label=name)
ax.set(xscale="log", xticks=counts, xlabel="labelled images per class", ylabel="accuracy")
ax.set_xticklabels(counts)
ax.minorticks_off()
ax.legend()

# %%
# Correct a prediction
# --------------------
# ``partial_fit`` adds a labelled image. The result is that of a fit with all labelled images.
few = FewShotClassifier(labels).fit(X[train], y[train])
wrong = test[few.predict(X[test]) != y[test]][:1]
print("predicted:", few.predict(X[wrong])[0], "| correct:", y[wrong][0])
few.partial_fit(X[wrong], y[wrong])
print("after the correction:", few.predict(X[wrong])[0])

# %%
# Name the rest of the collection together
# ----------------------------------------
# The images that are not labelled are similar to each other, which `predict_together` uses.
rest = np.setdiff1d(test, wrong)
print(f"one by one: {few.score(X[rest], y[rest]):.1%}")
print(f"together: {np.mean(few.predict_together(X[rest]) == y[rest]):.1%}")
