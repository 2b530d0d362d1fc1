"""The command `curate`."""

import csv
import shutil

import pytest

LABELS = "animal,food,vehicle"


@pytest.fixture
def flawed_folder(photos, tmp_path):
    """Return the photos with a duplicate and an unreadable image."""
    folder = tmp_path / "flawed_folder"
    shutil.copytree(photos, folder)
    image = sorted((folder / "food").iterdir())[0]
    shutil.copy(image, folder / "food" / "zz copy.png")
    (folder / "food" / "zz broken.png").write_text("no image")
    return folder


class TestCurate:
    def test_each_pair_is_selected_or_dropped_with_reason(self, flawed_folder, run, tmp_path):
        chosen, dropped = tmp_path / "chosen.csv", tmp_path / "dropped.csv"
        result = run(
            *("curate", flawed_folder, "--captions", "filename", "--labels", LABELS, "-n", "12"),
            *("--noisy", "0", "-o", chosen, "--dropped", dropped),
        )
        with chosen.open() as one, dropped.open() as other:
            kept, others = list(csv.DictReader(one)), list(csv.DictReader(other))
        assert len(kept) == 12
        assert len(kept) + len(others) == 62
        assert [row["label"] for row in kept].count("food") == 4
        reasons = {row["image"].rsplit("/", 1)[1]: row["reason"] for row in others}
        assert "cannot be read" in reasons["zz broken.png"]
        copies = [reason for reason in reasons.values() if reason.startswith("nearly the same")]
        assert copies
        assert "Selected 12 of 62 pairs" in result.stderr
        assert f"{len(copies)}: nearly the same image as another" in result.stderr

    def test_captions_of_an_image_are_not_duplicates(self, photos, rows, tmp_path):
        """A path with "./" was another image."""
        image = next((photos / "food").iterdir())
        table = tmp_path / "pairs.csv"
        table.write_text(f"image,caption\nfood/{image.name},a fruit\n./food/{image.name},a dish\n")
        (tmp_path / "food").symlink_to(photos / "food")
        arguments = ("curate", table, "--labels", "food", "-n", "2", "--noisy", "0")
        assert {row["caption"] for row in rows(*arguments)} == {"a fruit", "a dish"}

    def test_repeated_pairs_are_selected_once(self, photos, rows, tmp_path):
        """Both rows were selected, in the place of other pairs."""
        images = [image.name for image in sorted((photos / "food").iterdir())[:4]]
        lines = [f"food/{image},a dish\n" for image in (*images[:2], *images)]
        table, dropped = tmp_path / "pairs.csv", tmp_path / "dropped.csv"
        table.write_text("image,caption\n" + "".join(lines))
        (tmp_path / "food").symlink_to(photos / "food")
        arguments = ("curate", table, "--labels", "food", "-n", "4", "--noisy", "0")
        selected = rows(*arguments, "--dropped", dropped)
        assert len({row["image"] for row in selected}) == 4
        assert dropped.read_text().count("the same image and caption as another pair") == 2

    def test_evaluate_reads_selected_pairs(self, flawed_folder, run, rows, tmp_path):
        result = run(
            *("curate", flawed_folder, "--captions", "filename", "--labels", LABELS),
            *("--per-label", "3", "-o", tmp_path / "chosen.csv"),
        )
        assert "3: a caption that fits its image poorly" in result.stderr  # of 61
        assert rows("evaluate", tmp_path / "chosen.csv", "--label", "label")

    def test_labels_of_a_hierarchy_are_its_classes(self, photos, rows, tmp_path):
        file = tmp_path / "labels.json"
        file.write_text('{"living": {"animal": null, "food": null}, "travel": ["a vehicle"]}')
        options = ("--captions", "filename", "-n", "6", "--noisy", "0")
        table = rows("curate", photos, "--labels-file", file, *options)
        assert {row["label"] for row in table} == {"animal", "food", "travel"}

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (("-n", "5"), 2, "--labels"),
            (("--labels", LABELS), 2, "--n-pairs"),
            (("--labels", LABELS, "-n", "5"), 1, "no captions"),
            (("-o", "a.csv", "--dropped", "./a.csv"), 2, "--output and --dropped are both"),
            (("--labels", LABELS, "-n", "5", "--captions", "filename", "--noisy", "1"), 1, "All"),
        ],
    )
    def test_invalid_arguments_are_messages(self, small_folder, run, arguments, code, message):
        assert message in run("curate", small_folder, *arguments, code=code).stderr

    @pytest.mark.parametrize(("name", "code"), [("dropped.txt", 2), ("file/dropped.csv", 1)])
    def test_errors_about_dropped_do_not_name_output(self, small_folder, run, name, code):
        (small_folder / "file").write_text("")
        arguments = ("--labels", LABELS, "-n", "5", "--dropped", small_folder / name)
        error = run("curate", small_folder, *arguments, code=code).stderr
        assert name in error
        assert "--output" not in error
        assert "--format" not in error
