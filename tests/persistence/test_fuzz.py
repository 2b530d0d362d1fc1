"""Files of models changed at random: the model, or a clear refusal, whatever they say."""

import json
import shutil
from contextlib import suppress

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sklearn_ape import load_pretrained
from sklearn_ape.persistence._folder import read_model, write_model

EXAMPLES = 150

json_values = st.recursive(
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


fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def places(value, path=()):
    """Yield where something can be put in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


class TestFuzz:
    """Whatever a file says: the model, or ValueError or OSError; nothing else, and quickly."""

    def loads_or_refuses(self, folder):
        # ImportError is of weights that are named and not installed.
        with suppress(ValueError, OSError, ImportError):
            load_pretrained(folder)

    @fuzzed
    @given(data=st.data())
    def test_config(self, data, saved, tmp_path_factory):
        name = data.draw(st.sampled_from(["kernel", "cca", "asif", "ape-residual-of-kernel"]))
        config, tensors = read_model(saved / name)
        model = json.loads(json.dumps(config["model"]))
        for _ in range(data.draw(st.integers(1, 3))):
            path = data.draw(st.sampled_from([p for p in places(model) if p]))
            inner = model
            for key in path[:-1]:
                inner = inner[key]
            if data.draw(st.booleans()):
                inner[path[-1]] = data.draw(json_values)
            else:
                del inner[path[-1]]
        folder = tmp_path_factory.mktemp("fuzz") / "model"
        write_model(folder, {**config, "model": model}, tensors, "")
        self.loads_or_refuses(folder)
        shutil.rmtree(folder)

    @fuzzed
    @given(data=st.data())
    def test_bytes(self, data, saved, tmp_path_factory):
        name = data.draw(st.sampled_from(["kernel", "asif"]))
        folder = shutil.copytree(saved / name, tmp_path_factory.mktemp("fuzz") / "model")
        path = folder / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, min(len(content) - 1, 6000)))
            content[start : start + data.draw(st.integers(0, 3))] = data.draw(
                st.binary(max_size=4)
            )
        path.write_bytes(content)
        self.loads_or_refuses(folder)
        shutil.rmtree(folder)
