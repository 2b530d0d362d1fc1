"""
Probabilities that mean what they say, and the right to say nothing
===================================================================

A zero-shot classifier is as sure as its temperature makes it. One number, fitted on a few labelled
images, mends most of it; a threshold then leaves doubtful images to a person.
"""

# %%
# A classifier, and labelled images for two purposes
# ----------------------------------------------------
# One half of the held-out images sets the temperature, the other half tests it.
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
    data.images, data.captions, data.categories, test_size=0.4, random_state=0
)
model.fit(images, captions)
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
X, y = np.array(X)[known], y[known]
X_fit, X_test, y_fit, y_test = train_test_split(X, y, test_size=0.5, random_state=0, stratify=y)

# %%
# Fit the temperature
# -------------------
# No prediction changes, only how sure it is.
from sklearn_ape.metrics import expected_calibration_error, fit_temperature

before = ZeroShotClassifier(names, aligner=model)
temperature = fit_temperature(before.decision_function(X_fit), y_fit, labels=before.classes_)
scale = model[-1].logit_scale_
after = ZeroShotClassifier(names, aligner=model, logit_scale=scale / temperature)
print(f"temperature {temperature:.2f}: logit scale {scale:.1f} → {scale / temperature:.1f}")

probabilities = {
    "as aligned": before.predict_proba(X_test),
    "with the temperature": after.predict_proba(X_test),
}
for title, proba in probabilities.items():
    right = before.classes_[proba.argmax(axis=1)] == y_test
    error = expected_calibration_error(y_test, proba, labels=before.classes_)
    print(
        f"{title:22s} accuracy {right.mean():.1%}, mean probability of the answer "
        f"{proba.max(axis=1).mean():.1%}, calibration error {error:.3f}"
    )

# %%
# The reliability curve
# ---------------------
# Of the answers given with 70 %, 70 % should be right: on the diagonal. scikit-learn draws it.
import matplotlib.pyplot as plt
from sklearn.calibration import CalibrationDisplay

figure, (left, right_ax) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
for title, proba in probabilities.items():
    right = before.classes_[proba.argmax(axis=1)] == y_test
    CalibrationDisplay.from_predictions(
        right, proba.max(axis=1), n_bins=6, strategy="quantile", name=title, ax=left
    )
left.set(xlabel="probability of the answer", ylabel="share that is right")

# %%
# Rejection
# ---------
# Answers below the threshold become "unknown". The fewer images are answered, the more of the
# answers are right: choose the point that your task can pay for, on the half for fitting.
confidence = after.predict_proba(X_fit).max(axis=1)
right = after.predict(X_fit) == y_fit
order = np.argsort(-confidence)
share = np.arange(1, len(order) + 1) / len(order)
accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
enough = np.flatnonzero(accuracy >= 0.9)
enough = enough[enough >= 20]  # of a handful of answers, all may be right by chance
threshold = float(confidence[order[enough[-1]]]) if enough.size else 1.0
right_ax.plot(share[19:], accuracy[19:])
right_ax.axhline(0.9, color="gray", linestyle=":")
right_ax.set(xlabel="share of images answered", ylabel="share of the answers that is right")

# %%
# On the other half the threshold does about what it promised, no more exactly than a few hundred
# images can promise.
careful = ZeroShotClassifier(
    names, aligner=model, logit_scale=scale / temperature, threshold=threshold
)
predicted = careful.predict(X_test)
answered = predicted != "unknown"
print(
    f"threshold {threshold:.2f}: {answered.mean():.1%} answered, "
    f"{np.mean(predicted[answered] == y_test[answered]):.1%} of them right "
    f"(without: {np.mean(after.predict(X_test) == y_test):.1%} of all)"
)
