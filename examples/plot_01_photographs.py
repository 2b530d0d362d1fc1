"""
Name and search photographs without training
============================================

The names of the classes are enough to classify photographs, and a text is enough to find one.
This example uses the starter model, which is included in the package, and nothing is trained.
"""

# %%
# Twelve photographs
# ------------------
# They are included in scikit-learn and scikit-image. Grey photographs are allowed.
from skimage import data
from sklearn.datasets import load_sample_images

photos = [*load_sample_images().images, data.chelsea(), data.coffee(), data.rocket()]
photos += [data.astronaut(), data.moon(), data.coins(), data.hubble_deep_field()]
photos += [data.camera(), data.brick(), data.retina()]

# %%
# Name them
# ---------
# Names are ordinary phrases, and one of them is predicted for each photograph. The photographs
# were not selected by the result: the wall and the back of an eye get wrong names.
from matplotlib import pyplot as plt

from sklearn_ape import ZeroShotClassifier

names = ["a temple", "a flower", "a cat", "a cup of coffee", "a rocket", "an astronaut"]
names += ["the moon", "coins", "stars", "a photographer", "a wall", "an eye"]
classifier = ZeroShotClassifier(names)
labels, probabilities = classifier.predict_top_k(photos, k=1)

figure, axes = plt.subplots(3, 4, figsize=(9, 6.5), layout="constrained")
for axis, photo, label, probability in zip(
    axes.flat, photos, labels[:, 0], probabilities[:, 0], strict=True
):
    axis.imshow(photo, cmap="gray", aspect="auto")
    axis.set_title(f"{label}, {probability:.0%}")
    axis.set_axis_off()
correct = sum(label == name for label, name in zip(labels[:, 0], names, strict=True))
print(f"{correct} of {len(names)} photographs are named correctly")

# %%
# Find them
# ---------
# The photographs are encoded once. Each row shows the three photographs that are most similar to a
# text.
from sklearn_ape import CrossModalRetriever
from sklearn_ape.inspection import RetrievalGridDisplay

retriever = CrossModalRetriever().fit(photos)
queries = ["an animal", "a hot drink", "money", "something in the sky"]
RetrievalGridDisplay.from_estimator(retriever, queries, k=3)
print("'a hot drink' is photograph", retriever.search(["a hot drink"], k=1).indices[0, 0])

# %%
# Other names need no training
# ----------------------------
# `set_params` replaces the names of the same classifier.
classifier.set_params(labels=["an animal", "a building", "a person", "a drink", "a plant"])
print(classifier.predict(photos[:4]).tolist())
