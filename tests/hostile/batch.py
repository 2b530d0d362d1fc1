"""All items in one batch of a real encoder: the good ones lose nothing by the bad ones."""

import warnings

import numpy as np
from hostile.harness import Outcome, entrance

from sklearn_ape.encoders import TimmImageEncoder
from sklearn_ape.encoders.items import ItemError

_NARROWEST = 100  # what an encoder takes; reading alone takes any
_TOLERANCE = 2e-3  # of features of other batches


def batch_outcomes(cases, every=40):
    """Return what became of each row; one of so many good ones is encoded alone as well."""
    good = {}
    for row, case in enumerate(cases):
        try:
            pixels = entrance(case.item)
        except ItemError:
            continue
        if max(pixels.shape[:2]) <= _NARROWEST * min(pixels.shape[:2]):
            good[row] = pixels
    encoder = TimmImageEncoder("efficientnet_lite0", cache=None, on_error="nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        features = encoder.transform([case.item for case in cases])
    errors = dict(encoder.errors_)
    clean = dict(zip(good, encoder.transform(list(good.values())), strict=True))
    for row in list(good)[::every]:
        alone = encoder.transform([cases[row].item])[0]
        if not np.allclose(alone, clean[row], atol=_TOLERANCE):
            clean[row] = np.full_like(alone, np.inf)  # equal to no feature
    done = []
    for row, case in enumerate(cases):
        if row not in good:
            named = row in errors and np.isnan(features[row]).all()
            kind, message = ("error" if named else "wrong"), errors.get(row, "not named")
        elif row in errors or np.isnan(features[row]).any():
            kind, message = "lost", errors.get(row, "not a number")
        else:
            same = np.allclose(features[row], clean[row], atol=_TOLERANCE)
            kind, message = ("right", "") if same else ("wrong", "features of another image")
        done.append(Outcome(case.name, kind, message))
    return done
