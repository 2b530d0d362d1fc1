"""
Search by words and by images
===============================

`CrossModalRetriever` indexes a collection once; a query is a sentence or another image.
"""

# %%
# Align on some pairs, index other images
# -----------------------------------------
# The images in the index need no captions. Here they have some, which are used for nothing but
# the check at the end.
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sklearn_ape import CrossModalRetriever, KernelAligner
from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

data = load_openmoji()
images, others, captions, _, _, categories = train_test_split(
    data.images, data.captions, data.categories, test_size=0.4, random_state=0
)
cache = get_data_home() / "features"
model = make_pipeline(
    TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1),
    KernelAligner(text_encoder=TransformersTextEncoder(cache=cache)),
).fit(images, captions)
retriever = CrossModalRetriever(model).fit(others)

# %%
# By words
# --------
# A green frame says that the image's category is the one that the query asks for.
import numpy as np

from sklearn_ape.inspection import RetrievalGridDisplay

queries = {
    "a wild animal": "Animals & Nature",
    "something to eat": "Food & Drink",
    "a vehicle with wheels": "Travel & Places",
    "a sad face": "Smileys & Emotion",
}
relevant = [np.flatnonzero(categories == category) for category in queries.values()]
RetrievalGridDisplay.from_estimator(retriever, list(queries), k=6, relevant=relevant)

# %%
# By images
# -----------
# A query that is itself in the collection finds itself first, with a cosine of 1.
from pathlib import Path

RetrievalGridDisplay.from_estimator(retriever, [Path(image) for image in others[:3]], k=6)

# %%
# How well does it do?
# --------------------
# The share of the first five that are of the category asked for, beside chance. Broad queries like
# these are not what recall of captions measures: look at both.
found = retriever.search(list(queries), k=5)
for query, category, row in zip(queries, queries.values(), found.indices, strict=True):
    right = np.mean(categories[row] == category)
    chance = np.mean(categories == category)
    print(f"{query:24s} {right:4.0%} of the first five (chance {chance:.0%})")

# %%
# A collection grows
# ------------------
# Images are added to the index without embedding the others again.
retriever.add(images[:100])
print(retriever.n_samples_fit_, "images after adding 100")
print("best cosine for 'a red heart':", retriever.search(["a red heart"], k=1).scores.round(2))
