"""
Align two encoders and classify by names
========================================

An image encoder that knows no words and a sentence encoder that has seen no image are brought
into one space by a small head, trained on a few hundred captioned images. Names are then enough
to classify.
"""

# %%
# Real captioned images
# -----------------------
# OpenMoji: 1,914 images with a caption each. Half an hour of a person's captioning would do.
import numpy as np
from sklearn.model_selection import train_test_split

from sklearn_ape.datasets import load_openmoji

data = load_openmoji()
images, test_images, captions, test_captions, _, test_categories = train_test_split(
    data.images, data.captions, data.categories, test_size=0.2, random_state=0
)
print(len(images), "images, such as", captions[:3])

# %%
# A stock Pipeline: images and captions in
# ----------------------------------------
# The encoders are frozen: `fit` encodes every image once and trains the head alone.
from sklearn.pipeline import Pipeline

from sklearn_ape import APEAligner
from sklearn_ape.datasets import get_data_home
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

cache = get_data_home() / "features"  # the next run encodes nothing
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
# The fitted aligner needs no further training: give it names.
from sklearn_ape import ZeroShotClassifier

labels = {
    "Animals & Nature": ["an animal", "a bird", "a plant", "a flower"],
    "Food & Drink": ["food", "a drink", "a fruit", "a meal"],
    "Travel & Places": ["a vehicle", "a building", "a landscape", "the weather"],
}
known = np.isin(test_categories, list(labels))
X = [image for image, is_known in zip(test_images, known, strict=True) if is_known]
y = test_categories[known]
classifier = ZeroShotClassifier(labels, aligner=model)
print(f"accuracy on {len(y)} images: {classifier.score(X, y):.1%} (chance 33.3%)")

# %%
# All of scikit-learn's tools work on it.
from sklearn.metrics import classification_report

print(classification_report(y, classifier.predict(X)))
