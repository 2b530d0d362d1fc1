"""
Find captions that do not fit
=============================

Captions from the web are partly wrong. We make a known share of ours wrong, ask
`pair_quality` which ones, and see what dropping them is worth.
"""

# %%
# Real pairs, noise of our own making
# -----------------------------------
# A quarter of the training captions change places. On data of your own you would not know which.
import numpy as np
from sklearn.model_selection import train_test_split

from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

data = load_openmoji()
cache = get_data_home() / "features"
images, names = data.images[::2], data.captions[::2]
X = TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1).transform(images)
y = TransformersTextEncoder(cache=cache).transform(names)
train, test = train_test_split(np.arange(len(X)), test_size=0.2, random_state=0)

rng = np.random.default_rng(0)
wrong = np.sort(rng.choice(len(train), len(train) // 4, replace=False))
caption_of = train.copy()
caption_of[wrong] = np.roll(train[wrong], 1)
is_wrong = np.isin(np.arange(len(train)), wrong)
print(f"{is_wrong.sum()} of {len(train)} captions are wrong")

# %%
# Score every pair out of fold
# ----------------------------
# Each pair is judged by an aligner that has not seen it. Nothing is told which are wrong.
from sklearn_ape.curation import drop_noisy, pair_quality

captions = [names[row] for row in caption_of]
quality = pair_quality(X[train], y[caption_of], captions, random_state=0)

from sklearn.metrics import roc_auc_score

print(f"a right pair scores above a wrong one: {roc_auc_score(~is_wrong, quality.score):.1%}")

# %%
# What it finds most suspicious, with the caption that a person would check.
for row in np.argsort(quality.score)[:6]:
    truth = names[train[row]]
    print(f"says {captions[row]!r:40s} {'wrong, is ' + repr(truth) if is_wrong[row] else 'right'}")

# %%
# Is it worth it?
# ---------------
# The same aligner on all pairs, without the most suspicious ones, without as many drawn at random,
# and on right ones only (which nobody has in practice); tested on pairs that are right. Here
# nearly every pair is the only one of its concept, so that a right pair dropped by mistake is a
# concept lost. Where concepts come again and again, as in captions from the web, dropping has less
# to lose. Measure it on pairs of your own.
from sklearn_ape import KernelAligner

choices = {"all pairs": np.arange(len(train))}
kept = drop_noisy(quality, share=0.25)
choices["25% dropped by score"] = kept
choices["25% dropped at random"] = rng.permutation(len(train))[: len(kept)]
choices["right pairs only"] = np.flatnonzero(~is_wrong)
for name, rows in choices.items():
    aligner = KernelAligner().fit(X[train][rows], y[caption_of][rows])
    recall = np.mean([way[10] for way in aligner.retrieval_report(X[test], y[test]).values()])
    print(
        f"{name:22s} {len(rows):4d} pairs, {is_wrong[rows].mean():5.1%} wrong, recall@10 "
        f"{recall:.1%}"
    )

# %%
# The two kinds of pairs overlap: a low score is a reason to look, not a proof.
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
bins = np.linspace(0, 1, 26)
ax.hist(quality.score[~is_wrong], bins, alpha=0.7, label="right")
ax.hist(quality.score[is_wrong], bins, alpha=0.7, label="wrong")
ax.set(xlabel="score of the pair", ylabel="pairs")
ax.legend(title="caption")
