"""
Calibrate probabilities and reject uncertain images
===================================================

The confidence of a zero-shot classifier depends on its temperature. Temperature scaling on a few
labelled images calibrates the probabilities. A threshold then rejects uncertain images, so that a
person can check them.
"""

# %%
# Fit an aligner and split the labelled images
# --------------------------------------------
# One half of the held-out images is used to fit the temperature, the other half to test it.
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
selected = np.isin(y, list(names))
X, y = np.array(X)[selected], y[selected]
X_fit, X_test, y_fit, y_test = train_test_split(X, y, test_size=0.5, random_state=0, stratify=y)

# %%
# Fit the temperature
# -------------------
# Temperature scaling changes the probabilities but not the predicted labels.
from sklearn_ape.metrics import expected_calibration_error, fit_temperature

uncalibrated = ZeroShotClassifier(names, aligner=model)
logits = uncalibrated.decision_function(X_fit)
temperature = fit_temperature(logits, y_fit, labels=uncalibrated.classes_)
scale = model[-1].logit_scale_
calibrated = ZeroShotClassifier(names, aligner=model, logit_scale=scale / temperature)
print(f"temperature {temperature:.2f}: logit scale {scale:.1f} → {scale / temperature:.1f}")

probabilities = {
    "uncalibrated": uncalibrated.predict_proba(X_test),
    "temperature scaling": calibrated.predict_proba(X_test),
}
for title, proba in probabilities.items():
    is_right = uncalibrated.classes_[proba.argmax(axis=1)] == y_test
    error = expected_calibration_error(y_test, proba, labels=uncalibrated.classes_)
    print(
        f"{title:22s} accuracy {is_right.mean():.1%}, mean confidence "
        f"{proba.max(axis=1).mean():.1%}, calibration error {error:.3f}"
    )

# %%
# Reliability curve
# -----------------
# Of the predictions with a probability of 70 %, 70 % should be right, so the curve of a calibrated
# classifier lies on the diagonal. scikit-learn plots it.
import matplotlib.pyplot as plt
from sklearn.calibration import CalibrationDisplay

figure, (reliability_ax, rejection_ax) = plt.subplots(
    1, 2, figsize=(10, 4.5), layout="constrained"
)
for title, proba in probabilities.items():
    is_right = uncalibrated.classes_[proba.argmax(axis=1)] == y_test
    CalibrationDisplay.from_predictions(
        is_right, proba.max(axis=1), n_bins=6, strategy="quantile", name=title, ax=reliability_ax
    )
reliability_ax.set(xlabel="confidence", ylabel="accuracy")

# %%
# Rejection
# ---------
# Predictions with a probability below the threshold become "unknown". With a higher threshold,
# fewer images are classified, and more of the predictions are right. The threshold is selected on
# the half of the images used for fitting, here for an accuracy of 90 %.
confidence = calibrated.predict_proba(X_fit).max(axis=1)
is_right = calibrated.predict(X_fit) == y_fit
order = np.argsort(-confidence)
coverage = np.arange(1, len(order) + 1) / len(order)
accuracy = np.cumsum(is_right[order]) / np.arange(1, len(order) + 1)
candidates = np.flatnonzero(accuracy >= 0.9)
candidates = candidates[candidates >= 20]  # a few predictions can all be right by chance
threshold = float(confidence[order[candidates[-1]]]) if candidates.size else 1.0
rejection_ax.plot(coverage[19:], accuracy[19:])
rejection_ax.axhline(0.9, color="gray", linestyle=":")
rejection_ax.set(xlabel="fraction of images classified", ylabel="accuracy on these images")

# %%
# On the other half, the accuracy is close to 90 %, within the uncertainty of a few hundred images.
rejecting = ZeroShotClassifier(
    names, aligner=model, logit_scale=scale / temperature, threshold=threshold
)
predicted = rejecting.predict(X_test)
classified = predicted != "unknown"
print(
    f"threshold {threshold:.2f}: {classified.mean():.1%} classified, "
    f"{np.mean(predicted[classified] == y_test[classified]):.1%} of them right "
    f"(without a threshold: {np.mean(calibrated.predict(X_test) == y_test):.1%})"
)
