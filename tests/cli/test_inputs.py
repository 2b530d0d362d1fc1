"""What commands take: files, folders, patterns, lists, labels, tables."""

import os
import shutil

import pytest
import typer

from sklearn_ape.cli._inputs import label_names, list_images, load_data


@pytest.fixture
def image(few):
    return next((few / "animal").iterdir())


def relative(paths, folder):
    return [os.path.relpath(path, folder) for path in paths]


class TestListImages:
    def test_names_that_are_hard_to_handle(self, image, tmp_path, capsys):
        folder = tmp_path / "mine"
        folder.mkdir()
        names = ["with space.PNG", "line\nfeed.png", "Früchte 🍎.png", "a,b;'c'.png", "[1].png"]
        for name in names:
            shutil.copy(image, folder / name)
        (folder / "notes.txt").write_text("no image")
        (folder / ".hidden.png").write_text("no image")
        (folder / "link.png").symlink_to(image)
        assert sorted(relative(list_images([str(folder)]), folder)) == sorted([*names, "link.png"])
        assert "1 files (1 '.txt')" in capsys.readouterr().err

    def test_a_file_that_looks_like_a_pattern_is_a_file(self, image, tmp_path):
        target = tmp_path / "[1].png"
        shutil.copy(image, target)
        assert list_images([str(target)]) == [str(target)]

    def test_patterns_and_folders_name_an_image_once(self, few):
        everything = list_images([str(few)])
        assert len(everything) == 12
        assert list_images([str(few / "**" / "*.png"), str(few)]) == everything
        assert list_images([str(few), str(few / "animal")]) == everything

    def test_captions_among_the_files_of_a_pattern_are_no_images(self, few, capsys):
        (few / "animal" / "cat.txt").write_text("a cat")
        assert len(list_images([str(few / "animal" / "*")])) == 4
        assert "1 '.txt'" in capsys.readouterr().err

    def test_an_image_without_an_extension(self, image, tmp_path):
        target = tmp_path / "IMG_0001"
        shutil.copy(image, target)
        assert list_images([str(target)]) == [str(target)]

    def test_a_circle_of_links_ends(self, few):
        (few / "animal" / "again").symlink_to(few)
        assert len(list_images([str(few)])) == 12

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("gone.jpg", "no file or folder 'gone.jpg'"),
            ("*.gone", r"No file fits the pattern '\*\.gone'"),
            ("https://x.org/cat.jpg", "address.*download"),
        ],
    )
    def test_what_is_not_there(self, argument, message):
        with pytest.raises(FileNotFoundError, match=message):
            list_images([argument])

    def test_empty_folder(self, tmp_path):
        with pytest.raises(ValueError, match=r"no images .no files at all"):
            list_images([str(tmp_path)])


class TestLabelNames:
    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("cat,dog", ["cat", "dog"]),
            (" a cat , a dog,", ["a cat", "a dog"]),
            ('cat, "salt, pepper"', ["cat", "salt, pepper"]),
            ("cat,dog\nbird,fish", ["cat", "dog", "bird", "fish"]),
            ("cat\r\ndog\rbird\n", ["cat", "dog", "bird"]),
        ],
    )
    def test_on_the_command_line(self, text, names):
        assert label_names(text, None) == names

    def test_in_files(self, tmp_path):
        lines, table = tmp_path / "labels.txt", tmp_path / "labels.json"
        lines.write_text("\ufeffsalt, pepper\n\n  Käse \n", encoding="utf-8")
        assert label_names(None, lines) == ["salt, pepper", "Käse"]
        table.write_text('{"vehicle": ["car", "bus"], "animal": "cat"}')
        assert label_names(None, table) == {"vehicle": ["car", "bus"], "animal": "cat"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("cat,dog,cat", "repeat: 'cat'"),
            ("cat", "'cat' is the only label"),
            (" , ", "empty"),
        ],
    )
    def test_labels_that_would_give_silent_nonsense(self, text, message):
        with pytest.raises(ValueError, match=message):
            label_names(text, None)

    def test_broken_json(self, tmp_path):
        (tmp_path / "labels.json").write_text("{cat}")
        with pytest.raises(ValueError, match="is not JSON"):
            label_names(None, tmp_path / "labels.json")
        (tmp_path / "labels.json").write_text("7")
        with pytest.raises(ValueError, match="must hold a list"):
            label_names(None, tmp_path / "labels.json")

    def test_files_are_split_at_line_ends_alone(self, tmp_path):
        file = tmp_path / "labels.txt"
        file.write_bytes("New\u2028York\nform\x0cfeed\r\na\x85b\x1cc\rdog\n".encode())
        assert label_names(None, file) == ["New\u2028York", "form\x0cfeed", "a\x85b\x1cc", "dog"]

    @pytest.mark.parametrize(
        "text",
        ['{"animal": ["cat"], "animal": ["dog"], "car": "bus"}', '[{"animal": 1, "animal": 2}]'],
    )
    def test_a_repeated_key_in_json_raises(self, tmp_path, text):
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(ValueError, match="has the key 'animal' more than once"):
            label_names(None, tmp_path / "labels.json")

    def test_names_that_are_too_long_for_csv(self):
        with pytest.raises(typer.BadParameter, match="cannot be read"):
            label_names("cat," + "d" * 200_000, None)

    def test_both_ways_at_once(self, tmp_path):
        with pytest.raises(typer.BadParameter, match="not both"):
            label_names("cat,dog", tmp_path)


class TestLoadData:
    def test_a_table_of_a_spreadsheet(self, few, image):
        table = few / "pairs.csv"
        name = image.relative_to(few)
        table.write_text(f"\ufeffBild;Text\n{name};a cat, black\n", encoding="utf-8")
        data = load_data(table, image="Bild", caption="Text")
        assert data.captions == ["a cat, black"]
        assert data.images == [str(image)]

    def test_an_image_that_is_gone_is_left_to_the_encoder_unless_strict(self, few):
        table = few / "pairs.csv"
        table.write_text("image,caption\ngone.jpg,a cat\n")
        assert len(load_data(table).images) == 1
        with pytest.raises(FileNotFoundError, match="gone"):
            load_data(table, strict=True)

    def test_cells_that_hold_no_images(self, tmp_path):
        (tmp_path / "t.jsonl").write_text('{"image": 7, "caption": "a cat"}')
        with pytest.raises(ValueError, match="has an image of type int"):
            load_data(tmp_path / "t.jsonl")

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder or table"):
            load_data(tmp_path / "gone")
