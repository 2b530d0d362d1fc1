"""
Search images by text and by image
==================================

`CrossModalRetriever` embeds a collection of images once. A query is a text or another image.
"""

# %%
# Fit an aligner and index other images
# -------------------------------------
# The indexed images do not need captions. Their categories are used only for evaluation.
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sklearn_ape import CrossModalRetriever, KernelAligner
from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

data = load_openmoji()
images, indexed_images, captions, _, _, categories = train_test_split(
    data.images, data.captions, data.categories, test_size=0.4, random_state=0
)
cache = get_data_home() / "features"
model = make_pipeline(
    TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1),
    KernelAligner(text_encoder=TransformersTextEncoder(cache=cache)),
).fit(images, captions)
retriever = CrossModalRetriever(model).fit(indexed_images)

# %%
# Search by text
# --------------
# A green frame marks images of the category that the query describes.
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
# Search by image
# ---------------
# A query image that is part of the collection is its own first result, with a cosine of 1.
from pathlib import Path

RetrievalGridDisplay.from_estimator(retriever, [Path(image) for image in indexed_images[:3]], k=6)

# %%
# Precision of the results
# ------------------------
# The fraction of the first five results that have the right category is compared with the chance
# level. Recall of captions does not measure such broad queries, so evaluate both.
results = retriever.search(list(queries), k=5)
for query, category, row in zip(queries, queries.values(), results.indices, strict=True):
    precision = np.mean(categories[row] == category)
    chance = np.mean(categories == category)
    print(f"{query:24s} {precision:4.0%} of the first five (chance {chance:.0%})")

# %%
# Add images
# ----------
# `add` embeds only the new images.
retriever.add(images[:100])
print(retriever.n_samples_fit_, "images after adding 100")
print("best cosine for 'a red heart':", retriever.search(["a red heart"], k=1).scores.round(2))
