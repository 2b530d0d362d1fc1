"""
Select the depth of the head by GridSearchCV
============================================

A standard `GridSearchCV` selects the depth of the MLP. The encoders cache their features, so every
image and every caption is encoded only once in the whole search.
"""

# %%
import numpy as np
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline

from sklearn_ape import APEAligner
from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

data = load_openmoji()
rows = np.random.default_rng(0).permutation(len(data.images))[:400]
images = [data.images[row] for row in rows]
captions = [data.captions[row] for row in rows]

# With a cache folder, the next run of this example does not encode anything.
cache = get_data_home() / "features"
image_encoder = TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1)
model = make_pipeline(
    image_encoder,
    # With closed-form initialization, the depth would have little effect.
    APEAligner(
        text_encoder=TransformersTextEncoder(cache=cache),
        init=None,
        width=256,
        max_epochs=20,
        random_state=0,
    ),
)

# %%
# Four depths are compared on three folds. The score is the mean of recall@1 in both directions.
misses_before = image_encoder.cache_info().misses
search = GridSearchCV(
    model,
    {"apealigner__depth": [1, 2, 4, 6]},
    cv=KFold(3, shuffle=True, random_state=0),
)
search.fit(images, captions)
print("images encoded:", image_encoder.cache_info().misses - misses_before)

# %%
# Recall by depth
# ---------------
# The bars are the standard deviation over the folds.
from matplotlib import pyplot as plt

depths = search.cv_results_["param_apealigner__depth"].astype(int)
means, stds = search.cv_results_["mean_test_score"], search.cv_results_["std_test_score"]
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.errorbar(depths, 100 * means, 100 * stds, marker="o", capsize=4)
axes.set(xlabel="depth of the head", ylabel="recall@1 (%)", xticks=depths)
print("depth  recall@1")
for depth, mean, std in zip(depths, means, stds, strict=True):
    best = "  <- best" if depth == search.best_params_["apealigner__depth"] else ""
    print(f"{depth:5d}  {mean:.1%} ± {std:.1%}{best}")
