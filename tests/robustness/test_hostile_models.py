"""Malicious and damaged model files: they raise errors, and no code in them is executed."""

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from sklearn_ape import load_pretrained
from sklearn_ape.persistence.files import (
    load_json,
    read_metadata,
    read_model,
    read_tensors,
    write_model,
)


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved / "kernel", tmp_path / "model")


def rewrite_model(folder, change):
    """Change config and tensors in place and update the digests, as an attacker could."""
    config, tensors = read_model(folder)
    change(config, tensors)
    write_model(folder, config, tensors, "")


def params(config):
    return config["model"]["params"]


def state(config):
    return config["model"]["state"]


def set_in(part, **values):
    return lambda config, tensors: part(config).update(values)


def set_tensor(name, change):
    def changed(config, tensors):
        key = next(key for key in tensors if key.endswith(name))
        tensors[key] = np.ascontiguousarray(change(tensors[key]))

    return changed


def pack_as_int8(tensors, name, n_scales=None, scale=1.0):
    key = next(key for key in tensors if key.endswith(name))
    scales = np.full(n_scales or len(tensors[key]), scale, np.float32)
    return {key: np.ones(tensors[key].shape, np.int8), f"{key} (scale)": scales}


REFUSED = {
    "unknown class": (lambda c, t: c["model"].update({"$class": "os.system"}), "'os.system'"),
    "class of another module": (
        lambda c, t: c["model"].update({"$class": "sklearn.pipeline.Pipeline"}),
        "which is not one of",
    ),
    "class is a list": (lambda c, t: c["model"].update({"$class": ["a"]}), "which is not one of"),
    "no model": (lambda c, t: c.pop("model"), "must be an object of"),
    "model is a text": (lambda c, t: c.update(model="x"), "must be an object of"),
    "unknown parameter": (set_in(params, evil=1), "the parameter 'evil'"),
    "a setting of the machine": (set_in(params, device="cuda:7"), "the parameter 'device'"),
    "parameter of another kind": (set_in(params, ridge="high"), "ridge must be a number"),
    "parameter out of range": (set_in(params, gamma=-1), "gamma must be"),
    "unknown tag": (set_in(params, gamma={"$exec": "rm -rf"}), "unknown kind '\\$exec'"),
    "an encoder of another module": (
        set_in(params, image_encoder={"$class": "Popen", "params": {"args": "ls"}, "state": None}),
        "the class 'Popen'",
    ),
    "an encoder that is a number": (set_in(state, text_encoder=3), "must be an encoder"),
    "unknown state": (set_in(state, evil=1), "has 'evil'"),
    "no logit scale": (lambda c, t: state(c).pop("logit_scale"), "no 'logit_scale'"),
    "negative logit scale": (set_in(state, logit_scale=-3.0), "logit_scale must be"),
    "true as a logit scale": (set_in(state, logit_scale=True), "logit_scale must be"),
    "another fingerprint": (set_in(state, fingerprint="00"), "damaged"),
    "feature names of another length": (set_in(state, feature_names_in=["a"]), "must hold 5"),
    "unknown map": (
        lambda c, t: state(c)["text_head"]["base"].update(kind="eval"), "must be one of kernel"
    ),
    "map of another side": (
        lambda c, t: state(c).update(text_head=state(c).pop("image_head")), "no 'image_head'"
    ),
    "tensor named that is not there": (
        lambda c, t: state(c)["bank"]["image"].update(dense={"$tensor": "../../etc/passwd"}),
        "which model.safetensors lacks",
    ),
    "tensor used twice": (
        lambda c, t: state(c)["bank"].update(text=state(c)["bank"]["image"]),
        "named before",
    ),
    "tensor that nothing names": (
        lambda c, t: t.update({"../evil": np.ones(3)}), "config.json does not name"
    ),
    "array of too many texts": (
        set_in(params, gamma={"$array": ["<U9999999", [99], ["a"] * 99]}), "unknown type"
    ),
    "array of objects of numpy": (
        set_in(params, gamma={"$array": ["V8", [1], ["a"]]}), "unknown type"
    ),
    "array of another size": (
        set_in(params, gamma={"$array": ["object", [2**31, 2**31], []]}), "has 0 items"
    ),
    "wrong rows": (set_tensor("anchors", lambda a: a[:-1]), "anchors"),
    "wrong columns": (set_tensor("coefficients", lambda a: a[:, :-1]), "different sizes"),
    "no axes": (set_tensor("coefficients", lambda a: a.ravel()), "shape \\(any, any\\)"),
    "empty": (set_tensor("anchors", lambda a: a[:0]), "anchors"),
    "double precision": (set_tensor("anchors", lambda a: a.astype(np.float64)), "float32"),
    "integers": (set_tensor("anchors", lambda a: a.astype(np.int32)), "kind 'f'"),
    "scales of other rows": (
        lambda c, t: t.update(pack_as_int8(t, "anchors", n_scales=3)), "for each row of the array"
    ),
    "scales that are not finite": (
        lambda c, t: t.update(pack_as_int8(t, "anchors", scale=np.nan)), "not finite"
    ),
    "nan": (set_tensor("anchors", lambda a: a * np.nan), "not finite"),
    "infinite": (set_tensor("directions", lambda a: a + np.float32(np.inf)), "not finite"),
    "nan in the bank": (set_tensor("bank.image.dense", lambda a: a * np.nan), "not finite"),
    "bank of another width": (set_tensor("bank.image.dense", lambda a: a[:, 1:]), "dense must be"),
    "anchors without unit norm": (set_tensor("anchors", lambda a: a * 2), "not L2-normalized"),
    "other numbers": (set_tensor("coefficients", lambda a: a * np.float32(1.1)), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_config_raises(case, folder):
    change, message = REFUSED[case]
    rewrite_model(folder, change)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


class TestDeepHeads:
    def test_sizes_larger_than_the_file_raise(self, saved, tmp_path):
        """Sizes are checked before memory is allocated."""
        for changed in ({"depth": 10**9}, {"width": 2**30}, {"n_out": 2**30}, {"n_in": 2**31}):
            folder = shutil.copytree(saved / "ape-plain", tmp_path / str(changed))
            rewrite_model(folder, lambda c, t, new=changed: state(c)["text_head"].update(new))
            with pytest.raises(ValueError, match=r"depth must be|must be an array of shape"):
                load_pretrained(folder)

    def test_sparse_rows_out_of_bounds_raise(self, saved, tmp_path):
        for name in ("bank.image.indices", "bank.text.indptr", "image.rows"):
            folder = shutil.copytree(saved / "asif", tmp_path / name)
            rewrite_model(folder, set_tensor(name, lambda a: a + 10**6))
            with pytest.raises(ValueError, match=r"indices|indptr|rows|index"):
                load_pretrained(folder)


class TestFormat:
    def test_newer_format_raises(self, folder):
        rewrite_model(folder, lambda c, t: c.update(format=2, version="9.9"))
        with pytest.raises(ValueError, match=r"format 2, written by sklearn-ape 9\.9.*[Uu]pgrade"):
            load_pretrained(folder)

    @pytest.mark.parametrize("number", [0, "1", None, 1.0, True])
    def test_missing_format_raises(self, number, folder):
        rewrite_model(folder, lambda c, t: c.update(format=number))
        with pytest.raises(ValueError, match="does not describe a model"):
            load_pretrained(folder)

    def test_model_of_another_library_raises(self, folder):
        (folder / "config.json").write_text('{"model_type": "bert", "format": 1}')
        with pytest.raises(ValueError, match="does not describe a model"):
            load_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"format": NaN}', "NaN"),
        (b'{"format": 1e999}', "too large"),
        (b'{"format": 1, "format": 1}', "has the key 'format' more than once"),
        (b'{"a": "\xed\xa0\x80"}', "not valid JSON"),
        (b'{"format": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
        (b'{"a": "' + b"x" * 2**26 + b'"}', "longer than 64 MiB"),
    ],
    ids=range(11),
)
def test_invalid_json_raises(text, message, folder):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_many_repeated_keys_are_found_quickly():
    """Counting each key in all of them would take a quarter of an hour."""
    text = ", ".join(f'"{number}": 0' for number in range(300_000))
    start = time.process_time()
    with pytest.raises(ValueError, match="has the key '0' more than once"):
        load_json(f'{{{text}, "0": 0}}', "config.json")
    assert time.process_time() - start < 20


def header(entries, data=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


class TestTensorFiles:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"1234567",
            bytes(64),
            b"\xff" * 64,
            struct.pack("<Q", 2**40) + b"{}",
            struct.pack("<Q", 2**27) + b"{}",
            struct.pack("<Q", 4) + b"[1] ",
            struct.pack("<Q", 4) + b"nope",
            struct.pack("<Q", 20_000) + b"[" * 20_000,
            header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
            header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(8)),
            header({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
            header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}),
            header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
            header({"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}, bytes(8)),
            header({"a": {"dtype": "O", "shape": [4], "data_offsets": [0, 8]}}, bytes(8)),
            header({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
            header(
                {
                    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                    "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
                },
                bytes(12),
            ),
            header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(99)),
            header({"__metadata__": {"sklearn_ape": 5}}),
            header({"__metadata__": {"sklearn_ape": '{"library": "sklearn-ape"}'}}),
        ],
        ids=range(21),
    )
    def test_invalid_safetensors_file_raises(self, content, folder):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged|not a safetensors|type|JSON|a model"):
            load_pretrained(folder)

    def test_truncated_file_raises(self, folder):
        whole = (folder / "model.safetensors").read_bytes()
        for length in np.linspace(0, len(whole) - 1, 40).astype(int):
            (folder / "model.safetensors").write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"damaged|not a safetensors"):
                load_pretrained(folder)

    def test_flipped_bit_raises(self, folder):
        whole = bytearray((folder / "model.safetensors").read_bytes())
        whole[-3] ^= 1
        (folder / "model.safetensors").write_bytes(whole)
        with pytest.raises(ValueError, match="damaged"):
            load_pretrained(folder)

    def test_error_of_the_system_names_the_file(self, tmp_path):
        """safetensors says of a file without permission that it is missing."""
        for read in (read_tensors, read_metadata):
            with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
                read(tmp_path)


class Payload:
    """Object that creates a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


class TestPickles:
    @pytest.mark.parametrize("protocol", [0, 2, 5])
    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
    def test_pickle_instead_of_file_is_not_opened(self, name, protocol, folder, tmp_path):
        mark = str(tmp_path / "executed")
        (folder / name).write_bytes(pickle.dumps(Payload(mark), protocol=protocol))
        if name == "README.md":
            load_pretrained(folder)
        else:
            with pytest.raises(ValueError, match=r"not a safetensors|not valid JSON|damaged"):
                load_pretrained(folder)
        assert not os.path.exists(mark)

    def test_pickle_beside_files_is_not_opened(self, folder, tmp_path):
        import torch

        mark = str(tmp_path / "executed")
        for name in ("model.pkl", "pytorch_model.bin", "model.joblib"):
            (folder / name).write_bytes(pickle.dumps(Payload(mark)))
        torch.save({"a": Payload(mark)}, folder / "model.pt")
        load_pretrained(folder)
        with pytest.raises(ValueError, match=r"is a file.* never opened"):
            load_pretrained(folder / "model.pkl")
        shutil.copy(folder / "model.pt", folder / "model.safetensors")
        with pytest.raises(ValueError, match=r"checkpoints.* never opened"):
            load_pretrained(folder)
        (folder / "model.safetensors").unlink()
        with pytest.raises(ValueError, match=r"has no model.*model\.joblib.* never opened"):
            load_pretrained(folder)
        assert not os.path.exists(mark)

    @pytest.mark.exhaustive
    def test_loading_a_model_unpickles_nothing(self, folder):
        """Loading works if all functions that unpickle raise an error."""
        code = (
            "import pickle, sys, sklearn_ape.zero_shot, sklearn_ape.retrieval, torch\n"
            "def no(*a, **k): raise SystemExit('unpickled')\n"
            "pickle.load = pickle.loads = torch.load = pickle.Unpickler = no\n"
            "import sklearn_ape; sklearn_ape.load_pretrained(sys.argv[1]); print('loaded')"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
        )
        assert run.stdout.strip() == "loaded", run.stderr


@pytest.mark.parametrize(
    "source",
    ["no/such/deep/folder", "../escape", "..", "", "a b", "owner/..", "x" * 300, "owner/na me"],
)
def test_invalid_model_names_raise(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, OSError)):
        load_pretrained(source)
