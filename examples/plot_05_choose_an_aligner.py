"""
Which aligner, on my features?
==============================

All aligners take the same features, so that a comparison costs seconds: encode once, fit each,
draw them on one axes.
"""

# %%
# Encode once
# -----------
from time import process_time

from sklearn.model_selection import train_test_split

from sklearn_ape import APEAligner, ASIFAligner, CCAAligner, KernelAligner
from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

data = load_openmoji()
cache = get_data_home() / "features"
image_features = TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1).transform(
    data.images
)
text_features = TransformersTextEncoder(cache=cache).transform(data.captions)
X, X_test, y, y_test = train_test_split(
    image_features, text_features, test_size=0.2, random_state=0
)

# %%
# Fit each, draw each
# -------------------
# ``init=None`` is the plain head of the paper; the default of `APEAligner` starts at the solution
# of `KernelAligner` and trains from there, which takes longer (see the example on training).
from sklearn_ape.inspection import RecallCurveDisplay

aligners = {
    "KernelAligner": KernelAligner(),
    "CCAAligner": CCAAligner(),
    "ASIFAligner": ASIFAligner(),
    "APEAligner, plain": APEAligner(init=None, width=256, max_epochs=25, random_state=0),
}
ax = None
rows = []
for name, aligner in aligners.items():
    start = process_time()
    aligner.fit(X, y)
    seconds = process_time() - start
    display = RecallCurveDisplay.from_estimator(aligner, X_test, y_test, name=name, ax=ax)
    ax = display.ax_
    rows.append((name, aligner.retrieval_report(X_test, y_test), seconds))
ax.set_title(f"{len(X_test)} held-out pairs of OpenMoji")

# %%
# The same as a table
# -------------------
# Several captions here are near relatives, such as men and women doing one thing, and may stand
# on both sides of the split: compare the rows, and do not carry the numbers elsewhere.
print(f"{'':18s} recall@1         recall@10        seconds of processor time")
for name, report, seconds in rows:
    there, back = report["image_to_text"], report["text_to_image"]
    print(
        f"{name:18s} {there[1]:5.1%} / {back[1]:5.1%}    {there[10]:5.1%} / {back[10]:5.1%}   "
        f"{seconds:5.1f}"
    )
print("(image → caption / caption → image)")

# %%
# How sure is the order? Hits of two aligners on the same queries are compared in pairs.
import numpy as np

from sklearn_ape.metrics import paired_difference, retrieval_ranks

pairs = np.column_stack([np.arange(len(X_test))] * 2)
hits = {
    name: retrieval_ranks(aligner.transform(X_test), aligner.transform_text(y_test), pairs) < 1
    for name, aligner in aligners.items()
    if name != "ASIFAligner"  # its similarities are not cosines of its embeddings alone
}
best = hits["KernelAligner"]
for name, other in hits.items():
    if name != "KernelAligner":
        found = paired_difference(best, other, random_state=0)
        print(
            f"KernelAligner − {name}: {100 * found.estimate:+.1f} points of recall@1, "
            f"95% interval {100 * found.low:+.1f} to {100 * found.high:+.1f}"
        )
