"""
Align two encoders on your own pairs
====================================

A small head, trained on captioned images, maps the features of an image encoder and of a sentence
encoder to a shared space. The result is a classifier that needs only the names of its labels.
"""

# %%
# Load captioned images
# ---------------------
# OpenMoji has 1,914 images with one caption each.
import numpy as np
from sklearn.model_selection import train_test_split

from sklearn_ape.datasets import load_openmoji

data = load_openmoji()
images, test_images, captions, test_captions, _, test_categories = train_test_split(
    data.images, data.captions, data.categories, train_size=0.4, test_size=0.2, random_state=0
)
print(len(images), "images, such as", captions[:3])

# %%
# Fit a Pipeline on images and captions
# -------------------------------------
# The encoders are frozen: `fit` encodes every image once and trains only the head.
from sklearn.pipeline import Pipeline

from sklearn_ape import APEAligner
from sklearn_ape.datasets import get_data_home
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

cache = get_data_home() / "features"  # the next run reads the features from the cache
model = Pipeline(
    [
        ("encode", TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1)),
        ("align", APEAligner(text_encoder=TransformersTextEncoder(cache=cache), random_state=0)),
    ]
)
model.fit(images, captions)
for direction, recall in (
    model["align"].retrieval_report(model["encode"].transform(test_images), test_captions).items()
):
    print(direction, {f"recall@{k}": f"{value:.1%}" for k, value in recall.items()})

# %%
# Zero-shot classification
# ------------------------
# Pass the fitted aligner and the label names. No further training is needed.
from sklearn_ape import ZeroShotClassifier

labels = {
    "Animals & Nature": ["an animal", "a bird", "a plant", "a flower"],
    "Food & Drink": ["food", "a drink", "a fruit", "a meal"],
    "Travel & Places": ["a vehicle", "a building", "a landscape", "the weather"],
}
selected = np.flatnonzero(np.isin(test_categories, list(labels)))
X = [test_images[row] for row in selected]
y = test_categories[selected]
classifier = ZeroShotClassifier(labels, aligner=model)
print(f"accuracy on {len(y)} images: {classifier.score(X, y):.1%} (chance 33.3%)")

# %%
# The classifier works with the metrics of scikit-learn.
from sklearn.metrics import classification_report

print(classification_report(y, classifier.predict(X)))

# %%
# Images in the cells of the confusion matrix show which names are missing.
from sklearn_ape.inspection import ZeroShotConfusionDisplay

ZeroShotConfusionDisplay.from_estimator(classifier, X, y)
