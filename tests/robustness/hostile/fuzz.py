"""Fuzzing of the entrances: each function tries so many examples, the same ones each time.

A failure is an AssertionError or whatever was raised, with the least example that was found.
"""

import csv
import io
import json
import os
import struct
import tempfile
import zlib
from itertools import chain
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from sklearn_ape import CCAAligner, ZeroShotClassifier
from sklearn_ape.datasets import load_image_folder, load_pairs
from sklearn_ape.encoders import TransformersTextEncoder
from sklearn_ape.utils.files import IMAGE_SUFFIXES
from tests.robustness.hostile.cases import Case, as_bytes, base_image
from tests.robustness.hostile.corpus import entrance, judged
from tests.robustness.hostile.damaged_files import whole_files
from tests.robustness.hostile.fuzz_models import fuzz_bytes, fuzz_configs, run

_CHARACTERS = st.characters(categories=["L", "M", "N", "P", "S", "Z", "C"])  # surrogates as well
_AWKWARD = st.sampled_from(
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
    _AWKWARD,
    st.text(_CHARACTERS, max_size=40),
    st.builds(lambda text, n: (text + " ") * n, st.text(_CHARACTERS, max_size=6), st.just(10_000)),
)


@st.composite
def damaged_files(draw):
    """Return a sound file, changed up to six times."""
    files = whole_files()
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
        _mend_checksums(data)
    return bytes(data)


def _mend_checksums(data):
    """Make the chunks of a PNG pass their first check, so that what is in them is read."""
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            return
        struct.pack_into(">I", data, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4


def fuzz_images(examples):
    """Damaged files give Pillow's pixels or one clear error."""

    def check(data):
        kind, message = judged(Case("fuzzed", data, large=89_000_000))
        assert kind in ("right", "error"), (kind, message)
        return [kind]

    return run(examples, check, data=damaged_files())


def _only_if(reason, error):
    """Fail where sound input was refused, or with words that do not help."""
    if not reason:
        raise AssertionError(f"refused without a reason: {error!r}") from error


def _says_something(text):
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(text.strip())


def fuzz_captions(examples):
    """Good captions are encoded as if alone, all others are named."""
    encoder = TransformersTextEncoder(cache=None, on_error="nan")
    odd = st.sampled_from([None, float("nan"), 3, b"bytes", ["list"], {"a": 1}, True])
    anything = st.one_of(TEXTS, TEXTS, TEXTS, odd)

    def check(captions):
        features = encoder.transform(captions)
        errors = dict(encoder.errors_)
        bad = np.flatnonzero(np.isnan(features).any(axis=1)).tolist()
        assert bad == sorted(errors)
        for row, text in enumerate(captions):
            assert _says_something(text) or row in errors, "taken for a caption"
            if row in errors:
                assert not _says_something(text) or "empty" in errors[row], errors[row]
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
    """Classes are answered by what their own prompts say, or refused."""
    encoder = TransformersTextEncoder()
    captions = ["a cat", "a dog", "rain", "a red apple", "a house", "two trees"] * 4
    rng = np.random.default_rng(0)
    image = encoder.transform(captions)
    image = image + 0.05 * rng.standard_normal(image.shape).astype(np.float32)
    aligner = CCAAligner(text_encoder=encoder).fit(image, captions)
    asked = aligner.transform(image[:6])
    sound = st.one_of(_AWKWARD, st.text(_CHARACTERS, max_size=20)).filter(
        lambda text: _says_something(text) and not text.endswith("\0")
    )
    places = ["{}", "a {}", "{{}}", "{0.__class__} {}", "%s {}", "{a} {}"]
    good = st.sampled_from(places) | st.builds("{}{{}}{}".format, sound, sound).filter(
        lambda text: text.count("{}") == 1
    )
    bad = st.sampled_from(["{}{}", "{", "x", ""]) | st.builds("{}{{}}{}".format, TEXTS, TEXTS)

    def check(labels, templates):
        repeated = len(set(labels)) < len(labels)
        nul = any(label.endswith("\0") for label in labels)
        no_place = any(text.count("{}") != 1 for text in templates)
        prompts = {label: [label.join(text.split("{}")) for text in templates] for label in labels}
        unsound = not all(map(_says_something, [*labels, *chain(*prompts.values())]))
        classifier = ZeroShotClassifier(
            labels, aligner=aligner, templates=templates, standardize=False
        )
        try:
            found = classifier.predict(image[:6])
            classes = classifier.classes_.tolist()
            shares = classifier.predict_proba(image[:6])
        except ValueError as error:
            hidden = "empty" in str(error)  # of characters that nobody sees
            _only_if(repeated or nul or no_place or unsound or hidden, error)
            return ["error"]
        assert not any((repeated, nul, no_place, unsound)), "bad labels were taken"
        assert classes == sorted(labels)
        means = [
            aligner.transform_text(list(dict.fromkeys(prompts[c]))).mean(axis=0) for c in classes
        ]
        cosines = asked @ np.array([mean / np.linalg.norm(mean) for mean in means]).T
        places = [classes.index(label) for label in found]
        assert (cosines.max(axis=1) - cosines[range(6), places] < 1e-3).all(), "not the nearest"
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-4)
        return ["right"]

    labels = st.lists(sound, min_size=1, max_size=5, unique=True)
    templates = st.lists(good, min_size=1, max_size=3)
    sound_ones = st.tuples(labels, templates)
    any_ones = st.tuples(
        labels | st.lists(TEXTS, min_size=1, max_size=5), templates | st.lists(bad, max_size=3)
    )
    return run(examples, lambda given_: check(*given_), given_=sound_ones | any_ones)


_REFUSALS = (ValueError, FileNotFoundError, TypeError, IsADirectoryError)


def fuzz_tables(examples):
    """Tables come back as written, or are refused by name; so are damaged ones."""
    cell = st.text(_CHARACTERS.filter(lambda c: not "\ud800" <= c <= "\udfff"), max_size=12)
    rows = st.lists(st.tuples(cell, cell), min_size=1, max_size=5)
    forms = st.sampled_from(["csv", "tsv", "jsonl"])

    def check(rows, form, damage):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"pairs.{form}")
            content = _written(rows, form)
            if damage is not None:
                place, piece = damage
                place %= len(content)
                content = content[:place] + piece + content[place + len(piece) // 2 :]
            file.write_bytes(content)
            try:
                data = load_pairs(file, check_files=False)
            except _REFUSALS as error:
                blank = any(not a.strip() or not b.strip() for a, b in rows)
                _only_if(repr(str(file)) in str(error) and (damage is not None or blank), error)
                return ["error"]
            assert len(data.images) == len(data.captions)
            if damage is None:
                assert data.captions == [" ".join(caption.split()) for _, caption in rows]
                expected = [os.path.join(folder, os.path.expanduser(name)) for name, _ in rows]
                assert data.images == expected
            return ["right"]

    damage = st.none() | st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
    return run(examples, check, rows=rows, form=forms, damage=damage)


def _written(rows, form):
    if form == "jsonl":
        lines = [json.dumps({"image": a, "caption": b}) for a, b in rows]
        return "\n".join(lines).encode()
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter="\t" if form == "tsv" else ",")
    writer.writerows([("image", "caption"), *rows])
    return stream.getvalue().encode()


def fuzz_folders(examples):
    """Images are listed under whatever name they have, and can be read under it."""
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
                known = Path(os.fsdecode(path)).suffix.lower() in IMAGE_SUFFIXES
                if known and not name.startswith(b"."):
                    expected.add(os.fsdecode(path))
            try:
                listed = load_image_folder(folder, captions=None)
            except ValueError as error:
                _only_if(not expected, error)
                return ["error"]
            assert set(listed.images) == expected
            assert len(listed.images) == len(expected)
            for path in listed.images:
                assert entrance(path).shape == (3, 4, 3)
            try:
                named = load_image_folder(folder, captions="filename")
            except ValueError as error:
                _only_if("no words" in str(error), error)
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
    "saved models, what they say": fuzz_configs,
    "saved models, their bytes": fuzz_bytes,
}
