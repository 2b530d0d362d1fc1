"""Files of saved models changed at random: the model, or a clear refusal, whatever they say."""

import json
import shutil
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sklearn_ape import APEAligner, ASIFAligner, CCAAligner, KernelAligner, load_pretrained
from sklearn_ape.persistence.files import read_model, write_model

_KINDS = {
    "kernel": KernelAligner(n_components=None),
    "cca": CCAAligner(),
    "asif": ASIFAligner(),
    "ape": APEAligner(width=8, max_epochs=2, early_stopping=False, random_state=0),
}
# ImportError is of weights that are named and not installed.
_REFUSALS = (ValueError, OSError, ImportError)


def run(examples, check, **strategies):
    """Check so many examples and count what `check` returns."""
    found = Counter()
    given_them = given(**strategies)(lambda **values: found.update(check(**values)))
    quiet = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet(given_them)()
    return found


_json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["$class", "KernelAligner", "TimmImageEncoder", "Pipeline", "__class__"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6), inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["$tuple", "$map", "$array", "$numpy", "$tensor", "$float", "$pipeline", "$frozen"]
            ),
            inner,
            min_size=1,
            max_size=1,
        )
    ),
    max_leaves=6,
)


def _places(value, path=()):
    """Yield where something can be put in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*path, key))


def _saved(folder):
    """Save a small model of each kind, and return their tensors and configs."""
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((60, 5)), rng.standard_normal((60, 4))
    for name, aligner in _KINDS.items():
        aligner.fit(image, text).save_pretrained(folder / name)
    return {name: read_model(folder / name) for name in _KINDS}


def _outcome(folder):
    try:
        load_pretrained(folder)
    except _REFUSALS as error:
        if not str(error).strip():
            raise  # refused without a word
        return ["error"]
    return ["right"]


def fuzz_configs(examples):
    """Values of the description are dropped or replaced, with digests that fit."""
    with tempfile.TemporaryDirectory() as parent:
        saved = _saved(Path(parent))
        changed = Path(parent, "changed")

        def check(data):
            config, tensors = saved[data.draw(st.sampled_from(sorted(saved)))]
            model = json.loads(json.dumps(config["model"]))
            for _ in range(data.draw(st.integers(1, 3))):
                path = data.draw(st.sampled_from([p for p in _places(model) if p]))
                inner = model
                for key in path[:-1]:
                    inner = inner[key]
                if data.draw(st.booleans()):
                    inner[path[-1]] = data.draw(_json_values)
                else:
                    del inner[path[-1]]
                if not model:
                    break
            shutil.rmtree(changed, ignore_errors=True)
            write_model(changed, {**config, "model": model}, tensors, "")
            return _outcome(changed)

        return run(examples, check, data=st.data())


def fuzz_bytes(examples):
    """Bytes of the two files are changed: what is loaded has the numbers that were saved."""
    with tempfile.TemporaryDirectory() as parent:
        saved = _saved(Path(parent))
        changed = Path(parent, "changed")

        def check(data):
            name = data.draw(st.sampled_from(sorted(saved)))
            shutil.rmtree(changed, ignore_errors=True)
            shutil.copytree(Path(parent, name), changed)
            for _ in range(data.draw(st.integers(1, 2))):
                path = changed / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
                content = bytearray(path.read_bytes())
                # Half of them where the headers are.
                end = data.draw(st.sampled_from([len(content), min(len(content), 6000)]))
                for _ in range(data.draw(st.integers(1, 4))):
                    start = data.draw(st.integers(0, end))
                    piece = data.draw(st.binary(max_size=4))
                    content[start : start + data.draw(st.integers(0, 3))] = piece
                path.write_bytes(content)
            outcome = _outcome(changed)
            if outcome == ["right"]:
                _, tensors = read_model(changed)
                for key, expected in saved[name][1].items():
                    np.testing.assert_array_equal(tensors[key], expected)
            return outcome

        return run(examples, check, data=st.data())
