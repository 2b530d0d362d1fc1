"""encode_to: one file, bounded memory, and never a wrong row, whatever stops it."""

import os
import shutil
import signal
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pytest
from sklearn.base import clone

from sklearn_ape.encoders import EncodingError, TransformersTextEncoder
from sklearn_ape.features import FileLockedError, OtherContentError
from sklearn_ape.features.feature_file import FeatureFile

TEXTS = [f"{number} {animal}s" for number in range(2, 7) for animal in ("cat", "dog", "emu")]
CHUNK = 4


@pytest.fixture(scope="module")
def encoder(feature_cache):
    encoder = TransformersTextEncoder(cache=feature_cache)
    encoder.transform(TEXTS)
    return encoder


@pytest.fixture(scope="module")
def truth(encoder):
    return encoder.transform(TEXTS)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "texts.npy"


def partial(path):
    return path.with_name(f"{path.name}.partial")


def journal(path):
    return path.with_name(f"{path.name}.journal")


class Stops:
    """Items of which reading stops after a number of them."""

    def __init__(self, items, after, error=KeyboardInterrupt):
        self.items, self.after, self.error = items, after, error

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        yield from self.items[: self.after]
        raise self.error("stopped")


def stop_after(n_chunks, encoder, path, items=TEXTS, **options):
    with pytest.raises(KeyboardInterrupt):
        encoder.encode_to(path, Stops(items, n_chunks * CHUNK), chunk_size=CHUNK, **options)


@pytest.fixture
def written(monkeypatch):
    """Numbers of the chunks that are written."""
    numbers = []
    write = FeatureFile.write

    def counted(self, number, *args):
        numbers.append(number)
        write(self, number, *args)

    monkeypatch.setattr(FeatureFile, "write", counted)
    return numbers


def test_file_holds_what_transform_gives(encoder, truth, path):
    """The rows in order, in a read-only map; the partial file is gone."""
    features = encoder.encode_to(str(path), TEXTS, chunk_size=CHUNK)
    assert isinstance(features, np.memmap)
    assert not features.flags.writeable
    np.testing.assert_array_equal(features, truth)
    np.testing.assert_array_equal(np.load(path), truth)
    assert {file.name for file in path.parent.iterdir()} == {"texts.npy", "texts.npy.journal"}
    assert encoder.errors_ == {}


@pytest.mark.parametrize("size", [1, 5, len(TEXTS), 1000])
def test_any_size_of_chunk(encoder, truth, path, size):
    """One row a chunk, chunks that fit exactly, and one that is larger than all."""
    np.testing.assert_array_equal(encoder.encode_to(path, TEXTS, chunk_size=size), truth)


def test_columns(encoder, truth, path):
    """What transform takes, encode_to takes."""
    pd = pytest.importorskip("pandas")
    np.testing.assert_array_equal(encoder.encode_to(path, pd.Series(TEXTS)), truth)
    assert encoder.encode_to(path, np.array(TEXTS)).shape == truth.shape


def test_threads_write_the_same(encoder, truth, path):
    """Chunks that are finished in any order are in their places."""
    with joblib.parallel_config("threading", n_jobs=3):
        features = encoder.encode_to(path, TEXTS, chunk_size=1)
    np.testing.assert_array_equal(features, truth)
    features = clone(encoder).encode_to(path, TEXTS, chunk_size=2, n_jobs=1, overwrite=True)
    np.testing.assert_array_equal(features, truth)


# ---------------------------------------------------------------- stopped and resumed


def test_an_interrupted_run_goes_on(encoder, truth, path, written):
    """Chunks finished before are not encoded again, and the file has its name only when whole."""
    stop_after(2, encoder, path)
    assert not path.exists()
    assert written == [0, 1]
    np.testing.assert_array_equal(encoder.encode_to(path, TEXTS, chunk_size=CHUNK), truth)
    assert written == [0, 1, 2, 3]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_run_goes_on(encoder, truth, path, feature_cache):
    """After SIGKILL at the third chunk, two are there and are not encoded again."""
    code = (
        "import os, signal, sys\n"
        "from sklearn_ape.encoders import TransformersTextEncoder\n"
        "class Items(list):\n"
        "    def __iter__(self):\n"
        "        for n, item in enumerate(list.__iter__(self)):\n"
        f"            if n == {3 * CHUNK}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "            yield item\n"
        "class Stream:\n"
        "    def __init__(self, items): self.items = Items(items)\n"
        "    def __len__(self): return len(self.items)\n"
        "    def __iter__(self): return iter(self.items)\n"
        "encoder = TransformersTextEncoder(cache=sys.argv[1])\n"
        f"encoder.encode_to(sys.argv[2], Stream(sys.argv[3:]), chunk_size={CHUNK})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, feature_cache, path, *TEXTS])
    assert done.returncode == -signal.SIGKILL
    with FeatureFile(path, encoder._identity_digest().hex(), len(TEXTS), CHUNK, "float32") as file:
        file.resume()
        assert sorted(file.finished) == [0, 1, 2]
    np.testing.assert_array_equal(encoder.encode_to(path, TEXTS, chunk_size=CHUNK), truth)


@pytest.mark.parametrize("what", ["journal cut", "rows cut", "rows damaged", "journal damaged"])
def test_whatever_was_lost_the_rows_are_right(encoder, truth, path, what):
    """A torn line, or rows that a power cut lost, cost time and never truth."""
    stop_after(3, encoder, path)
    file = journal(path) if "journal" in what else partial(path)
    sound = {name: name.read_bytes() for name in (journal(path), partial(path))}
    head = sound[journal(path)].index(b"\n") + 1 if "journal" in what else 0
    rng = np.random.default_rng(0)
    for place in rng.integers(head, len(sound[file]), size=25):
        for name, content in sound.items():
            name.write_bytes(content)
        damaged = bytearray(sound[file])
        if "cut" in what:
            del damaged[place:]
        else:
            damaged[place] ^= 0x15
        file.write_bytes(damaged)
        try:
            features = encoder.encode_to(path, TEXTS, chunk_size=CHUNK)
        except FileExistsError:  # a digest of items that was damaged
            assert what == "journal damaged"
        else:
            np.testing.assert_array_equal(features, truth)
            path.unlink()


@pytest.mark.parametrize("there", ["partial", "journal", "both"])
def test_a_run_killed_at_its_start(encoder, truth, path, there):
    """Empty files, as they are there for a moment, are no reason to complain."""
    path.parent.mkdir()
    for name in (partial, journal):
        if there in (name.__name__, "both"):
            name(path).touch()
    np.testing.assert_array_equal(encoder.encode_to(path, TEXTS), truth)


def test_a_run_killed_before_the_last_step(encoder, truth, path, monkeypatch, written):
    """A partial file that is whole is given its name."""
    with monkeypatch.context() as patch:
        patch.setattr(FeatureFile, "finish", lambda self: next(iter(Stops([], 0))))
        with pytest.raises(KeyboardInterrupt):
            encoder.encode_to(path, TEXTS)
    assert not path.exists()
    written.clear()
    np.testing.assert_array_equal(encoder.encode_to(path, TEXTS), truth)
    assert written == []


# ---------------------------------------------------------------- a file that is there


def test_a_whole_file_is_only_checked(path, truth, monkeypatch):
    """The same encoder and items again: no network, no cache, no new file."""
    encoder = TransformersTextEncoder(cache=None)
    encoder.encode_to(path, TEXTS)
    before = (os.stat(path), os.stat(journal(path)))
    monkeypatch.setattr(TransformersTextEncoder, "_features_of", None)
    np.testing.assert_allclose(clone(encoder).encode_to(path, TEXTS), truth, atol=1e-5)
    assert (os.stat(path).st_mtime_ns, os.stat(path).st_ino) == (
        before[0].st_mtime_ns,
        before[0].st_ino,
    )
    assert os.stat(journal(path)).st_size == before[1].st_size


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("items", "made of other items: rows 4 to 7 differ"),
        ("encoder", "with another encoder or other parameters"),
        ("length", "with 15 rows, not 14"),
        ("chunks", r"with 4 rows per chunk \(chunk_size\), not 5"),
        ("dtype", "with float32 as dtype, not float16"),
    ],
)
def test_another_file_is_not_touched(encoder, truth, path, change, told, whole):
    """What was made otherwise is named, kept, and replaced only when asked, at the very end."""
    if whole:
        encoder.encode_to(path, TEXTS, chunk_size=CHUNK)
    else:
        stop_after(2, encoder, path)
    file = path if whole else partial(path)
    content = file.read_bytes()
    items, options, other = list(TEXTS), {"chunk_size": CHUNK}, clone(encoder)
    if change == "items":
        items[5] = "quite another text"
    elif change == "encoder":
        other.set_params(pooling="cls")
    elif change == "length":
        items.pop()
    elif change == "chunks":
        options["chunk_size"] = CHUNK + 1
    else:
        options["dtype"] = "float16"
    with pytest.raises(FileExistsError, match=told) as raised:
        other.encode_to(path, items, **options)
    assert str(file) in str(raised.value)
    assert "overwrite=True" in str(raised.value)
    assert file.read_bytes() == content
    if whole:
        with pytest.raises(KeyboardInterrupt):
            other.encode_to(path, Stops(items, 8), overwrite=True, **options)
        assert path.read_bytes() == content
    features = other.encode_to(path, items, overwrite=True, **options)
    expected = other.transform(items).astype(options.get("dtype", "float32"))
    np.testing.assert_array_equal(features, expected)


@pytest.mark.parametrize("journal_of_another", [True, False])
def test_a_file_of_other_origin_is_not_touched(encoder, truth, path, journal_of_another):
    """An array that encode_to did not write is not taken for features, nor replaced."""
    if journal_of_another:
        encoder.encode_to(path, TEXTS)
    path.parent.mkdir(exist_ok=True)
    np.save(path, truth[::-1])
    with pytest.raises(OtherContentError, match=r"overwrite=True"):
        encoder.encode_to(path, TEXTS)
    np.testing.assert_array_equal(np.load(path), truth[::-1])
    np.testing.assert_array_equal(encoder.encode_to(path, TEXTS, overwrite=True), truth)


def test_two_writers_of_one_file(encoder, path):
    """The second is told, and does no harm."""
    pytest.importorskip("fcntl")
    with FeatureFile(path, encoder._identity_digest().hex(), len(TEXTS), CHUNK, "float32") as file:
        file.write(0, np.zeros((CHUNK, 384), np.float32), "digest", {})
        with pytest.raises(FileLockedError, match="is being written by another process"):
            encoder.encode_to(path, TEXTS, chunk_size=CHUNK)


# ---------------------------------------------------------------- bad items, bad numbers


@pytest.fixture
def bad_images(captioned_images, tmp_path):
    cut = tmp_path / "cut.png"
    with open(captioned_images.images[0], "rb") as file:
        cut.write_bytes(file.read()[:300])
    return [
        *captioned_images.images[:5],
        str(cut),
        captioned_images.images[5],
        "absent.png",
        *captioned_images.images[6:9],
    ]


def test_bad_images_become_nan(image_encoder, bad_images, path):
    """Rows of NaN, named by their rows in X, also when the run was stopped in between."""
    encoder = clone(image_encoder).set_params(on_error="nan")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stop_after(2, encoder, path, bad_images)
    with pytest.warns(UserWarning, match="row 5: .*cut.png") as told:
        features = encoder.encode_to(path, bad_images, chunk_size=CHUNK)
    assert len(told) == 1
    assert list(encoder.errors_) == [5, 7]
    assert np.flatnonzero(np.isnan(features).any(axis=1)).tolist() == [5, 7]
    good = [row for row in range(len(bad_images)) if row not in (5, 7)]
    np.testing.assert_array_equal(
        features[good], image_encoder.transform([bad_images[row] for row in good])
    )
    with pytest.raises(EncodingError, match=r"row 7: 'absent\.png'"):
        image_encoder.encode_to(path, bad_images, chunk_size=CHUNK)


def test_bad_images_stop_the_work(image_encoder, bad_images, path, written):
    """The error names rows of X, and the chunks before are kept."""
    with pytest.raises(EncodingError, match=r"row 7: 'absent\.png'") as raised:
        image_encoder.encode_to(path, bad_images, chunk_size=CHUNK)
    assert min(raised.value.errors) >= 5
    assert written == [0]


def test_float16(encoder, truth, path, monkeypatch):
    """Half the size; numbers that float16 cannot hold are an error, not infinities."""
    features = encoder.encode_to(path, TEXTS, dtype="float16", chunk_size=CHUNK)
    assert features.dtype == np.float16
    np.testing.assert_array_equal(features, truth.astype(np.float16))
    quiet = TransformersTextEncoder.transform
    loud = lambda self, X: quiet(self, X) * np.float32(1e6)  # noqa: E731
    monkeypatch.setattr(TransformersTextEncoder, "transform", loud)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="row 0 are beyond the range of float16"):
            encoder.encode_to(path.with_name("loud.npy"), TEXTS, dtype="float16")


@pytest.mark.parametrize(
    ("X", "options", "told"),
    [
        (TEXTS, {"dtype": "int8"}, "dtype must be float32 or float16"),
        (TEXTS, {"chunk_size": 0}, "chunk_size must be an integer >= 1"),
        (TEXTS, {"chunk_size": 2.5}, "chunk_size must be an integer >= 1"),
        ("one text", {}, "single text"),
        ((text for text in TEXTS), {}, "must be a sequence"),
        ([], {}, "X is empty"),
        (Stops([], 0), {}, "X is empty"),
        (Stops(TEXTS, 6, ValueError), {}, "stopped"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else None,
)
def test_wrong_arguments(encoder, path, X, options, told):
    """Each is named before anything is written."""
    with pytest.raises(ValueError, match=told):
        encoder.encode_to(path, X, **options)
    assert not path.exists()


@pytest.mark.parametrize(("n", "told"), [(20, "has 20 items, and has 15"), (14, "and has more")])
def test_a_stream_of_another_length_than_it_says(encoder, path, n, told):
    """Rows that are not there, or too many, are no features."""

    class Liar(Stops):
        def __len__(self):
            return n

        def __iter__(self):
            return iter(self.items)

    with pytest.raises(ValueError, match=told):
        encoder.encode_to(path, Liar(TEXTS, 0), chunk_size=CHUNK)
    assert not path.exists()


def test_full_disk(encoder, tmp_path):
    """The error says how much is kept; with room made, the next run goes on from there."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("no file system can be mounted here")
    texts = TEXTS * 8
    try:
        path = disk / "texts.npy"
        with pytest.raises(
            OSError, match=r"No space left on device. \d+ of 30 chunks are finished"
        ):
            encoder.encode_to(path, texts, chunk_size=CHUNK)
        subprocess.run([mount, "-o", "remount,size=1m", disk], check=True)
        features = encoder.encode_to(path, texts, chunk_size=CHUNK)
        np.testing.assert_array_equal(features, encoder.transform(texts))
        del features
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
