"""
Add training pairs from a classification head
=============================================

An image encoder that was trained for classification has a weight vector and a name for each class.
The weight vectors and the names are training pairs that need no images and no captions. They help
most if new images are unlike your training pairs.
"""

# %%
# Extract the pairs
# -----------------
from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import (
    TimmImageEncoder,
    TransformersTextEncoder,
    classifier_head_pairs,
)

cache = get_data_home() / "features"
image_encoder = TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1)
text_encoder = TransformersTextEncoder(cache=cache)
head = classifier_head_pairs(image_encoder)
print(head)
for row in (1, 9, 950):
    print(" ", head.texts[row])

# %%
# Recall on seen and on unseen categories
# ---------------------------------------
# The captioned pairs show people, faces, flags and symbols. One test set contains other images of
# these categories. The other test set contains animals, food, places and objects, which do not
# occur in the captioned pairs.
import numpy as np

from sklearn_ape import KernelAligner

data = load_openmoji()
X = image_encoder.transform(data.images)
seen = ["People & Body", "Smileys & Emotion", "Flags", "Symbols"]
unseen = ["Animals & Nature", "Food & Drink", "Travel & Places", "Objects"]
rng = np.random.default_rng(0)
seen_rows = rng.permutation(np.flatnonzero(np.isin(data.categories, seen)))
train = seen_rows[:600]
tests = {
    "seen categories": seen_rows[600:900],
    "unseen categories": rng.permutation(np.flatnonzero(np.isin(data.categories, unseen)))[:300],
}
aligners = {}
recalls: dict = {}
for name, pairs in (("captioned pairs", None), ("captioned and head pairs", head)):
    aligner = KernelAligner(text_encoder=text_encoder, head_pairs=pairs)
    aligners[name] = aligner.fit(X[train], [data.captions[row] for row in train])
    for test, rows in tests.items():
        report = aligner.retrieval_report(X[rows], [data.captions[row] for row in rows])
        recalls[name, test] = np.mean([recall[10] for recall in report.values()])

print("recall@10 among 300 images, mean of both directions (chance 3.3%)")
for test in tests:
    row = ", ".join(f"{name} {recalls[name, test]:.1%}" for name in aligners)
    print(f"{test:26s} {row}")

# %%
# The recall curves on the unseen categories:
from sklearn_ape.inspection import RecallCurveDisplay

ax = None
rows = tests["unseen categories"]
for name, aligner in aligners.items():
    display = RecallCurveDisplay.from_estimator(
        aligner, X[rows], [data.captions[row] for row in rows], name=name, ax=ax
    )
    ax = display.ax_
# sphinx_gallery_thumbnail_number = 1

# %%
# Trade-offs
# ----------
# If your own pairs cover the categories of new images, the additional pairs hardly change recall.
# They can lower the accuracy for broad classes, because the classes of the head are specific
# photographed objects. Compare the accuracy with and without the additional pairs.
from sklearn_ape import ZeroShotClassifier

rows = np.random.default_rng(0).permutation(len(X))
train, test = rows[:1200], rows[1200:]
labels = sorted(set(data.categories))
for name, pairs in (("captioned pairs", None), ("captioned and head pairs", head)):
    aligner = KernelAligner(text_encoder=text_encoder, head_pairs=pairs)
    aligner.fit(X[train], [data.captions[row] for row in train])
    classifier = ZeroShotClassifier(labels, aligner=aligner)
    accuracy = classifier.score(X[test], [data.categories[row] for row in test])
    recall = aligner.score(X[test], [data.captions[row] for row in test])
    print(f"{name:26s} accuracy for {len(labels)} categories {accuracy:.1%}, recall {recall:.1%}")
