"""Uploaded zip files of images, with and without captions."""

import os
import stat
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest

from sklearn_ape.app import Limits
from sklearn_ape.app._limits import UserError
from sklearn_ape.app._uploads import (
    CAPTIONED_SUFFIXES,
    PageFolders,
    load_captioned_images,
    unpack,
)

SUFFIXES = frozenset((".png", ".txt"))


def written(folder):
    return sorted(
        os.path.relpath(os.path.join(top, name), folder)
        for top, _, names in os.walk(folder)
        for name in names
    )


@pytest.fixture
def folder(tmp_path):
    """Folder for the unpacked files, within folders that must stay empty."""
    path = tmp_path / "around" / "in" / "here"
    path.mkdir(parents=True)
    return path


def refused(archive, folder, limits=None):
    """Return the error message for a zip, after checking that nothing was written."""
    with pytest.raises(UserError) as caught:
        unpack(archive, folder, SUFFIXES, limits or Limits())
    around = folder.parents[1]
    assert written(around) == []
    assert str(around) not in str(caught.value)
    return str(caught.value)


def entry(name, mode=0):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


class TestValidZips:
    def test_only_files_with_suffixes_are_written(self, make_zip, folder):
        archive = make_zip(
            {
                "a/cat.png": b"image",
                "a/cat.txt": "a cat",
                "a/run.exe": b"MZ",
                "inner.zip": b"PK",
                ".hidden.png": b"x",
                "__MACOSX/a/._cat.png": b"x",
            }
        )
        unpack(archive, folder, SUFFIXES, Limits())
        assert written(folder) == ["a/cat.png", "a/cat.txt"]
        assert (folder / "a" / "cat.txt").read_text() == "a cat"

    def test_names_in_any_script_are_written(self, make_zip, folder):
        names = {"圖/狐狸 1.PNG": b"x", "צב.png": b"y", "🐢.txt": "z"}
        unpack(make_zip(names), folder, SUFFIXES, Limits())
        assert written(folder) == sorted(names)

    def test_repetitive_captions_are_not_rejected(self, make_zip, folder):
        unpack(make_zip({"all.txt": "a cat\n" * 50_000}), folder, SUFFIXES, Limits())
        assert (folder / "all.txt").stat().st_size == 300_000


class TestNamesOutsideFolder:
    @pytest.mark.parametrize(
        "name",
        [
            "../out.png",
            "a/../../out.png",
            "/etc/out.png",
            "//server/out.png",
            "C:/out.png",
            "C:\\out.png",
            "..\\out.png",
            "a\\..\\..\\out.png",
            "\\\\server\\share\\out.png",
            "..",
            "a.png:stream.png",
        ],
    )
    def test_names_outside_folder_raise_before_writing(self, make_zip, folder, name):
        archive = make_zip({"good.png": b"x", name: b"x", "later.png": b"x"})
        assert "leads out of its folder" in refused(archive, folder)

    def test_too_long_names_raise(self, make_zip, folder):
        assert "too long" in refused(make_zip({f"{'x' * 250}.png": b"x"}), folder)
        assert "too long" in refused(make_zip({f"{'d/' * 20}x.png": b"x"}), folder)


class TestLinksAndDevices:
    @pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
    def test_links_and_devices_raise(self, tmp_path, folder, kind):
        archive = tmp_path / "links.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(entry("good.png", stat.S_IFREG | 0o644), b"x")
            file.writestr(entry("link.png", kind | 0o777), b"/etc/passwd")
        why = refused(archive, folder)
        assert "link.png" in why
        assert ("a link" in why) == (kind == stat.S_IFLNK)

    def test_file_in_linked_folder_raises(self, tmp_path, folder):
        archive = tmp_path / "links.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(entry("out", stat.S_IFLNK | 0o777), b"/tmp")
            file.writestr(entry("out/x.png"), b"x")
        assert "a link" in refused(archive, folder)

    def test_duplicate_names_raise_in_any_case(self, tmp_path, folder):
        archive = tmp_path / "twice.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("a.png", b"x")
            file.writestr("A.PNG", b"y")
        assert "twice" in refused(archive, folder)


class TestSizeLimits:
    def test_high_compression_ratio_raises(self, make_zip, folder):
        assert "zip bomb" in refused(make_zip({"x.png": bytes(20 * 2**20)}), folder)

    def test_too_large_total_size_raises(self, make_zip, folder):
        archive = make_zip({f"{i}.png": os.urandom(2**16) for i in range(20)})
        assert "more than 1 MiB" in refused(archive, folder, Limits(unpacked_bytes=2**20))

    def test_too_many_entries_raise(self, make_zip, folder):
        archive = make_zip({f"{i}.png": b"" for i in range(10_000)})
        assert "the limit is 4,000 files" in refused(archive, folder)

    def test_too_large_directory_is_not_read(self, make_zip, folder):
        archive = make_zip({f"{'x' * 150}{i}.png": b"" for i in range(10_000)})
        assert "too many entries" in refused(archive, folder, Limits(files=10))

    def test_too_large_upload_raises(self, make_zip, folder):
        archive = make_zip({"x.png": os.urandom(2**17)})
        assert "the limit is 64 KiB" in refused(archive, folder, Limits(upload_bytes=2**16))

    def test_wrong_declared_size_raises(self, make_zip, folder):
        archive = make_zip({"x.png": bytes(3 * 2**20)})
        content = bytearray(archive.read_bytes())
        for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
            place = content.find(signature) + at
            content[place : place + 4] = struct.pack("<I", 100)
        archive.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            unpack(archive, folder, SUFFIXES, Limits())
        assert all((folder / name).stat().st_size <= 100 for name in written(folder))


class TestDamagedZips:
    @pytest.mark.parametrize("content", [b"", b"PK", b"not a zip" * 100, b"\x89PNG\r\n\x1a\n"])
    def test_file_that_is_not_a_zip_raises(self, tmp_path, folder, content):
        archive = tmp_path / "no.zip"
        archive.write_bytes(content)
        assert "not a zip" in refused(archive, folder)

    def test_truncated_zip_raises(self, make_zip, tmp_path):
        whole = make_zip({"a.png": os.urandom(500), "b.txt": "a caption"}).read_bytes()
        for length in range(0, len(whole), 7):
            cut = tmp_path / "cut.zip"
            cut.write_bytes(whole[:length])
            target = tmp_path / f"cut-{length}"
            target.mkdir()
            with pytest.raises(UserError):
                unpack(cut, target, SUFFIXES, Limits())

    def test_changed_bytes_write_nothing_outside_folder(self, make_zip, tmp_path):
        whole = make_zip({"a.png": b"image" * 20, "b.txt": "a caption"}).read_bytes()
        target = tmp_path / "changed"
        for place in range(len(whole)):
            content = bytearray(whole)
            content[place] ^= 0xFF
            archive = tmp_path / "changed.zip"
            archive.write_bytes(content)
            inside = target / str(place)
            inside.mkdir(parents=True)
            try:
                unpack(archive, inside, SUFFIXES, Limits())
            except UserError:
                continue
        assert not set(os.listdir(tmp_path)) - {"changed", "changed.zip", "images.zip"}

    def test_password_raises(self, make_zip, folder):
        archive = make_zip({"x.png": b"x"})
        content = bytearray(archive.read_bytes())
        for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.find(signature) + at] |= 1
        archive.write_bytes(content)
        assert "password" in refused(archive, folder)

    def test_unusual_compression_raises(self, tmp_path, folder):
        archive = tmp_path / "lzma.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as file:
            file.writestr("x.png", b"x" * 100)
        assert "unusual compression" in refused(archive, folder)


@pytest.fixture
def read(make_zip, tmp_path):
    """Return a function that reads the captions of a zip, by file name."""

    def read(contents, limits=None):
        limits = limits or Limits()
        folder = tmp_path / "unpacked"
        folder.mkdir()
        unpack(make_zip(contents), folder, CAPTIONED_SUFFIXES, limits)
        data = load_captioned_images(folder, limits)
        names = [image.rsplit("/", 1)[1] for image in data.images]
        return dict(zip(names, data.captions, strict=True))

    return read


class TestSources:
    def test_captions_from_text_files(self, read):
        contents = {"a.png": b"", "a.txt": "a cat\nan animal\n", "b.png": b"", "b.txt": "a dog"}
        assert read(contents) == {"a.png": ["a cat", "an animal"], "b.png": ["a dog"]}

    def test_captions_from_packed_folder(self, read):
        contents = {"my set/a.png": b"", "my set/captions.csv": "file_name,caption\na.png,a cat\n"}
        assert read(contents) == {"a.png": ["a cat"]}

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("pairs.csv", "image,text\na.png,a cat\nsub/b.png,a dog\n"),
            ("pairs.tsv", "filename\ttitle\na.png\ta cat\nsub/b.png\ta dog\n"),
            (
                "pairs.jsonl",
                '{"image": "a.png", "caption": "a cat"}\n'
                '{"image": "./sub/b.png", "caption": "a dog"}',
            ),
        ],
    )
    def test_captions_from_table(self, read, name, content):
        contents = {"a.png": b"", "sub/b.png": b"", "sub/c.png": b"", name: content}
        assert read(contents) == {"a.png": ["a cat"], "b.png": ["a dog"]}

    def test_preferred_table_of_some_images(self, read):
        table = "file_name,caption\na.png,a cat\n"
        contents = {"a.png": b"", "b.png": b"", "captions.csv": table, "sizes.csv": "width\n1\n"}
        assert read(contents) == {"a.png": ["a cat"]}

    def test_few_text_files_are_not_captions(self, read):
        contents = {f"{'c' * (i + 1)}at.png": b"" for i in range(11)} | {"cat.txt": "taken in May"}
        captions = read(contents)
        assert len(captions) == 11
        assert captions["cat.png"] == "cat"

    def test_captions_from_file_names(self, read):
        contents = {"red_apple-01.png": b"", "GreenPear.jpg": b""}
        assert read(contents) == {"red_apple-01.png": "red apple", "GreenPear.jpg": "Green Pear"}


class TestErrors:
    @pytest.mark.parametrize(
        ("contents", "why"),
        [
            ({"a.txt": "a cat"}, "no images"),
            ({"a.png": b"", "a.txt": "a cat", "b.png": b""}, "no text file"),
            ({"a.png": b"", "a.txt": " \n"}, "is empty"),
            ({"a.png": b"", "a.txt": b"\xff\xfe\xff"}, "not UTF-8"),
            ({"1.png": b"", "2.png": b""}, "contain no words"),
            ({"IMG_1.png": b"", "IMG_2.png": b""}, "names of all images are 'IMG'"),
            ({"a.png": b"", "x.csv": "", "y.csv": ""}, "several tables"),
            ({"a.png": b"", "x.csv": "who,what\n1,2\n"}, "no column"),
            ({"a.png": b"", "x.csv": "image,caption\n"}, "no rows"),
            ({"a.png": b"", "captions.csv": ""}, "no rows"),
            ({"a.png": b"", "metadata.csv": "who,what\n1,2\n"}, "no column"),
            ({"b/a.png": b"", "x.csv": "image,caption\na.png,a cat\n"}, "such as 'b/a.png'"),
            ({f"{i}.png": b"" for i in range(2)} | {"0.txt": "0 0.5", "1.txt": "1"}, "no words"),
            ({"a.png": b"", "a.txt": "a cat", "b.png": b"", "b.txt": "a cat"}, "All images have"),
            ({"a.png": b"", "x.csv": "image,caption\nb.png,a cat\n"}, "not in the zip"),
            ({"a.png": b"", "x.csv": "image,caption\na.png,\n"}, "no caption"),
            ({"a.png": b"", "x.jsonl": "[" * 100_000}, ""),
            ({"a.png": b"", "a.txt": "x" * 501}, "501 characters"),
        ],
    )
    def test_errors_contain_reason_without_server_path(self, read, tmp_path, contents, why):
        with pytest.raises(UserError) as caught:
            read(contents)
        assert why in str(caught.value)
        assert str(tmp_path) not in str(caught.value)

    @pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "a.png/../../b.png"])
    def test_table_with_files_outside_zip_raises(self, read, name):
        contents = {"a.png": b"", "x.csv": f"image,caption\na.png,a cat\n{name},a secret\n"}
        with pytest.raises(UserError, match="not in the zip"):
            read(contents)

    def test_table_does_not_reveal_files_outside_zip(self, read, tmp_path):
        """A hint to a file whose name differs in case would tell a visitor that it exists."""
        (tmp_path / "secret.txt").write_text("a secret")
        contents = {"a.png": b"", "captions.csv": "file_name,caption\na.png,a\n../secret.TXT,b\n"}
        with pytest.raises(UserError, match="not in the zip") as caught:
            read(contents)
        assert "exists" not in str(caught.value)

    def test_too_many_images_raise(self, read):
        contents = {f"cat{i}x.png": b"" for i in range(5)}
        with pytest.raises(UserError, match="the limit is 4"):
            read(contents, Limits(images=4))

    def test_too_many_captions_raise(self, read):
        contents = {"a.png": b"", "a.txt": "\n".join(f"cat {i}" for i in range(100))}
        with pytest.raises(UserError, match="100 captions"):
            read(contents, Limits(images=10))

    def test_too_large_captions_raise(self, read):
        with pytest.raises(UserError, match="more than 16 MiB"):
            read({"a.png": b"", **{f"{i}.txt": b"x" * 1_000_000 for i in range(20)}})


class TestPageFolders:
    @pytest.mark.parametrize("former", [None, "former"])
    def test_folders_share_a_parent_until_the_last_is_removed(self, former, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        if former is None:
            monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
        else:
            monkeypatch.setenv("GRADIO_TEMP_DIR", former)
        folders = PageFolders()
        for _ in range(2):  # the folders can be used again after the last was removed
            paths = [folders.create() for _ in range(3)]
            (shared,) = map(str, tmp_path.iterdir())
            for path in paths:
                assert os.environ["GRADIO_TEMP_DIR"] == shared == os.path.dirname(path)
                assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
                Path(path, "upload").touch()
            assert len(set(paths)) == 3
            for path in (paths[1], paths[0], paths[2]):
                folders.remove(path)
                assert not os.path.exists(path)
                assert os.path.exists(shared) == (path != paths[2])
            assert os.environ.get("GRADIO_TEMP_DIR") == former
