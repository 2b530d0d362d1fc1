"""load_noto_emoji: images of a font, names of emoji and errors."""

import os
from pathlib import Path

import pytest
from PIL import Image

from sklearn_ape.datasets import _emoji as module
from sklearn_ape.datasets import load_noto_emoji, load_openmoji

installed = pytest.mark.skipif(
    not Path(module._FONT).is_file(),
    reason="the Debian package fonts-noto-color-emoji is not installed",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def noto(home, monkeypatch):
    """Return some emoji of the installed font, because drawing all takes seconds."""
    read_names = module._read_names

    def read_some_names(purpose):
        names, qualified = read_names(purpose)
        wanted = ("red apple", "flag of France", *list(names.values())[::100])
        return names, {key: text for key, text in qualified.items() if names[key] in wanted}

    monkeypatch.setattr(module, "_read_names", read_some_names)
    return load_noto_emoji(data_home=home)


@installed
class TestInstalledFont:
    @pytest.mark.exhaustive
    def test_names_equal_openmoji(self, home):
        """Both styles of an emoji have the same caption."""
        noto = load_noto_emoji(data_home=home)
        theirs = load_openmoji()
        assert len(set(noto.captions)) == len(set(noto.images)) == len(noto.captions) > 1800
        assert len(set(noto.captions) & set(theirs.captions)) > 0.98 * len(theirs.captions)
        i = noto.captions.index("red apple")
        assert (noto.emoji[i], noto.categories[i]) == ("\U0001f34e", "Food & Drink")
        assert noto.subcategories[i] == "food-fruit"

    def test_images_show_the_emoji_on_white(self, noto):
        """Emoji of several characters, such as flags, are one image."""
        for name, colour in (("red apple", (229, 57, 53)), ("flag of France", (255, 255, 255))):
            with Image.open(noto.images[noto.captions.index(name)]) as image:
                assert image.size == (136, 128)
                assert image.getpixel((0, 0)) == (255, 255, 255)
                center = image.getpixel((68, 70))
            assert max(abs(a - b) for a, b in zip(center, colour, strict=True)) < 60

    def test_second_call_draws_nothing(self, noto, home, monkeypatch):
        monkeypatch.setattr(module, "_draw", lambda font, text: None)
        assert load_noto_emoji(data_home=home).images == noto.images

    def test_return_X_y_returns_pairs(self, noto, home):
        images, captions = load_noto_emoji(data_home=home, return_X_y=True)
        assert (images, captions) == (noto.images, noto.captions)

    def test_unwritable_data_home_raises(self, tmp_path):
        file = tmp_path / "file"
        file.write_bytes(b"")
        with pytest.raises(OSError, match="SKLEARN_APE_DATA"):
            load_noto_emoji(data_home=file)


class TestInvalidInput:
    def test_missing_font_raises(self, monkeypatch):
        monkeypatch.setattr(module, "_FONT", os.devnull + "/none.ttf")
        with pytest.raises(ImportError, match=r"apt install fonts-noto-color-emoji.*path="):
            load_noto_emoji()

    def test_missing_file_raises(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none\.ttf"):
            load_noto_emoji(path=tmp_path / "none.ttf")

    def test_file_that_is_not_a_font_raises(self, tmp_path):
        file = tmp_path / "text.ttf"
        file.write_text("no font")
        with pytest.raises(ValueError, match="is not a font"):
            load_noto_emoji(path=file)
