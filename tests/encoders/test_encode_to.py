"""encode_to: content of the file, resumed runs and errors."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings

import joblib
import numpy as np
import pytest
from sklearn.base import clone

from sklearn_ape.encoders import (
    EncodingError,
    OpenCLIPTextEncoder,
    TransformersTextEncoder,
    base,
)
from sklearn_ape.features import FileLockedError, OtherContentError
from sklearn_ape.features.feature_file import FeatureFile
from tests.encoders.test_open_clip import save_model

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


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder)
    return folder


def partial(path):
    return path.with_name(f"{path.name}.partial")


def journal(path):
    return path.with_name(f"{path.name}.journal")


class Stops:
    """Sequence that raises KeyboardInterrupt after a number of items."""

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
    """Return a list to which the indices of written chunks are appended."""
    numbers = []
    write = FeatureFile.write

    def counted(self, number, *args):
        numbers.append(number)
        write(self, number, *args)

    monkeypatch.setattr(FeatureFile, "write", counted)
    return numbers


def test_file_equals_transform(encoder, truth, path):
    """The memory map is read-only, and the partial file is removed."""
    features = encoder.encode_to(str(path), TEXTS, chunk_size=CHUNK)
    assert isinstance(features, np.memmap)
    assert not features.flags.writeable
    np.testing.assert_array_equal(features, truth)
    np.testing.assert_array_equal(np.load(path), truth)
    assert {file.name for file in path.parent.iterdir()} == {"texts.npy", "texts.npy.journal"}
    assert encoder.errors_ == {}


@pytest.mark.parametrize("size", [1, 5, len(TEXTS), 1000])
def test_chunk_size_does_not_change_file(encoder, truth, path, size):
    """One row per chunk, chunks that divide X, and one chunk larger than X."""
    np.testing.assert_array_equal(encoder.encode_to(path, TEXTS, chunk_size=size), truth)


def test_columns_of_tables_are_accepted(encoder, truth, path):
    """encode_to accepts the columns that transform accepts."""
    pd = pytest.importorskip("pandas")
    np.testing.assert_array_equal(encoder.encode_to(path, pd.Series(TEXTS)), truth)
    assert encoder.encode_to(path, np.array(TEXTS)).shape == truth.shape


def test_threads_write_identical_file(encoder, truth, path):
    """The file does not depend on the order in which chunks finish."""
    with joblib.parallel_config("threading", n_jobs=3):
        features = encoder.encode_to(path, TEXTS, chunk_size=1)
    np.testing.assert_array_equal(features, truth)
    features = clone(encoder).encode_to(path, TEXTS, chunk_size=2, n_jobs=1, overwrite=True)
    np.testing.assert_array_equal(features, truth)


# ---------------------------------------------------------------- resumed runs


def test_interrupted_run_resumes(encoder, truth, path, written):
    """Finished chunks are not encoded again; the file is renamed when it is complete."""
    stop_after(2, encoder, path)
    assert not path.exists()
    assert written == [0, 1]
    np.testing.assert_array_equal(encoder.encode_to(path, TEXTS, chunk_size=CHUNK), truth)
    assert written == [0, 1, 2, 3]


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_encode_to_resumes(encoder, truth, path, feature_cache):
    """Two chunks before SIGKILL are kept and not encoded again."""
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
    with FeatureFile(path, encoder._digest_identity().hex(), len(TEXTS), CHUNK, "float32") as file:
        file.resume()
        assert sorted(file.finished) == [0, 1, 2]
    np.testing.assert_array_equal(encoder.encode_to(path, TEXTS, chunk_size=CHUNK), truth)


@pytest.mark.parametrize("what", ["journal cut", "rows cut", "rows damaged", "journal damaged"])
def test_damaged_partial_file_is_repaired(encoder, truth, path, what):
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
        except FileExistsError:  # the damaged line is the digest of the items
            assert what == "journal damaged"
        else:
            np.testing.assert_array_equal(features, truth)
            path.unlink()


@pytest.mark.parametrize("there", ["partial", "journal", "both"])
def test_empty_partial_files_are_resumed(encoder, truth, path, there):
    """Empty partial files of a run killed at its start are accepted."""
    path.parent.mkdir()
    for name in (partial, journal):
        if there in (name.__name__, "both"):
            name(path).touch()
    np.testing.assert_array_equal(encoder.encode_to(path, TEXTS), truth)


def test_complete_partial_file_is_renamed(encoder, truth, path, monkeypatch, written):
    with monkeypatch.context() as patch:
        patch.setattr(FeatureFile, "finish", lambda self: next(iter(Stops([], 0))))
        with pytest.raises(KeyboardInterrupt):
            encoder.encode_to(path, TEXTS)
    assert not path.exists()
    written.clear()
    np.testing.assert_array_equal(encoder.encode_to(path, TEXTS), truth)
    assert written == []


# ---------------------------------------------------------------- existing files


def test_complete_file_is_only_checked(path, truth, monkeypatch):
    """A second run computes nothing and does not change the file."""
    encoder = TransformersTextEncoder(cache=None)
    encoder.encode_to(path, TEXTS)
    before = (os.stat(path), os.stat(journal(path)))
    monkeypatch.setattr("sklearn_ape.encoders._encoding.compute_features", None)
    np.testing.assert_allclose(clone(encoder).encode_to(path, TEXTS), truth, atol=1e-5)
    assert (os.stat(path).st_mtime_ns, os.stat(path).st_ino) == (
        before[0].st_mtime_ns,
        before[0].st_ino,
    )
    assert os.stat(journal(path)).st_size == before[1].st_size


@pytest.mark.parametrize("is_complete", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("items", "made of other items: rows 4 to 7 differ"),
        ("encoder", "with another encoder or other parameters"),
        ("length", "with 15 rows, not 14"),
        ("chunks", r"with 4 rows per chunk \(chunk_size\), not 5"),
        ("dtype", "with float32 as dtype, not float16"),
    ],
)
def test_file_of_other_content_is_kept(encoder, truth, path, change, message, is_complete):
    """A file of other content is kept unless overwrite=True, and then replaced at the end."""
    if is_complete:
        encoder.encode_to(path, TEXTS, chunk_size=CHUNK)
    else:
        stop_after(2, encoder, path)
    file = path if is_complete else partial(path)
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
    with pytest.raises(FileExistsError, match=message) as raised:
        other.encode_to(path, items, **options)
    assert str(file) in str(raised.value)
    assert "overwrite=True" in str(raised.value)
    assert file.read_bytes() == content
    if is_complete:
        with pytest.raises(KeyboardInterrupt):
            other.encode_to(path, Stops(items, 8), overwrite=True, **options)
        assert path.read_bytes() == content
    features = other.encode_to(path, items, overwrite=True, **options)
    expected = other.transform(items).astype(options.get("dtype", "float32"))
    np.testing.assert_array_equal(features, expected)


@pytest.mark.parametrize("journal_of_another", [True, False])
def test_foreign_file_is_kept(encoder, truth, path, journal_of_another):
    """A file that encode_to did not write is neither used nor replaced."""
    if journal_of_another:
        encoder.encode_to(path, TEXTS)
    path.parent.mkdir(exist_ok=True)
    np.save(path, truth[::-1])
    with pytest.raises(OtherContentError, match=r"overwrite=True"):
        encoder.encode_to(path, TEXTS)
    np.testing.assert_array_equal(np.load(path), truth[::-1])
    np.testing.assert_array_equal(encoder.encode_to(path, TEXTS, overwrite=True), truth)


def test_folder_raises_before_anything_is_encoded(encoder, tmp_path):
    """All items were encoded before the file could not be renamed."""
    folder = tmp_path / "folder.npy"
    folder.mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.npy' is a folder"):
        encoder.encode_to(folder, TEXTS, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.npy"]


def test_second_writer_raises(encoder, path):
    """The second writer raises an error and does not change the file."""
    pytest.importorskip("fcntl")
    with FeatureFile(path, encoder._digest_identity().hex(), len(TEXTS), CHUNK, "float32") as file:
        file.write(0, np.zeros((CHUNK, 384), np.float32), "digest", {})
        with pytest.raises(FileLockedError, match=r"npy\.partial' is being written by another"):
            encoder.encode_to(path, TEXTS, chunk_size=CHUNK)


# ---------------------------------------------------------------- invalid input


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


def test_invalid_images_become_nan(image_encoder, bad_images, path):
    """Invalid rows are NaN and in errors_, also after an interrupted run."""
    encoder = clone(image_encoder).set_params(on_error="nan")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stop_after(2, encoder, path, bad_images)
    with pytest.warns(UserWarning, match="row 5: .*cut.png") as record:
        features = encoder.encode_to(path, bad_images, chunk_size=CHUNK)
    assert len(record) == 1
    assert list(encoder.errors_) == [5, 7]
    assert np.flatnonzero(np.isnan(features).any(axis=1)).tolist() == [5, 7]
    good = [row for row in range(len(bad_images)) if row not in (5, 7)]
    np.testing.assert_array_equal(
        features[good], image_encoder.transform([bad_images[row] for row in good])
    )
    with pytest.raises(EncodingError, match=r"row 7: 'absent\.png'"):
        image_encoder.encode_to(path, bad_images, chunk_size=CHUNK)


def test_invalid_images_raise_after_finished_chunks(image_encoder, bad_images, path, written):
    """The error has rows of X, and finished chunks are kept."""
    with pytest.raises(EncodingError, match=r"row 7: 'absent\.png'") as raised:
        image_encoder.encode_to(path, bad_images, chunk_size=CHUNK)
    assert min(raised.value.errors) >= 5
    assert written == [0]


def test_float16_halves_size_and_raises_on_overflow(encoder, truth, path, monkeypatch):
    """The file has half the size; features beyond float16 raise an error."""
    features = encoder.encode_to(path, TEXTS, dtype="float16", chunk_size=CHUNK)
    assert features.dtype == np.float16
    np.testing.assert_array_equal(features, truth.astype(np.float16))

    def encode_large(encoder, items):
        return np.full((len(items), 384), 1e6, dtype=np.float32), {}

    monkeypatch.setattr("sklearn_ape.encoders._encoding.encode", encode_large)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="row 0 are beyond the range of float16"):
            encoder.encode_to(path.with_name("large.npy"), TEXTS, dtype="float16")


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        (TEXTS, {"dtype": "int8"}, "dtype must be one of float32, float16"),
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
def test_invalid_arguments_raise(encoder, path, X, options, message):
    """Invalid arguments raise an error before anything is written."""
    with pytest.raises(ValueError, match=message):
        encoder.encode_to(path, X, **options)
    assert not path.exists()


@pytest.mark.parametrize(
    ("n", "message"),
    [(20, "X has 15 items, but len.X. is 20"), (14, "X has more items than len.X., which is 14")],
)
def test_stream_of_wrong_length_raises(encoder, path, n, message):
    class WrongLength(Stops):
        def __len__(self):
            return n

        def __iter__(self):
            return iter(self.items)

    with pytest.raises(ValueError, match=message):
        encoder.encode_to(path, WrongLength(TEXTS, 0), chunk_size=CHUNK)
    assert not path.exists()


def test_full_disk_raises_and_resumes(encoder, tmp_path):
    """The error has the number of kept chunks, and the next run resumes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    process = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True
    )
    if not process or process.returncode:
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


def test_model_that_is_replaced_during_the_run_raises(model_folder, path):
    """A file never mixes features of different weights, also in chunks of a cluster's workers."""

    class Replaces(Stops):
        def __iter__(self):
            for number, text in enumerate(self.items):
                if number == self.after:
                    save_model(model_folder, seed=1)
                yield text

    encoder = OpenCLIPTextEncoder(str(model_folder), cache=None)
    with pytest.raises(ValueError, match=r"has other weights.* for chunk 2 than"):
        encoder.encode_to(path, Replaces(TEXTS, 2 * CHUNK), chunk_size=CHUNK)
    with pytest.raises(OtherContentError, match="another encoder"):
        encoder.encode_to(path, TEXTS, chunk_size=CHUNK)


def test_workers_use_the_precision_of_the_caller(model_folder, path, monkeypatch):
    """dtype="auto" may mean another precision on other processors, here in other threads."""

    def choose_dtype(engine, device):
        is_caller = threading.current_thread() is threading.main_thread()
        return "bfloat16" if is_caller else "float32"

    monkeypatch.setattr(base, "choose_dtype", choose_dtype)
    encoder = OpenCLIPTextEncoder(str(model_folder), cache=None, engine="torch", dtype="auto")
    expected = encoder.transform(TEXTS)
    assert (expected != clone(encoder).set_params(dtype="float32").transform(TEXTS)).any()
    with joblib.parallel_config("threading", n_jobs=2):
        features = encoder.encode_to(path, TEXTS, chunk_size=len(TEXTS))
    np.testing.assert_array_equal(features, expected)
