"""
Find noisy captions
===================

Some captions from the web are wrong. This example swaps a quarter of the captions, detects them
with `pair_quality`, and measures the effect of dropping them.
"""

# %%
# Add noise to the captions
# -------------------------
# A quarter of the training captions are swapped. In your own data, the wrong captions are unknown.
import numpy as np
from sklearn.model_selection import train_test_split

from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

data = load_openmoji()
cache = get_data_home() / "features"
images, true_captions = data.images[::2], data.captions[::2]
X = TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1).transform(images)
y = TransformersTextEncoder(cache=cache).transform(true_captions)
train, test = train_test_split(np.arange(len(X)), test_size=0.2, random_state=0)

rng = np.random.default_rng(0)
wrong = np.sort(rng.choice(len(train), len(train) // 4, replace=False))
caption_rows = train.copy()
caption_rows[wrong] = np.roll(train[wrong], 1)
is_wrong = np.isin(np.arange(len(train)), wrong)
print(f"{is_wrong.sum()} of {len(train)} captions are wrong")

# %%
# Score the pairs
# ---------------
# Each pair is scored by an aligner that was not trained on it. The known positions of the
# wrong captions are not used.
from sklearn_ape.curation import drop_noisy, pair_quality

captions = [true_captions[row] for row in caption_rows]
quality = pair_quality(X[train], y[caption_rows], captions, random_state=0)

from sklearn.metrics import roc_auc_score

print(f"AUC of the score for detecting right pairs: {roc_auc_score(~is_wrong, quality.score):.3f}")

# %%
# The pairs with the lowest scores:
for row in np.argsort(quality.score)[:6]:
    truth = true_captions[train[row]]
    print(f"{captions[row]!r:40s} {'wrong, is ' + repr(truth) if is_wrong[row] else 'right'}")

# %%
# Effect of dropping pairs
# ------------------------
# The same aligner is fitted on all pairs, without the pairs with the lowest scores, without the
# same number of random pairs, and on the right pairs only, which are unknown in practice. The test
# pairs are right. In this dataset, nearly every concept occurs in one pair, so a right pair that
# is dropped by mistake removes a concept. In captions from the web, concepts are repeated and
# dropping pairs costs less. Measure the effect on your own pairs.
from sklearn_ape import KernelAligner

by_score = drop_noisy(quality, share=0.25)
subsets = {
    "all pairs": np.arange(len(train)),
    "25% dropped by score": by_score,
    "25% dropped at random": rng.permutation(len(train))[: len(by_score)],
    "right pairs only": np.flatnonzero(~is_wrong),
}
for name, rows in subsets.items():
    aligner = KernelAligner().fit(X[train][rows], y[caption_rows][rows])
    report = aligner.retrieval_report(X[test], y[test])
    recall = np.mean([recalls[10] for recalls in report.values()])
    print(
        f"{name:22s} {len(rows):4d} pairs, {is_wrong[rows].mean():5.1%} wrong, recall@10 "
        f"{recall:.1%}"
    )

# %%
# The distributions of right and wrong pairs overlap: check pairs with a low score before you drop
# them.
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
bins = np.linspace(0, 1, 26)
ax.hist(quality.score[~is_wrong], bins, alpha=0.7, label="right")
ax.hist(quality.score[is_wrong], bins, alpha=0.7, label="wrong")
ax.set(xlabel="score of the pair", ylabel="pairs")
ax.legend(title="caption")
