"""Fuzzing of image bytes, captions, labels, tables, folders and saved models.

Each function runs a number of reproducible examples. A failure is an AssertionError or another
exception, with the smallest failing example.
"""

import csv
import io
import json
import os
import shutil
import struct
import tempfile
import warnings
import zlib
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sklearn_ape import (
    APEAligner,
    ASIFAligner,
    CCAAligner,
    KernelAligner,
    ZeroShotClassifier,
    load_pretrained,
)
from sklearn_ape.datasets import load_image_folder, load_pairs
from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.persistence.files import read_model, write_model
from sklearn_ape.utils.files import IMAGE_SUFFIXES
from sklearn_ape.utils.messages import is_invisible
from tests.robustness.hostile.cases import Case, as_bytes, base_image
from tests.robustness.hostile.corpus import judge, load_image
from tests.robustness.hostile.damaged_files import undamaged_files

_KINDS = {
    "kernel": KernelAligner(n_components=None),
    "cca": CCAAligner(),
    "asif": ASIFAligner(),
    "ape": APEAligner(init="kernel", width=8, max_epochs=2, early_stopping=False, random_state=0),
    "blend": APEAligner(width=8, max_epochs=2, early_stopping=False, random_state=0),
}
# ImportError is raised for named weights that are not installed.
_MODEL_ERRORS = (ValueError, OSError, ImportError)


def run(examples, check, **strategies):
    """Run `check` on a number of examples, and count the outcomes that it returns."""
    counts = Counter()
    fuzzed = given(**strategies)(lambda **values: counts.update(check(**values)))
    configure = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        configure(fuzzed)()
    return counts


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


def _value_paths(value, path=()):
    """Yield the paths of all values within a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _value_paths(value[key], (*path, key))


def _save_models(folder):
    """Save a small model of each kind, and return their tensors and configs."""
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((60, 5)), rng.standard_normal((60, 4))
    for name, aligner in _KINDS.items():
        aligner.fit(image, text).save_pretrained(folder / name)
    return {name: read_model(folder / name) for name in _KINDS}


def _outcome(folder):
    try:
        load_pretrained(folder)
    except _MODEL_ERRORS as error:
        if not str(error).strip():
            raise  # an error without a message is a failure
        return ["error"]
    return ["right"]


def fuzz_configs(examples):
    """Remove or replace values of the config, and update the digests."""
    with tempfile.TemporaryDirectory() as parent:
        saved = _save_models(Path(parent))
        changed = Path(parent, "changed")

        def check(data):
            config, tensors = saved[data.draw(st.sampled_from(sorted(saved)))]
            model = json.loads(json.dumps(config["model"]))
            for _ in range(data.draw(st.integers(1, 3))):
                path = data.draw(st.sampled_from([p for p in _value_paths(model) if p]))
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
    """Change bytes of both files; a model that can be loaded has the saved tensors."""
    with tempfile.TemporaryDirectory() as parent:
        saved = _save_models(Path(parent))
        changed = Path(parent, "changed")

        def check(data):
            name = data.draw(st.sampled_from(sorted(saved)))
            shutil.rmtree(changed, ignore_errors=True)
            shutil.copytree(Path(parent, name), changed)
            for _ in range(data.draw(st.integers(1, 2))):
                path = changed / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
                content = bytearray(path.read_bytes())
                # Half of the changes are in the headers.
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


_CHARACTERS = st.characters(categories=["L", "M", "N", "P", "S", "Z", "C"])  # including surrogates
_UNUSUAL = st.sampled_from(
    [
        *("", " ", "\0", "a\0", "\u200b", "\ufeff", "\u202eabc", "\ud800", "x\udfff", "\n\r\t"),
        *(
            "كلب صغير",
            "כלב",
            "👩‍👩‍👧‍👦",
            "🇺🇳",
            "e\u0301" * 50,
            "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍",
            "\U0010ffff",
            "[CLS] [SEP] [PAD]",
        ),
        *(
            "{}",
            "{0.__class__}",
            "{{}}",
            "%s %n",
            "$(id)",
            "<script>",
            "'; DROP TABLE",
            "../../x.png",
        ),
        *(
            "cat",
            "cat ",
            "cats",
            "a cat",
            "CAT",
            "caption,with,commas",
            '"quoted"',
            "a;b",
            "NA",
            "nan",
        ),
    ]
)
TEXTS = st.one_of(
    _UNUSUAL,
    st.text(_CHARACTERS, max_size=40),
    st.builds(lambda text, n: (text + " ") * n, st.text(_CHARACTERS, max_size=6), st.just(10_000)),
)


@st.composite
def damaged_files(draw):
    """Draw a valid file with up to six changes."""
    files = undamaged_files()
    data = bytearray(files[draw(st.sampled_from(sorted(files)))])
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["flip", "set", "number", "cut", "drop", "twice", "splice"]))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            data[place : place + 1] = draw(st.binary(max_size=4))
        elif kind == "number":
            number = draw(st.sampled_from([0, 1, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1]))
            data[place : place + 4] = struct.pack(draw(st.sampled_from(["<I", ">I"])), number)
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + draw(st.integers(1, 64))]
        elif kind == "twice":
            part = data[place : place + draw(st.integers(1, 256))]
            data[place:place] = part
        else:
            other = files[draw(st.sampled_from(sorted(files)))]
            data[place:] = other[min(place, len(other)) :]
    if data[:4] == b"\x89PNG" and draw(st.booleans()):
        _fix_checksums(data)
    return bytes(data)


def _fix_checksums(data):
    """Update the checksums of a PNG, so that decoders read the damaged chunks."""
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            return
        struct.pack_into(">I", data, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4


def fuzz_images(examples):
    """Damaged files give the pixels that Pillow decodes, or one clear error."""

    def check(data):
        kind, message = judge(Case("fuzzed", data, large=89_000_000))
        assert kind in ("right", "error"), (kind, message)
        return [kind]

    return run(examples, check, data=damaged_files())


def _raise_unless(reason, error):
    """Raise an AssertionError unless there is a reason for the error."""
    if not reason:
        raise AssertionError(f"error without a reason: {error!r}") from error


def _is_visible_text(text):
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text.strip())


def fuzz_captions(examples):
    """Valid captions have the feature of the caption alone; others are named in `errors_`."""
    encoder = TransformersTextEncoder(cache=None, on_error="nan")
    invalid = st.sampled_from([None, float("nan"), 3, b"bytes", ["list"], {"a": 1}, True])
    anything = st.one_of(TEXTS, TEXTS, TEXTS, invalid)

    def check(captions):
        features = encoder.transform(captions)
        errors = dict(encoder.errors_)
        bad = np.flatnonzero(np.isnan(features).any(axis=1)).tolist()
        assert bad == sorted(errors)
        for row, text in enumerate(captions):
            assert _is_visible_text(text) or row in errors, "accepted as a caption"
            if row in errors:
                assert not _is_visible_text(text) or "empty" in errors[row], errors[row]
                assert "\n" not in errors[row], "more than a line"
                assert len(errors[row]) < 1000, "a long message"
        good = [row for row in range(len(captions)) if row not in errors]
        for row in good[:1]:
            alone = encoder.transform([captions[row]])[0]
            np.testing.assert_allclose(features[row], alone, atol=1e-3)
            same = [other for other in good if captions[other] == captions[row]]
            assert np.array_equal(features[same], np.repeat(features[[row]], len(same), axis=0))
        return ["right"] * len(good) + ["error"] * len(errors)

    return run(examples, check, captions=st.lists(anything, min_size=1, max_size=6))


def fuzz_labels(examples):
    """Predictions are those of the prompts of the classes, or an error is raised."""
    encoder = TransformersTextEncoder()
    captions = ["a cat", "a dog", "rain", "a red apple", "a house", "two trees"] * 4
    rng = np.random.default_rng(0)
    image = encoder.transform(captions)
    image = image + 0.05 * rng.standard_normal(image.shape).astype(np.float32)
    aligner = CCAAligner(text_encoder=encoder).fit(image, captions)
    asked = aligner.transform(image[:6])
    valid = st.one_of(_UNUSUAL, st.text(_CHARACTERS, max_size=20)).filter(
        lambda text: _is_visible_text(text) and not text.endswith("\0")
    )
    places = ["{}", "a {}", "{{}}", "{0.__class__} {}", "%s {}", "{a} {}"]
    good = st.sampled_from(places) | st.builds("{}{{}}{}".format, valid, valid).filter(
        lambda text: text.count("{}") == 1
    )
    bad = st.sampled_from(["{}{}", "{", "x", ""]) | st.builds("{}{{}}{}".format, TEXTS, TEXTS)

    def check(labels, templates):
        repeated = len(set(labels)) < len(labels)
        nul = any(label.endswith("\0") for label in labels)
        no_place = any(text.count("{}") != 1 for text in templates)
        prompts = {label: [label.join(text.split("{}")) for text in templates] for label in labels}
        has_invalid_text = not all(map(_is_visible_text, [*labels, *chain(*prompts.values())]))
        classifier = ZeroShotClassifier(
            labels, aligner=aligner, templates=templates, standardize=False
        )
        try:
            predicted = classifier.predict(image[:6])
            classes = classifier.classes_.tolist()
            proba = classifier.predict_proba(image[:6])
        except ValueError as error:
            invisible = "empty" in str(error)  # of invisible characters
            _raise_unless(repeated or nul or no_place or has_invalid_text or invisible, error)
            return ["error"]
        assert not any((repeated, nul, no_place, has_invalid_text)), "invalid labels were accepted"
        assert classes == sorted(labels)
        means = [
            aligner.transform_text(list(dict.fromkeys(prompts[c]))).mean(axis=0) for c in classes
        ]
        cosines = asked @ np.array([mean / np.linalg.norm(mean) for mean in means]).T
        places = [classes.index(label) for label in predicted]
        assert (cosines.max(axis=1) - cosines[range(6), places] < 1e-3).all(), "not the nearest"
        np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-4)
        return ["right"]

    labels = st.lists(valid, min_size=1, max_size=5, unique=True)
    templates = st.lists(good, min_size=1, max_size=3)
    valid_arguments = st.tuples(labels, templates)
    any_arguments = st.tuples(
        labels | st.lists(TEXTS, min_size=1, max_size=5), templates | st.lists(bad, max_size=3)
    )
    return run(examples, lambda given_: check(*given_), given_=valid_arguments | any_arguments)


_TABLE_ERRORS = (ValueError, FileNotFoundError, TypeError, IsADirectoryError)


def fuzz_tables(examples):
    """Tables are read as written, or an error names the file, also if it is damaged."""
    cell = st.text(_CHARACTERS.filter(lambda c: not "\ud800" <= c <= "\udfff"), max_size=12)
    rows = st.lists(st.tuples(cell, cell), min_size=1, max_size=5)
    forms = st.sampled_from(["csv", "tsv", "jsonl"])

    def check(rows, form, damage):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"pairs.{form}")
            content = _format_table(rows, form)
            if damage is not None:
                place, piece = damage
                place %= len(content)
                content = content[:place] + piece + content[place + len(piece) // 2 :]
            file.write_bytes(content)
            try:
                data = load_pairs(file, check_files=False)
            except _TABLE_ERRORS as error:
                blank = any(is_invisible(cell) for row in rows for cell in row)
                _raise_unless(
                    repr(str(file)) in str(error) and (damage is not None or blank), error
                )
                return ["error"]
            assert len(data.images) == len(data.captions)
            if damage is None:
                assert data.captions == [" ".join(caption.split()) for _, caption in rows]
                expected = [os.path.join(folder, os.path.expanduser(name)) for name, _ in rows]
                assert data.images == expected
            return ["right"]

    damage = st.none() | st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
    return run(examples, check, rows=rows, form=forms, damage=damage)


def _format_table(rows, form):
    if form == "jsonl":
        lines = [json.dumps({"image": a, "caption": b}) for a, b in rows]
        return "\n".join(lines).encode()
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter="\t" if form == "tsv" else ",")
    writer.writerows([("image", "caption"), *rows])
    return stream.getvalue().encode()


def fuzz_folders(examples):
    """Images with any file name are listed and can be read."""
    data = as_bytes(base_image(4, 3), "PNG")
    stem = st.one_of(
        st.text(_CHARACTERS, min_size=1, max_size=20).map(
            lambda text: text.encode("utf-8", "surrogatepass")
        ),
        st.binary(min_size=1, max_size=40),
    ).map(lambda name: name.replace(b"/", b"").replace(b"\0", b""))
    suffix = st.sampled_from([b"", b".png", b".JPG", b".txt", b".png.", b".gif ", b".tiff"])
    names = st.lists(st.tuples(st.booleans(), stem, suffix), min_size=1, max_size=5)

    def check(names):
        with tempfile.TemporaryDirectory() as folder:
            root = os.fsencode(folder)
            os.mkdir(os.path.join(root, b"sub\xff folder"))
            expected = set()
            for below, stem, suffix in names:
                name = stem + suffix
                if name in (b"", b".", b".."):
                    continue
                parent = os.path.join(root, b"sub\xff folder") if below else root
                path = os.path.join(parent, name)
                with open(path, "wb") as file:
                    file.write(data)
                is_image = Path(os.fsdecode(path)).suffix.lower() in IMAGE_SUFFIXES
                if is_image and not name.startswith(b"."):
                    expected.add(os.fsdecode(path))
            try:
                listed = load_image_folder(folder, captions=None)
            except ValueError as error:
                _raise_unless(not expected, error)
                return ["error"]
            assert set(listed.images) == expected
            assert len(listed.images) == len(expected)
            for path in listed.images:
                assert load_image(path).shape == (3, 4, 3)
            try:
                named = load_image_folder(folder, captions="filename")
            except ValueError as error:
                _raise_unless("names with words" in str(error), error)
                return ["error"]
            assert len(named.captions) == len(expected)
            return ["right"]

    return run(examples, check, names=names)


FUZZERS = {
    "image bytes": fuzz_images,
    "captions": fuzz_captions,
    "labels and templates": fuzz_labels,
    "tables": fuzz_tables,
    "folders": fuzz_folders,
    "saved models, configs": fuzz_configs,
    "saved models, bytes": fuzz_bytes,
}
