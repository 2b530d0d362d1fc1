"""All hostile items in one batch of a real encoder: the good ones lose nothing by the bad ones."""

import warnings

import numpy as np
import pytest
from hostile.harness import corpus, entrance

from sklearn_ape.encoders import TimmImageEncoder
from sklearn_ape.encoders._errors import ItemError

_NARROWEST = 100  # what an encoder takes; reading alone takes any


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """The corpus but for the few pictures of many million pixels, in the current folder."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield [case for case in corpus(str(folder)) if not case.large]


@pytest.mark.filterwarnings("ignore")
def test_good_ones_are_as_if_alone_and_errors_name_the_bad_ones(cases):
    """`errors_` names exactly the bad rows, which are NaN; the others are those of the picture."""
    good = {}
    for row, case in enumerate(cases):
        try:
            pixels = entrance(case.item)
        except ItemError:
            continue
        if max(pixels.shape[:2]) <= _NARROWEST * min(pixels.shape[:2]):
            good[row] = pixels
    assert len(good) > 200
    assert len(cases) - len(good) > 200
    encoder = TimmImageEncoder("efficientnet_lite0", cache=None, on_error="nan")
    features = encoder.transform([case.item for case in cases])
    assert sorted(encoder.errors_) == [row for row in range(len(cases)) if row not in good]
    assert np.flatnonzero(np.isnan(features).any(axis=1)).tolist() == sorted(encoder.errors_)

    clean = encoder.transform(list(good.values()))
    assert encoder.errors_ == {}
    np.testing.assert_allclose(features[list(good)], clean, atol=2e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for row in list(good)[::40]:
            alone = encoder.transform([cases[row].item])[0]
            np.testing.assert_allclose(features[row], alone, atol=2e-3)
