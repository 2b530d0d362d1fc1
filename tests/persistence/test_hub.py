"""The hub's own client against a stand-in of the hub on loopback: push, load, errors."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sklearn_ape import KernelAligner, load_pretrained
from tests.persistence.hub import Hub

pytest.importorskip("huggingface_hub")

# The client reads its settings when it is imported, hence in a process of its own.
SCRIPT = """
import json, sys
import numpy as np
from sklearn_ape import CCAAligner, KernelAligner, load_pretrained

def failure(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

rng = np.random.default_rng(0)
X, y = rng.standard_normal((60, 5)), rng.standard_normal((60, 4))
first = KernelAligner().fit(X, y)
second = KernelAligner(ridge=2.0).fit(X, y)
told = {}
told["address"] = first.push_to_hub("me/aligner", token="hf_secret", scores={"recall": 0.5})
told["first"] = load_pretrained("me/aligner").fingerprint_ == first.fingerprint_
second.push_to_hub("me/aligner", token="hf_secret", commit_message="better", private=True)
told["second"] = KernelAligner.from_pretrained("me/aligner").fingerprint_ == second.fingerprint_
commit = sys.argv[1]
old = load_pretrained("me/aligner", revision=commit)
told["old"] = bool(np.array_equal(old.transform(X), first.transform(X)))
told["missing"] = failure(lambda: load_pretrained("me/nothing"))
told["revision"] = failure(lambda: load_pretrained("me/aligner", revision="no-such"))
told["class"] = failure(lambda: CCAAligner.from_pretrained("me/aligner"))
told["other"] = failure(lambda: load_pretrained("me/bert"))
print(json.dumps(told))
"""


def run(code, hub, cache, *arguments, **environment):
    env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(cache), **environment}
    env.pop("HF_TOKEN", None)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def hub():
    with Hub() as server:
        yield server
        server.shutdown()


def test_push_load_and_errors(hub, tmp_path):
    hub.repos["me/bert"] = [{"config.json": b'{"model_type": "bert"}', "evil.pkl": b"\x80"}]
    commit_1 = "356a192b7913b04c54574d18c28d46e6395428ab"  # sha1 of "1"
    told = run(SCRIPT, hub, tmp_path / "cache", commit_1)
    assert told["address"] == f"{hub.address}/me/aligner"
    assert told["first"]
    assert told["second"]
    assert told["old"]
    assert told["missing"].startswith("FileNotFoundError: 'me/")
    assert "no revision 'no-such'" in told["revision"]
    assert "has a model of the class KernelAligner" in told["class"]
    assert told["other"].startswith("ValueError")
    assert "has no model of sklearn-ape" in told["other"]
    assert not list((tmp_path / "cache").rglob("*.pkl"))  # never fetched
    assert "Bearer hf_secret" in hub.tokens
    files = hub.repos["me/aligner"][-1]
    assert files.keys() == {"config.json", "model.safetensors", "README.md"}
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: sklearn-ape\n")
    assert b"hf_secret" not in b"".join(files.values())


def test_load_without_network_uses_cache(hub, tmp_path):
    """Fetched before, it is loaded from the cache; else the error says what is missing."""
    code = """
import json
from sklearn_ape import load_pretrained
def failure(call):
    try:
        return str(call().fingerprint_)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
print(json.dumps({"a": failure(lambda: load_pretrained("me/aligner"))}))
"""
    rng = np.random.default_rng(0)
    model = KernelAligner().fit(rng.standard_normal((30, 5)), rng.standard_normal((30, 4)))
    model.save_pretrained(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    hub.repos["me/aligner"] = [files]
    cache = tmp_path / "cache"
    offline = {"HF_HUB_OFFLINE": "1"}
    told = run(code, hub, cache, **offline)
    assert told["a"].startswith("OSError: 'me/aligner' is not a folder, a model of this ID")
    assert run(code, hub, cache)["a"] == model.fingerprint_
    assert run(code, hub, cache, **offline)["a"] == model.fingerprint_


def test_upload_without_network_raises(hub, tmp_path):
    """Whichever library is below, an upload that cannot reach the hub says so in one line."""
    code = """
import json
import numpy as np
from sklearn_ape import KernelAligner
rng = np.random.default_rng(0)
model = KernelAligner().fit(rng.standard_normal((30, 5)), rng.standard_normal((30, 4)))
try:
    model.push_to_hub("me/aligner", token="hf_secret")
except OSError as error:
    print(json.dumps({"a": str(error)}))
"""
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        told = run(code, hub, tmp_path, **environment)["a"]
        assert told.startswith("'me/aligner' was not uploaded: ")
        assert "save_pretrained saves the model" in told


def test_missing_huggingface_hub_raises(monkeypatch, concepts):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"sklearn-ape\[hub\]"):
        load_pretrained("owner/name")
    model = KernelAligner().fit(concepts.image, concepts.text)
    with pytest.raises(ImportError, match=r"sklearn-ape\[hub\]"):
        model.push_to_hub("owner/name")


@pytest.mark.parametrize("name", ["", None, "../x", "/abs"])
def test_invalid_repo_id_raises(name, concepts):
    model = KernelAligner().fit(concepts.image, concepts.text)
    with pytest.raises(ValueError, match="owner/name"):
        model.push_to_hub(name)
