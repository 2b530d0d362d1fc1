"""scikit-learn's estimator checks with parameters that are not the defaults."""

import pytest
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.utils.estimator_checks import check_estimator

from sklearn_ape import (
    APEAligner,
    ASIFAligner,
    CCAAligner,
    KernelAligner,
    ZeroShotClassifier,
)

TINY = {"width": 8, "max_epochs": 1, "random_state": 0}
TEXTS = HashingVectorizer(n_features=64, analyzer="char")

ALIGNERS = {
    "CCA, one component": CCAAligner(n_components=1, power=0.0, ridge=0.1),
    "CCA, no ridge": CCAAligner(ridge=0.0, power=0.5),
    "Kernel, few anchors": KernelAligner(n_components=1, max_anchors=5, random_state=3),
    "Kernel, narrow": KernelAligner(gamma=1.0, ridge=0.1, whitening=0.5, device="cpu"),
    "ASIF, nearest anchor": ASIFAligner(k=1, power=1.0, center=False),
    "ASIF, all anchors": ASIFAligner(k=10**6, power=0.5),
    "APE, GLU, sigmoid": APEAligner(
        head="glu", loss="sigmoid", optimizer="adam", init="kernel", early_stopping=False, **TINY
    ),
    "APE, star, mixup": APEAligner(
        head="star", side="both", init="kernel", mixup=0.3,
        loss_params={"structure_weight": 0.2}, optimizer_params={"clip_norm": 1.0},
        **TINY,
    ),
    "APE, batch norm, plain": APEAligner(
        head="batchnorm_mlp", init=None, optimizer="lion", batch_size=64,
        loss_params={"learn_logit_scale": False, "tile_size": 16}, optimizer_params={"warmup": 2},
        **TINY,
    ),
    "APE, skip, image side": APEAligner(
        head="skip_mlp", side="image", init="kernel", depth=3, n_components=1, refit=False,
        dropout=0.0, **TINY,
    ),
}  # fmt: skip
CLASSIFIERS = {
    "ASIF, photo": ZeroShotClassifier(
        aligner=ASIFAligner(text_encoder=TEXTS, k=20), templates="photo", logit_scale=2.0
    ),
    "CCA, numbers": ZeroShotClassifier(
        aligner=CCAAligner(text_encoder=TEXTS, ridge=0.1), templates=["{}", "no {}"],
        threshold=0.0, unknown_label=-1, standardize=True,
    ),
}  # fmt: skip


def n_passed(estimator):
    """Return the number of checks that passed; at most one, of array API, is skipped."""
    results = check_estimator(estimator, on_skip=None, on_fail="raise")
    passed = [result for result in results if result["status"] == "passed"]
    assert len(results) - len(passed) <= 1
    return len(passed)


@pytest.mark.parametrize("name", ALIGNERS)
def test_aligners_pass_all_checks(name):
    """The number is asserted, since a tag could switch most of the checks off."""
    assert n_passed(ALIGNERS[name]) >= 47


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_pass_all_checks(name):
    assert n_passed(CLASSIFIERS[name]) >= 54
