"""
What training brings
====================

`APEAligner` says in `history_` what each epoch did. Two runs on the same 500 pairs: the plain head
of the paper, and the default, which starts at a solution in closed form.
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
# From random weights
# -------------------
# The loss goes on falling after the recall on held-out pairs has stopped rising: the epoch kept is
# the best one of the latter, not the last one.
from sklearn_ape.inspection import TrainingHistoryDisplay

plain = APEAligner(init=None, width=256, max_epochs=40, random_state=0).fit(X, y)
TrainingHistoryDisplay.from_estimator(plain, name="init=None")
print(f"kept epoch {plain.best_epoch_} of {plain.n_epochs_}")

# %%
# From the closed form
# --------------------
# Epoch 0 is the start. Training is kept only if it beats it by more than one standard error on the
# pairs held out; with this few pairs it often does not, and then says so.
default = APEAligner(width=256, max_epochs=15, random_state=0).fit(X, y)
TrainingHistoryDisplay.from_estimator(default, name='init="auto"')
print("the start was kept" if default.best_epoch_ == 0 else f"kept epoch {default.best_epoch_}")

# %%
# On other pairs
# --------------
# Which of the two is better is not read off their own validation pairs, but off pairs that
# neither has seen.
for name, aligner in (("init=None", plain), ('init="auto"', default)):
    report = aligner.retrieval_report(X_test, y_test)
    print(
        f"{name:12s} recall@1 {report['image_to_text'][1]:.1%} / {report['text_to_image'][1]:.1%}"
    )
