"""
Keep a classifier, share it, load it safely
===========================================

What was aligned is saved as JSON and safetensors, with a model card: no pickle, so that loading a
model of somebody else executes nothing.
"""

# %%
# A classifier worth keeping
# --------------------------
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
kinds = {"Animals & Nature": "animal", "Food & Drink": "food", "Flags": "flag"}
rows = np.flatnonzero(np.isin(y, list(kinds)))
X, y = [X[row] for row in rows], [kinds[y[row]] for row in rows]
accuracy = classifier.score(X, y)
print(f"accuracy on {len(X)} images: {accuracy:.1%}")

# %%
# Save
# ----
# Labels, templates and the threshold are kept, the encoders by name and by what tells their
# weights from others. A score that you measured goes onto the model card.
import tempfile
from pathlib import Path

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name) / "animals-food-flags"
classifier.save_pretrained(folder, scores={"accuracy on held-out OpenMoji": accuracy})
for file in sorted(folder.iterdir()):
    print(f"{file.name:20s} {file.stat().st_size / 1024:9.1f} KiB")

# %%
# The card is there to be read, and to be completed by you.
card = (folder / "README.md").read_text(encoding="utf-8")
print("\n".join(card.splitlines()[:30]))

# %%
# Load
# ----
# In another program, on another machine, in another year: the class is read off the file. Where
# to keep features is a setting of the machine, and given anew.
from sklearn_ape import load_pretrained

again = load_pretrained(folder, cache=cache)
print(type(again).__name__, "with", again.classes_.tolist(), "and threshold", again.threshold)
difference = np.abs(again.predict_proba(X) - classifier.predict_proba(X)).max()
print(f"largest difference of a probability: {difference:.1e}")

# %%
# ``classifier.push_to_hub("owner/name")`` uploads the same folder, and
# ``load_pretrained("owner/name")`` loads it from there.
from sklearn_ape.inspection import ZeroShotConfusionDisplay

ZeroShotConfusionDisplay.from_estimator(again, X, y)
temporary.cleanup()
