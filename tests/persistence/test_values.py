"""Values as JSON: what makes no sense is refused by name, on the way out and on the way in."""

import numpy as np
import pytest

from sklearn_ape.persistence.serialize import Deserializer, Serializer


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"$float": "1e5"}, r"\$float must be nan, inf or -inf, not '1e5'"),
        ({"$tuple": 3}, r"\$tuple must be a list\."),
        ({"$numpy": ["<f4"]}, r"\$numpy must be a list of 2\."),
        ({"$map": [[[1], 2]]}, r"\$map has a key that is not hashable"),
        ({"$map": [[1, 2], [1, 3]]}, r"\$map has a duplicate key"),
        ({"$array": ["object", [-1], []]}, "A shape must consist of integers"),
        ({"$array": ["object", [2**40], []]}, "A shape must consist of integers"),
        ({"$array": ["object", [2], [1]]}, r"\$array of shape \[2\] has 1 items"),
        ({"$array": ["<U1", [1], [3]]}, r"items of \$array must be texts"),
        ({"$pipeline": []}, r"\$pipeline has no steps"),
        ({"$pipeline": [[1, None]]}, "must be a name and an estimator"),
        ({"$pipeline": [["a", 3]]}, "must be a name and an estimator"),
        ({"$frozen": 3}, r"value of \$frozen must be an estimator"),
    ],
    ids=str,
)
def test_invalid_json_value_raises(value, message):
    with pytest.raises(ValueError, match=message):
        Deserializer({}, {}).decode(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("caf\udce9", "Model.labels is not valid Unicode"),
        (np.datetime64("2024-01-01"), "Model.labels"),
        (np.array(["2024-01-01"], dtype="datetime64[D]"), "Model.labels"),
    ],
    ids=["surrogate", "date", "dates"],
)
def test_unsupported_value_raises(value, message):
    with pytest.raises(TypeError, match=message):
        Serializer().encode(value, "Model.labels")


def test_deep_nesting_raises():
    value = []
    for _ in range(1000):
        value = [value]
    with pytest.raises(TypeError, match=r"Model\.labels.* is nested too deeply to be saved"):
        Serializer().encode(value, "Model.labels")


def test_string_dtype_arrays_become_object_arrays():
    """They hold texts of any length, and a NUL at the end."""
    dtypes = pytest.importorskip("numpy.dtypes")
    texts = ["cat", "x" * 1000, "nul\0"]
    recorded = Serializer().encode(np.array(texts, dtype=dtypes.StringDType()), "Model.labels")
    assert Deserializer({}, {}).decode(recorded).tolist() == texts
