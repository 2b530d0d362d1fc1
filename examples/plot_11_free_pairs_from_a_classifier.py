"""
A thousand free pairs from a classifier's head
==============================================

An image encoder that was trained to classify has a weight vector for each class: it stands for an
image of that class that nobody had to take, and the class has a name. These pairs are worth most
where the images to come are unlike the pairs that you have.
"""

# %%
# What they are
# -------------
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
# Images unlike the pairs, and images like them
# -------------------------------------------------
# All pairs of our own show people, faces, flags and symbols. Two tests: other images of these
# kinds, and animals, food, places and objects, of which no pair was captioned.
import numpy as np

from sklearn_ape import KernelAligner

data = load_openmoji()
X = image_encoder.transform(data.images)
seen = ["People & Body", "Smileys & Emotion", "Flags", "Symbols"]
unseen = ["Animals & Nature", "Food & Drink", "Travel & Places", "Objects"]
rng = np.random.default_rng(0)
of_seen = rng.permutation(np.flatnonzero(np.isin(data.categories, seen)))
train = of_seen[:600]
tests = {
    "kinds that were captioned": of_seen[600:900],
    "kinds that were not": rng.permutation(np.flatnonzero(np.isin(data.categories, unseen)))[:300],
}
aligners = {}
recalls: dict = {}
for name, pairs in (("own pairs", None), ("own and free pairs", head)):
    aligner = KernelAligner(text_encoder=text_encoder, head_pairs=pairs)
    aligners[name] = aligner.fit(X[train], [data.captions[row] for row in train])
    for test, rows in tests.items():
        report = aligner.retrieval_report(X[rows], [data.captions[row] for row in rows])
        recalls[name, test] = np.mean([way[10] for way in report.values()])

print("recall@10 among 300 images, mean of both directions (chance 3.3%)")
for test in tests:
    row = ", ".join(f"{name} {recalls[name, test]:.1%}" for name in aligners)
    print(f"{test:26s} {row}")

# %%
# Both curves for the kinds that were not captioned.
from sklearn_ape.inspection import RecallCurveDisplay

ax = None
rows = tests["kinds that were not"]
for name, aligner in aligners.items():
    display = RecallCurveDisplay.from_estimator(
        aligner, X[rows], [data.captions[row] for row in rows], name=name, ax=ax
    )
    ax = display.ax_
# sphinx_gallery_thumbnail_number = 1

# %%
# The price
# ---------
# Where pairs of your own cover what will come, free ones bring little, and prototypes of
# photographed things can stand in the way of broad words. So look at what broad queries find with
# them and without, before you keep them.
from sklearn_ape.inspection import RetrievalGridDisplay

queries = ["a wild animal", "a dessert", "bad weather"]
images = [data.images[row] for row in rows]
for name, aligner in aligners.items():
    display = RetrievalGridDisplay.from_estimator(aligner, queries, images, X=X[rows], k=5)
    display.ax_.set_title(name)
