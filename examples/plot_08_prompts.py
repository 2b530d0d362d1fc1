"""
Prompts: templates, synonyms and their average
==============================================

A class is a point in the shared space: the average of the embeddings of all sentences that stand
for it. More sentences cost nothing at prediction. Which of them help is a question of data.
"""

# %%
# A model, and images that it has not seen
# ------------------------------------------
import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sklearn_ape import KernelAligner, ZeroShotClassifier
from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

data = load_openmoji()
cache = get_data_home() / "features"
model = make_pipeline(
    TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1),
    KernelAligner(text_encoder=TransformersTextEncoder(cache=cache)),
)
images, X, captions, _, _, y = train_test_split(
    data.images, data.captions, data.categories, test_size=0.2, random_state=0
)
model.fit(images, captions)

# %%
# Three ways to name a class
# --------------------------
names = {
    "Animals & Nature": ["an animal", "a bird", "a plant", "a flower"],
    "Flags": ["the flag of a country"],
    "Food & Drink": ["food", "a drink", "a fruit", "a meal"],
    "Objects": ["a tool", "clothing", "a household object", "office supplies"],
    "People & Body": ["a person", "a hand gesture", "a man", "a woman"],
    "Smileys & Emotion": ["a smiley face", "an emotion", "a heart"],
    "Travel & Places": ["a vehicle", "a building", "a landscape", "the weather"],
}
known = np.isin(y, list(names))
X, y = [image for image, is_known in zip(X, known, strict=True) if is_known], y[known]
vocabularies = {
    "names as they are": list(names),
    "one description": {label: some[0] for label, some in names.items()},
    "several descriptions": names,
}

# %%
# Sets of templates
# -----------------
# ``"none"`` takes a name as it stands, ``"clip"`` is the set of seven that CLIP's authors found to
# be enough for photographs; ``"drawing"`` suits these images. A template of your own has a
# ``{}`` where the name goes.
own = ["{}", "a simple icon of {}"]
templates = {"none": "none", "simple": "simple", "clip": "clip", "drawing": "drawing", "own": own}
hits = {}
print(f"{'templates':10s}" + "".join(f"{name:>22s}" for name in vocabularies))
for title, some in templates.items():
    for vocabulary, labels in vocabularies.items():
        classifier = ZeroShotClassifier(labels, aligner=model, templates=some)
        hits[title, vocabulary] = classifier.predict(X) == y
    row = (f"{hits[title, vocabulary].mean():22.1%}" for vocabulary in vocabularies)
    print(f"{title:10s}" + "".join(row))

# %%
# What is signal?
# ---------------
# A few hundred images tell apart only large differences. The same images are compared in
# pairs, with what the interval leaves open.
from sklearn_ape.metrics import bootstrap_interval, paired_difference

base = hits["none", "names as they are"]
print(f"accuracy of {len(y)} images: {bootstrap_interval(base, random_state=0).estimate:.1%}")
for combination in (
    ("none", "several descriptions"),
    ("simple", "several descriptions"),
    ("simple", "names as they are"),
):
    found = paired_difference(hits[combination], base, random_state=0)
    verdict = "clear" if found.low > 0 or found.high < 0 else "may be chance"
    print(
        f"{combination[1]}, templates {combination[0]!r}: {100 * found.estimate:+.1f} points "
        f"({100 * found.low:+.1f} to {100 * found.high:+.1f}): {verdict}"
    )

# %%
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
width = 0.8 / len(vocabularies)
for number, vocabulary in enumerate(vocabularies):
    accuracies = [hits[title, vocabulary].mean() for title in templates]
    ax.bar(np.arange(len(templates)) + number * width, accuracies, width, label=vocabulary)
ax.set_xticks(np.arange(len(templates)) + width, list(templates))
ax.axhline(1 / len(names), color="gray", linestyle=":", label="chance")
ax.set(xlabel="templates", ylabel="accuracy", ylim=(0, 1))
ax.legend(fontsize="small", ncols=2)
