"""
Plot the training history of APEAligner
=======================================

`APEAligner` records the loss and the recall of each epoch in `history_`. This example compares two
runs on the same 479 pairs: the plain head of the paper, and the default, which blends a
closed-form solution with a trained head if the blend is better on held-out pairs.
"""

# %%
from sklearn_ape import APEAligner
from sklearn_ape.datasets import get_data_home, load_openmoji
from sklearn_ape.encoders import TimmImageEncoder, TransformersTextEncoder

data = load_openmoji()
images, captions = data.images[::4], data.captions[::4]
test_images, test_captions = data.images[1::8], data.captions[1::8]
cache = get_data_home() / "features"
image_encoder = TimmImageEncoder("efficientnet_lite0", cache=cache, n_jobs=-1)
text_encoder = TransformersTextEncoder(cache=cache)
X, X_test = image_encoder.transform(images), image_encoder.transform(test_images)
y, y_test = text_encoder.transform(captions), text_encoder.transform(test_captions)

# %%
# Plain head
# ----------
# The training loss still decreases after the recall on held-out pairs has stopped increasing. The
# weights of the epoch with the best recall are selected, not those of the last epoch.
from sklearn_ape.inspection import TrainingHistoryDisplay

plain = APEAligner(init=None, width=256, max_epochs=40, random_state=0).fit(X, y)
TrainingHistoryDisplay.from_estimator(plain, name="init=None")
print(f"selected epoch {plain.best_epoch_} of {plain.n_epochs_}")

# %%
# Blend of a head and a closed-form solution
# ------------------------------------------
# Epoch 0 is the closed-form solution, tuned if this is better. The recall of a later epoch is
# that of a blend of this solution with the head. With these few pairs, no blend is better, and the
# closed-form solution is used.
default = APEAligner(width=256, max_epochs=15, random_state=0).fit(X, y)
TrainingHistoryDisplay.from_estimator(default, name='init="auto"')
print(default.training_summary_)

# %%
# Evaluation on test pairs
# ------------------------
# The validation pairs were used to select the epoch. Compare the two aligners on test pairs that
# neither of them was trained on.
for name, aligner in (("init=None", plain), ('init="auto"', default)):
    report = aligner.retrieval_report(X_test, y_test)
    print(
        f"{name:12s} recall@1 {report['image_to_text'][1]:.1%} / {report['text_to_image'][1]:.1%}"
    )
