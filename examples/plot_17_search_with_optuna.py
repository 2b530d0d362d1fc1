"""
Search hyperparameters with Optuna
==================================

A grid grows exponentially with the number of parameters. Optuna samples continuous parameters and
concentrates on promising regions. Aligners are scikit-learn estimators, so the objective function
is `cross_val_score`.
"""

# %%
# Compute the features
# --------------------
# The encoders are frozen, so the features are computed once before the search.
import numpy as np
import optuna
from sklearn.model_selection import KFold, cross_val_score

from sklearn_ape import KernelAligner
from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

data = load_openmoji()
rows = np.random.default_rng(0).permutation(len(data.images))[:300]
cache = get_data_home() / "features"  # the next run reads the features from the cache
image_encoder = TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1)
X = image_encoder.transform([data.images[row] for row in rows])
y = TransformersTextEncoder(cache=cache).transform([data.captions[row] for row in rows])

# %%
# Fifteen trials over three parameters
# ------------------------------------
# The objective is the mean of recall@1 in both directions on three folds. The test images are not
# used.
X_train, y_train, X_test, y_test = X[:200], y[:200], X[200:], y[200:]
folds = KFold(3, shuffle=True, random_state=0)


def objective(trial):
    aligner = KernelAligner(
        gamma=trial.suggest_float("gamma", 0.05, 20.0, log=True),
        ridge=trial.suggest_float("ridge", 1e-4, 10.0, log=True),
        whitening=trial.suggest_float("whitening", 1e-4, 1.0, log=True),
    )
    return cross_val_score(aligner, X_train, y_train, cv=folds, error_score="raise").mean()


optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
# The first trial is close to the default parameters, so the best trial is at least as good on the
# folds.
study.enqueue_trial({"gamma": 8.0, "ridge": 0.3, "whitening": 0.03})
study.optimize(objective, n_trials=15)
for name, value in study.best_params.items():
    print(f"{name:10} {value:.3g}")
print(f"recall@1 on the folds: {study.best_value:.1%} with the best of {len(study.trials)} trials")

# %%
# Each point is a trial. The star is the best one.
from matplotlib import pyplot as plt

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
points = axes.scatter(
    [trial.params["gamma"] for trial in study.trials],
    [trial.params["ridge"] for trial in study.trials],
    c=[100 * trial.value for trial in study.trials],
)
axes.plot(study.best_params["gamma"], study.best_params["ridge"], "r*", markersize=14, mfc="none")
axes.set(xscale="log", yscale="log", xlabel="gamma", ylabel="ridge")
figure.colorbar(points, label="recall@1 on the folds (%)")

# %%
# Evaluation on test images
# -------------------------
# The score of the best trial is too optimistic, because it is the maximum over many trials. Only
# the test images show whether the search improved recall. It may not improve recall: the defaults
# were selected on many other images, and two hundred images are few for a search. One point of
# recall is one of the hundred test images, so a difference of two or three points is not
# significant.
for name, aligner in (
    ("default", KernelAligner()),
    ("searched", KernelAligner(**study.best_params)),
):
    print(f"{name:10} recall@1 {aligner.fit(X_train, y_train).score(X_test, y_test):.1%}")

# %%
# Training parameters can be searched as well: suggest `depth`, `dropout` or `learning_rate` of an
# `APEAligner`. To prune trials after an epoch, pass a callback of skorch or scikit-learn; see
# :doc:`/fit`.
