"""Captioned images out of a visitor's zip, however they were put together."""

import pytest

from sklearn_ape.app import Limits
from sklearn_ape.app._limits import UserError
from sklearn_ape.app._uploads import CAPTIONED, captioned, unpack


@pytest.fixture
def read(make_zip, tmp_path):
    """Return the captions by file name of a zip of these contents."""

    def read(contents, limits=None):
        limits = limits or Limits()
        folder = tmp_path / "unpacked"
        folder.mkdir()
        unpack(make_zip(contents), folder, CAPTIONED, limits)
        data = captioned(folder, limits)
        names = [image.rsplit("/", 1)[1] for image in data.images]
        return dict(zip(names, data.captions, strict=True))

    return read


class TestSources:
    def test_text_files_beside_the_images(self, read):
        contents = {"a.png": b"", "a.txt": "a cat\nan animal\n", "b.png": b"", "b.txt": "a dog"}
        assert read(contents) == {"a.png": ["a cat", "an animal"], "b.png": ["a dog"]}

    def test_a_folder_that_was_packed_as_a_whole(self, read):
        contents = {"my set/a.png": b"", "my set/captions.csv": "file_name,caption\na.png,a cat\n"}
        assert read(contents) == {"a.png": "a cat"}

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
    def test_a_table_of_any_name(self, read, name, content):
        contents = {"a.png": b"", "sub/b.png": b"", "sub/c.png": b"", name: content}
        assert read(contents) == {"a.png": ["a cat"], "b.png": ["a dog"]}

    def test_the_names_of_the_files(self, read):
        contents = {"red_apple-01.png": b"", "GreenPear.jpg": b""}
        assert read(contents) == {"red_apple-01.png": "red apple", "GreenPear.jpg": "Green Pear"}


class TestRefusals:
    @pytest.mark.parametrize(
        ("contents", "why"),
        [
            ({"a.txt": "a cat"}, "no images"),
            ({"a.png": b"", "a.txt": "a cat", "b.png": b""}, "no text file"),
            ({"a.png": b"", "a.txt": " \n"}, "is empty"),
            ({"a.png": b"", "a.txt": b"\xff\xfe\xff"}, "not UTF-8"),
            ({"1.png": b"", "2.png": b""}, "names with words"),
            ({"a.png": b"", "x.csv": "", "y.csv": ""}, "several tables"),
            ({"a.png": b"", "x.csv": "who,what\n1,2\n"}, "no column"),
            ({"a.png": b"", "x.csv": "image,caption\n"}, "no rows"),
            ({"a.png": b"", "x.csv": "image,caption\nb.png,a cat\n"}, "not in the zip"),
            ({"a.png": b"", "x.csv": "image,caption\na.png,\n"}, "no caption"),
            ({"a.png": b"", "x.jsonl": "[" * 100_000}, ""),
            ({"a.png": b"", "a.txt": "x" * 501}, "501 characters"),
        ],
    )
    def test_say_what_is_wrong_and_no_path_of_the_server(self, read, tmp_path, contents, why):
        with pytest.raises(UserError) as caught:
            read(contents)
        assert why in str(caught.value)
        assert str(tmp_path) not in str(caught.value)

    @pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "a.png/../../b.png"])
    def test_a_table_cannot_name_files_outside_the_zip(self, read, name):
        contents = {"a.png": b"", "x.csv": f"image,caption\na.png,a cat\n{name},a secret\n"}
        with pytest.raises(UserError, match="not in the zip"):
            read(contents)

    def test_too_many_images(self, read):
        contents = {f"cat{i}x.png": b"" for i in range(5)}
        with pytest.raises(UserError, match="the limit is 4"):
            read(contents, Limits(images=4))

    def test_too_many_captions(self, read):
        contents = {"a.png": b"", "a.txt": "\n".join(f"cat {i}" for i in range(100))}
        with pytest.raises(UserError, match="100 captions"):
            read(contents, Limits(images=10))

    def test_captions_that_would_fill_the_memory(self, read):
        with pytest.raises(UserError, match="more than 16 MiB"):
            read({"a.png": b"", **{f"{i}.txt": b"x" * 1_000_000 for i in range(20)}})
