"""
Describe classes by prompt templates and synonyms
=================================================

Each class is represented by the average embedding of all its sentences. More sentences do not slow
down prediction. This example measures which of them improve the accuracy on one dataset.
"""

# %%
# Fit an aligner and hold out images
# ----------------------------------
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
# Three sets of label names
# -------------------------
names = {
    "Animals & Nature": ["an animal", "a bird", "a plant", "a flower"],
    "Flags": ["the flag of a country"],
    "Food & Drink": ["food", "a drink", "a fruit", "a meal"],
    "Objects": ["a tool", "clothing", "a household object", "office supplies"],
    "People & Body": ["a person", "a hand gesture", "a man", "a woman"],
    "Smileys & Emotion": ["a smiley face", "an emotion", "a heart"],
    "Travel & Places": ["a vehicle", "a building", "a landscape", "the weather"],
}
selected = np.flatnonzero(np.isin(y, list(names)))
X, y = [X[row] for row in selected], y[selected]
vocabularies = {
    "names as they are": list(names),
    "one description": {label: descriptions[0] for label, descriptions in names.items()},
    "several descriptions": names,
}

# %%
# Sets of templates
# -----------------
# ``"none"`` uses the name without a template. ``"clip"`` is the set of seven templates that the
# authors of CLIP found to be sufficient for photographs, and ``"drawing"`` suits these images. In
# a custom template, ``{}`` is the placeholder for the name.
custom = ["{}", "a simple icon of {}"]
template_sets = {name: name for name in ("none", "simple", "clip", "drawing")} | {"custom": custom}
hits = {}
print(f"{'templates':10s}" + "".join(f"{name:>22s}" for name in vocabularies))
for title, templates in template_sets.items():
    for vocabulary, labels in vocabularies.items():
        classifier = ZeroShotClassifier(labels, aligner=model, templates=templates)
        hits[title, vocabulary] = classifier.predict(X) == y
    row = (f"{hits[title, vocabulary].mean():22.1%}" for vocabulary in vocabularies)
    print(f"{title:10s}" + "".join(row))

# %%
# Confidence intervals of the differences
# ---------------------------------------
# With a few hundred images, only large differences are significant. The classifiers are compared
# on the same images, so the intervals are those of paired differences.
from sklearn_ape.metrics import bootstrap_interval, paired_difference

baseline = hits["none", "names as they are"]
print(f"accuracy on {len(y)} images: {bootstrap_interval(baseline, random_state=0).estimate:.1%}")
for combination in (
    ("none", "several descriptions"),
    ("simple", "several descriptions"),
    ("simple", "names as they are"),
):
    difference = paired_difference(hits[combination], baseline, random_state=0)
    is_significant = difference.low > 0 or difference.high < 0
    verdict = "significant" if is_significant else "not significant"
    print(
        f"{combination[1]}, templates {combination[0]!r}: {100 * difference.estimate:+.1f} points "
        f"({100 * difference.low:+.1f} to {100 * difference.high:+.1f}): {verdict}"
    )

# %%
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
width = 0.8 / len(vocabularies)
for number, vocabulary in enumerate(vocabularies):
    accuracies = [hits[title, vocabulary].mean() for title in template_sets]
    ax.bar(np.arange(len(template_sets)) + number * width, accuracies, width, label=vocabulary)
ax.set_xticks(np.arange(len(template_sets)) + width, list(template_sets))
ax.axhline(1 / len(names), color="gray", linestyle=":", label="chance")
ax.set(xlabel="templates", ylabel="accuracy", ylim=(0, 1))
ax.legend(fontsize="small", ncols=2)
