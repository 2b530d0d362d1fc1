"""
Save, share and load a classifier
=================================

Models are saved as JSON and safetensors with a model card. The files contain no pickle, so loading
a model from another person executes no code.
"""

# %%
# Fit a classifier
# ----------------
import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sklearn_ape import CCAAligner, ZeroShotClassifier
from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

data = load_openmoji()
cache = get_data_home() / "features"
images, X, captions, _, _, y = train_test_split(
    data.images, data.captions, data.categories, test_size=0.2, random_state=0
)
model = make_pipeline(
    TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1),
    CCAAligner(text_encoder=TransformersTextEncoder(cache=cache)),
).fit(images, captions)
names = {
    "animal": ["an animal", "a bird", "an insect"],
    "food": ["food", "a fruit", "a meal"],
    "flag": ["the flag of a country"],
}
classifier = ZeroShotClassifier(names, aligner=model, threshold=0.5)
label_of_category = {"Animals & Nature": "animal", "Food & Drink": "food", "Flags": "flag"}
rows = np.flatnonzero(np.isin(y, list(label_of_category)))
X, y = [X[row] for row in rows], [label_of_category[y[row]] for row in rows]
accuracy = classifier.score(X, y)
print(f"accuracy on {len(X)} images: {accuracy:.1%}")

# %%
# Save
# ----
# The files contain the labels, the templates, the threshold, the aligner and, for each encoder,
# its name and an identifier of its weights. Scores that you pass are added to the model card.
import tempfile
from pathlib import Path

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name) / "animals-food-flags"
classifier.save_pretrained(folder, scores={"accuracy on held-out OpenMoji": accuracy})
for file in sorted(folder.iterdir()):
    print(f"{file.name:20s} {file.stat().st_size / 1024:9.1f} KiB")

# %%
# Read the model card and complete it.
card = (folder / "README.md").read_text(encoding="utf-8")
print("\n".join(card.splitlines()[:30]))

# %%
# Load
# ----
# `load_pretrained` reads the class from the file. Runtime options such as the feature cache are
# not saved, so pass them when loading.
from sklearn_ape import load_pretrained

loaded = load_pretrained(folder, cache=cache)
print(type(loaded).__name__, "with", loaded.classes_.tolist(), "and threshold", loaded.threshold)
difference = np.abs(loaded.predict_proba(X) - classifier.predict_proba(X)).max()
print(f"largest difference of probabilities: {difference:.1e}")

# %%
# ``classifier.push_to_hub("owner/name")`` uploads the same folder, and
# ``load_pretrained("owner/name")`` loads it from there.
from sklearn_ape.inspection import ZeroShotConfusionDisplay

ZeroShotConfusionDisplay.from_estimator(loaded, X, y)
temporary.cleanup()
