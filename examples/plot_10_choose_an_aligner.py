"""
Compare aligners on the same features
=====================================

All aligners accept the same features, so a comparison takes only seconds: encode the data once,
fit each aligner, and plot all recall curves on the same axes.
"""

# %%
# Encode the data once
# --------------------
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
# Fit and plot each aligner
# -------------------------
# ``init=None`` trains the plain head of the paper. By default, `APEAligner` tunes the
# solution of `KernelAligner` and blends it with such a head (see the example on the training
# history).
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
# Recall as a table
# -----------------
# Some captions differ only slightly, such as those of men and women with the same activity, and
# may be in both the training set and the test set. The values are therefore too optimistic, but
# they can be compared with each other.
print(f"{'':18s} recall@1         recall@10        CPU seconds")
for name, report, seconds in rows:
    to_text, to_image = report["image_to_text"], report["text_to_image"]
    print(
        f"{name:18s} {to_text[1]:5.1%} / {to_image[1]:5.1%}    "
        f"{to_text[10]:5.1%} / {to_image[10]:5.1%}   {seconds:5.1f}"
    )
print("(image → caption / caption → image)")

# %%
# Confidence intervals of the differences
# ---------------------------------------
# Two aligners are compared on the same queries, so the intervals are those of paired differences.
import numpy as np

from sklearn_ape.metrics import paired_difference, retrieval_ranks

pairs = np.column_stack([np.arange(len(X_test))] * 2)
hits = {
    name: retrieval_ranks(aligner.transform(X_test), aligner.transform_text(y_test), pairs) < 1
    for name, aligner in aligners.items()
}
for name, other in hits.items():
    if name != "KernelAligner":
        difference = paired_difference(hits["KernelAligner"], other, random_state=0)
        print(
            f"KernelAligner − {name}: {100 * difference.estimate:+.1f} points of recall@1, "
            f"95% interval {100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
        )
