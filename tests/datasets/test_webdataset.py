"""load_webdataset and write_webdataset: pairs, and errors with shard and sample."""

import gc
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from sklearn_ape.datasets import load_webdataset, write_webdataset
from sklearn_ape.encoders import EncodingError

pytest.importorskip("webdataset")


def shard(path, files):
    """Write a tar file of the given names and contents."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path):
    """Two shards of three and two pairs, in various forms."""
    shard(
        tmp_path / "00000.tar",
        [
            ("__meta__/x.json", b"{}"),
            *[("a/1.jpg", b"one"), ("a/1.txt", b"\xef\xbb\xbfa  cat\n")],
            *[("a/2.PNG", b"two"), ("a/2.json", b'{"caption": "a dog", "x": 1}')],
            *[("a/3.cls", b"7"), ("a/3.caption", b"an emu"), ("a/3.jpg", b"three")],
        ],
    )
    shard(
        tmp_path / "00001.tar",
        [(f"b/{i}.{e}", c) for i in (4, 5) for e, c in (("webp", b"%d" % i), ("txt", b"x"))],
    )
    return tmp_path


def test_shards_are_closed(folder, recwarn):
    """A file that stays open causes a ResourceWarning when it is deleted."""
    gc.collect()  # files of other tests
    recwarn.clear()
    list(load_webdataset(folder))
    next(iter(load_webdataset(folder)))
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


IMAGES = [b"one", b"two", b"three", b"4", b"5"]
CAPTIONS = ["a cat", "a dog", "an emu", "x", "x"]


def test_pairs_are_in_order(folder):
    """Pairs of all keys are in order, and their sides can be read repeatedly."""
    pairs = load_webdataset(folder)
    assert list(pairs) == list(zip(IMAGES, CAPTIONS, strict=True))
    images, captions = pairs.images(), pairs.captions()
    for _ in range(2):
        assert list(images) == IMAGES
        assert list(captions) == CAPTIONS
    assert len(pairs) == len(images) == len(captions) == 5


@pytest.mark.parametrize(
    ("names", "shards", "n"),
    [
        ("{folder}/*.tar", ["00000.tar", "00001.tar"], 5),
        ("{folder}/{{00000..00001}}.tar", ["00000.tar", "00001.tar"], 5),
        ("{folder}/00001.tar", ["00001.tar"], 2),
        (["{folder}/00001.tar", "{folder}/0*0.tar"], ["00001.tar", "00000.tar"], 5),
    ],
)
def test_shard_patterns(folder, names, shards, n):
    """Shards of globs, brace patterns, files and lists are in the given order."""
    patterns = [names] if isinstance(names, str) else names
    patterns = [pattern.format(folder=folder) for pattern in patterns]
    pairs = load_webdataset(patterns[0] if len(patterns) == 1 else patterns)
    assert len(pairs) == n
    assert [os.path.basename(name) for name in pairs.shards] == shards


def test_compressed_shards_are_read(tmp_path):
    shard(tmp_path / "a.tar.gz", [("1.jpg", b"one"), ("1.txt", b"a cat")])
    pairs = load_webdataset(tmp_path / "a.tar.gz")
    assert (len(pairs), list(pairs)) == (1, [(b"one", "a cat")])


def test_length_reads_only_headers(folder, monkeypatch):
    """Samples are counted once, without reading images."""
    monkeypatch.setattr(tarfile.TarFile, "extractfile", None)
    pairs = load_webdataset(folder)
    assert len(pairs) == 5
    monkeypatch.setattr(tarfile, "open", None)
    assert len(pairs.images()) == 5


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            [("k1.jpg", b"x"), ("k2.txt", b"x"), ("k2.jpg", b"x")],
            "caption_key is .* sample 'k1' of",
        ),
        (
            [("k1.jpg", b"x"), ("k1.txt", b"x"), ("k2.txt", b"x")],
            "image_key is .* sample 'k2' of",
        ),
        ([("k1.jpg", b"x"), ("k1.txt", b" \n")], r"caption of the sample 'k1' of .* is ' \\n'"),
        (
            [("k1.jpg", b"x"), ("k1.txt", b"\xff")],
            r"\.txt of the sample 'k1' .*UnicodeDecodeError",
        ),
        (
            [("k1.jpg", b"x"), ("k1.json", b"{")],
            r"\.json:caption of the sample 'k1' .*JSONDecodeE",
        ),
        ([("k1.jpg", b"x"), ("k1.json", b'{"text": "a"}')], r"sample 'k1' .*KeyError: 'caption'"),
        (
            [("k1.jpg", b"x"), ("k1.json", b'{"caption": 3}')],
            r"caption of the sample 'k1' .* is 3",
        ),
        ([("k1.jpg", b"x"), ("k1.json", b"[]")], r"sample 'k1' .*TypeError"),
        ([("k1.jpg", b"x"), ("k1.json", b"[" * 100_000)], r"sample 'k1' .*RecursionError"),
        (
            [("k1.jpg", b"x"), ("k1.txt", b"x"), ("k1.txt", b"y")],
            r"after the sample 'k1': it has two files with the suffix \.txt",
        ),
        ([("README", b"x")], "has no samples"),
        ([], "has no samples"),
    ],
)
@pytest.mark.parametrize("side", ["captions", "both"])
def test_invalid_samples_raise(tmp_path, files, message, side):
    path = shard(tmp_path / "bad.tar", files)
    pairs = load_webdataset(path)
    with pytest.raises(ValueError, match=message) as raised:
        list(pairs if side == "both" else pairs.captions())
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("n_bytes", [0, 100, 512, 700, 1024, 1536, 2048, 2560, 4096, 4200])
@pytest.mark.parametrize("side", ["pairs", "images", "captions", "length"])
def test_truncated_shards_raise(tmp_path, n_bytes, side):
    """A truncated shard raises an error, also if it ends between members."""
    files = [(f"{i}.{e}", b"x" * 600) for i in range(2) for e in ("jpg", "txt")]
    path = shard(tmp_path / "cut.tar", files)
    path.write_bytes(path.read_bytes()[:n_bytes])
    pairs = load_webdataset(path)
    read = {"pairs": pairs, "images": pairs.images(), "captions": pairs.captions()}
    with pytest.raises(ValueError, match=r"cut\.tar' (is damaged or cut short|has no)|of '.*cut"):
        len(pairs) if side == "length" else list(read[side])


def test_damaged_shards_raise(folder):
    path = folder / "00001.tar"
    content = bytearray(path.read_bytes())
    content[2048:2560] = b"\x7f" * 512
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"00001\.tar' is damaged or cut short after .*'b/4'"):
        list(load_webdataset(folder))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shards": "https://a.b/c.tar"}, ValueError, "not a local file"),
        ({"shards": "pipe:cat a.tar"}, ValueError, "not a local file"),
        ({"shards": "absent/*.tar"}, FileNotFoundError, r"Shard 'absent/\*\.tar' does not exist"),
        ({"shards": "a{0..1}.tar"}, FileNotFoundError, r"Shard 'a0\.tar' does not exist"),
        ({"shards": []}, ValueError, "shards is empty"),
        ({"shards": ".", "image_key": ";"}, ValueError, "image_key must be extensions"),
        ({"shards": ".", "caption_key": "json:a;json:b"}, ValueError, "repeats an extension"),
    ],
)
def test_invalid_arguments_raise(folder, monkeypatch, arguments, error, message):
    """Invalid arguments raise an error before shards are read."""
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=message):
        load_webdataset(**arguments)


def test_keys_are_tried_in_order(folder):
    pairs = load_webdataset(folder / "00000.tar", caption_key="json:x;txt;caption")
    with pytest.raises(ValueError, match=r"caption of the sample 'a/2' .* is 1"):
        list(pairs.captions())
    with pytest.raises(ValueError, match=r"image_key is 'jpg'.* the sample 'a/2'"):
        len(load_webdataset(folder, image_key=".JPG"))


def test_missing_webdataset_raises(folder, monkeypatch):
    """Shards cannot be written, but they can be read."""
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    assert list(load_webdataset(folder)) == list(zip(IMAGES, CAPTIONS, strict=True))
    with pytest.raises(ImportError, match=r"pip install .sklearn-ape\[distributed\]"):
        write_webdataset([], [], folder)


def test_written_shards_are_read(tmp_path, captioned_images):
    """Paths and bytes are restored bitwise identical from the given number of shards."""
    content = [Path(path).read_bytes() for path in captioned_images.images[:7]]
    images = [*captioned_images.images[:4], *content[4:]]
    shards = write_webdataset(
        images, captioned_images.captions[:7], tmp_path / "new", pairs_per_shard=3
    )
    assert [os.path.basename(name) for name in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    pairs = load_webdataset(tmp_path / "new")
    assert list(pairs) == list(zip(content, captioned_images.captions[:7], strict=True))
    with pytest.raises(FileExistsError, match=r"contains shards \(00000\.tar, "):
        write_webdataset(images[:1], ["one"], tmp_path / "new")
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        write_webdataset(images, ["one"], tmp_path / "other")
    with pytest.raises(ValueError, match="shorter"):
        write_webdataset(iter(images), iter(["one"]), tmp_path / "iterators")
    for name, other in (("text", b"text"), ("sound", b"RIFF\0\0\0\0WAVEfmt ")):
        with pytest.raises(ValueError, match=r"Image 1 .*not jpg, png or webp"):
            write_webdataset([content[0], other], ["one", "two"], tmp_path / name)
    with pytest.raises(TypeError, match=r"Caption 0 .* is not a str: 7"):
        write_webdataset(content[:1], [7], tmp_path / "third")
    with pytest.raises(ValueError, match=r"Caption 1 .* is ' '"):  # not only when it is read
        write_webdataset(content[:2], ["one", " "], tmp_path / "blank")
    with pytest.raises(TypeError, match=r"Image 0 .* of type ndarray"):
        write_webdataset([np.zeros((8, 8, 3))], ["one"], tmp_path / "fourth")
    write_webdataset([b"any"], ["one"], tmp_path / "dotted", extension=".jpg")
    assert list(load_webdataset(tmp_path / "dotted")) == [(b"any", "one")]
    with pytest.raises(ValueError, match="pairs_per_shard must be an integer >= 1"):
        write_webdataset([], [], tmp_path / "other", pairs_per_shard=0)


def test_error_leaves_no_shards(tmp_path):
    arguments = {"pairs_per_shard": 1, "extension": "jpg"}
    with pytest.raises(ValueError, match=r"Caption 2 .*is ' '"):
        write_webdataset([b"x"] * 3, ["one", "two", " "], tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []
    write_webdataset([b"x"] * 3, ["one", "two", "three"], tmp_path, **arguments)
    names = ["00000.tar", "00001.tar", "00002.tar"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_encode_to_accepts_images_or_captions(
    tmp_path, captioned_images, image_encoder, text_encoder
):
    """Features equal those of the files; errors have shard and sample."""
    n = 9
    write_webdataset(
        captioned_images.images[:n], captioned_images.captions[:n], tmp_path, pairs_per_shard=4
    )
    pairs = load_webdataset(tmp_path)
    images = image_encoder.encode_to(tmp_path / "images.npy", pairs.images(), chunk_size=4)
    np.testing.assert_array_equal(images, image_encoder.transform(captioned_images.images[:n]))
    texts = text_encoder.encode_to(tmp_path / "texts.npy", pairs.captions(), chunk_size=4)
    np.testing.assert_array_equal(texts, text_encoder.transform(captioned_images.captions[:n]))

    shard(tmp_path / "bad.tar", [("k.png", b"not an image"), ("k.txt", b"a cat")])
    pairs = load_webdataset(tmp_path)
    with pytest.raises(EncodingError, match=r"row 9: the sample 'k' of '.*bad\.tar'"):
        image_encoder.encode_to(tmp_path / "all.npy", pairs.images(), chunk_size=4)
    with open(pairs.shards[2], "rb+") as file:
        file.truncate(700)
    with pytest.raises(ValueError, match="damaged or cut short"):
        text_encoder.encode_to(tmp_path / "cut.npy", load_webdataset(tmp_path).captions())


def test_pickled_items_keep_their_sample(folder):
    item = next(iter(load_webdataset(folder).images()))
    assert pickle.loads(pickle.dumps(item)).where == item.where
    assert json.dumps(item.where)
