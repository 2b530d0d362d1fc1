"""The commands `search` and `index`."""

import errno
import json
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sklearn_ape import CrossModalRetriever, load_pretrained

FIXTURES = Path(__file__).parents[1] / "fixtures" / "format_1"


@pytest.fixture
def paths(small_folder):
    return [str(path) for path in sorted(small_folder.rglob("*.png"))]


class TestSearch:
    def test_results_equal_those_of_retriever(self, small_folder, paths, rows):
        queries = ["something to eat", "a wild animal"]
        (small_folder / "food" / "zz.jpg").write_text("no image")
        table_rows = rows(
            "search", small_folder, *(x for q in queries for x in ("--query", q)), "--top-k", "3"
        )
        expected = CrossModalRetriever().fit(paths).search(queries, k=3)
        assert [row["path"] for row in table_rows] == [*expected.items[0], *expected.items[1]]
        assert [row["query"] for row in table_rows] == [queries[0]] * 3 + [queries[1]] * 3
        assert [row["rank"] for row in table_rows] == ["1", "2", "3"] * 2
        assert float(table_rows[0]["score"]) == pytest.approx(expected.scores[0, 0], abs=1e-3)

    def test_query_may_be_the_name_of_an_argument(self, small_folder, rows):
        """The command said that --query needs a value, because its argument is named "images"."""
        assert len(rows("search", small_folder, "--query", "images")) == 5

    def test_query_image_is_not_its_own_result(self, small_folder, paths, rows):
        table_rows = rows("search", small_folder, "--like", paths[0], "-k", "99")
        assert len(table_rows) == len(paths) - 1
        assert paths[0] not in {row["path"] for row in table_rows}
        assert {row["query"] for row in table_rows} == {paths[0]}

    def test_query_image_in_home_folder(self, small_folder, paths, rows, monkeypatch):
        """The shell does not expand the ~ of --like=~/cat.png."""
        expected = rows("search", small_folder, "--like", paths[0])
        monkeypatch.setenv("HOME", os.path.dirname(paths[0]))
        name = os.path.basename(paths[0])
        assert rows("search", small_folder, f"--like=~/{name}") == expected

    def test_links_to_query_image_are_not_counted(self, small_folder, paths, rows):
        image = Path(paths[0])
        expected = rows("search", small_folder, "--like", image, "-k", 99)
        for number in range(4):
            image.with_name(f"link-{number}.png").symlink_to(image)
        for k in (1, 3, 99):
            table_rows = rows("search", small_folder, "--like", image, "-k", k)
            assert table_rows == expected[:k]

    def test_saved_index_gives_same_results(self, small_folder, rows, run, tmp_path):
        out = tmp_path / "my-index"
        assert "Indexed 12 images." in run("index", small_folder, "-o", out).stderr
        arguments = ("--query", "something to eat", "-k", "3")
        fresh = rows("search", small_folder, *arguments)
        for image in small_folder.rglob("*.png"):
            image.unlink()
        assert rows("search", "--index", out, *arguments) == fresh
        result = run("search", "--index", small_folder, *arguments, code=1)
        assert "Traceback" not in result.stderr

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ((), 2, "--query"),
            (("--query", " "), 2, "empty"),
            (("--query", "a cat", "--index", "gone"), 2, "either images"),
        ],
    )
    def test_invalid_arguments_are_messages(self, small_folder, run, arguments, code, message):
        result = run("search", small_folder, *arguments, code=code)
        assert message in " ".join(result.stderr.split())


class TestUpdate:
    def test_new_changed_and_removed_images(self, photos, run, tmp_path):
        """The updated index equals a new one, and unchanged images are not embedded again."""
        folder = tmp_path / "images"
        shutil.copytree(photos, folder)
        images = sorted(folder.rglob("*.png"))
        run("index", folder, "-o", tmp_path / "index")
        images[0].unlink()
        shutil.copy(images[3], folder / "new.png")
        shutil.copy(images[4], images[5])
        later = time.time() + 10
        os.utime(images[5], (later, later))
        result = run("index", folder, "-o", tmp_path / "index", "--update", "--cache", "memory")
        assert "Images embedded: 2, removed: 1." in result.stderr
        run("index", folder, "-o", tmp_path / "other")
        actual, expected = (load_pretrained(tmp_path / name) for name in ("index", "other"))
        assert sorted(actual.items_) == sorted(expected.items_)
        queries = ["a fruit", "an animal"]
        np.testing.assert_allclose(
            actual.search(queries, k=9).scores, expected.search(queries, k=9).scores, atol=1e-4
        )
        # A copy may keep the time of an older file, but replaces the image nevertheless.
        os.utime(images[6], (0, 0))
        shutil.copy2(images[6], images[5])
        for n_embedded in (2, 0):
            again = run("index", folder, "-o", tmp_path / "index", "--update").stderr
            assert f"Images embedded: {n_embedded}, removed: 0." in again

    @pytest.mark.exhaustive
    def test_all_images_replaced(self, photos, run, tmp_path):
        shutil.copytree(photos / "food", tmp_path / "food")
        run("index", tmp_path / "food", "-o", tmp_path / "index", "--quiet")
        shutil.rmtree(tmp_path / "food")
        run("index", photos / "animal", "-o", tmp_path / "index", "--update", "--quiet")
        items = load_pretrained(tmp_path / "index").items_
        assert len(items) == len(list((photos / "animal").iterdir()))
        assert all("animal" in item for item in items)

    @pytest.mark.exhaustive
    def test_images_of_a_link_may_be_passed_by_another_path(self, photos, run, tmp_path):
        folder, link = tmp_path / "food", tmp_path / "link"
        shutil.copytree(photos / "food", folder)
        link.symlink_to(folder)
        run("index", link, "-o", tmp_path / "index", "--quiet")
        run("index", folder, "-o", tmp_path / "index", "--update", "--quiet")
        items = load_pretrained(tmp_path / "index").items_
        assert sorted(items) == sorted(map(str, folder.iterdir()))

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("kind", ["image", "folder"])
    def test_link_to_another_image(self, photos, run, tmp_path, kind):
        """The image was older than the index, and the index kept the embedding of the former."""
        for name in ("food", "animal"):
            (tmp_path / name).mkdir()
            shutil.copy(min((photos / name).iterdir()), tmp_path / name / "one.png")
        images = tmp_path / "images"
        images.mkdir()
        link, target = (images / "one.png", "one.png") if kind == "image" else (images / "a", "")
        arguments = ("index", images, "-o", tmp_path / "index", "--update")
        for name in ("food", "animal"):
            link.unlink(missing_ok=True)
            link.symlink_to(tmp_path / name / target)
            time.sleep(0.05)  # longer than the resolution of the time stamps
            result = run(*arguments)
        assert "Images embedded: 1, removed: 0." in result.stderr
        assert "Images embedded: 0, removed: 0." in run(*arguments).stderr

    @pytest.mark.exhaustive
    def test_image_that_is_added_behind_a_link(self, photos, run, tmp_path):
        """The time of the folder to which the link leads says nothing about the other images."""
        shutil.copytree(photos / "food", tmp_path / "food")
        (tmp_path / "link").symlink_to("food")
        arguments = ("index", tmp_path / "link", "-o", tmp_path / "index", "--update")
        time.sleep(0.05)  # longer than the resolution of the time stamps
        run(*arguments)
        time.sleep(0.05)
        shutil.copy(next((photos / "animal").iterdir()), tmp_path / "food" / "new.png")
        assert "Images embedded: 1, removed: 0." in run(*arguments).stderr

    def test_parent_of_a_link(self, photos, run, tmp_path, monkeypatch):
        """Another image, whose path the shell would not open, was indexed."""
        monkeypatch.chdir(tmp_path)
        Path("a/b").mkdir(parents=True)
        Path("link").symlink_to("a/b")
        for folder, target in (("food", "a/one.png"), ("animal", "one.png")):
            shutil.copy(min((photos / folder).iterdir()), target)
        run("index", "link/../one.png", "one.png", "-o", "index")
        expected = [str(tmp_path / "a" / "one.png"), str(tmp_path / "one.png")]
        assert load_pretrained("index").items_ == expected

    @pytest.mark.exhaustive
    def test_link_to_missing_image_is_dropped(self, photos, run, tmp_path):
        """The update failed with "No such file or directory"."""
        shutil.copytree(photos / "food", tmp_path / "food")
        shutil.copy(next((photos / "animal").iterdir()), tmp_path / "target.png")
        (tmp_path / "food" / "link.png").symlink_to(tmp_path / "target.png")
        run("index", tmp_path / "food", "-o", tmp_path / "index", "--quiet")
        (tmp_path / "target.png").unlink()
        arguments = ("index", tmp_path / "food", "-o", tmp_path / "index", "--update")
        assert "Images embedded: 0, removed: 1." in run(*arguments).stderr
        items = load_pretrained(tmp_path / "index").items_
        assert sorted(items) == sorted(
            str(path) for path in (tmp_path / "food").iterdir() if path.is_file()
        )

    def test_image_that_changes_while_it_is_indexed(self, photos, run, tmp_path, monkeypatch):
        """It counted as unchanged in all later updates."""
        shutil.copytree(photos / "food", tmp_path / "food")
        first, second = sorted((tmp_path / "food").iterdir())[:2]
        save = CrossModalRetriever.save_pretrained

        def change_and_save(retriever, folder):
            shutil.copy(second, first)
            save(retriever, folder)

        arguments = ("index", tmp_path / "food", "-o", tmp_path / "index", "--update")
        with monkeypatch.context() as patch:
            patch.setattr(CrossModalRetriever, "save_pretrained", change_and_save)
            run(*arguments)
        (tmp_path / "index" / "notes.txt").write_text("This file is newer than the index.")
        assert "Images embedded: 1, removed: 0." in run(*arguments).stderr
        assert "Images embedded: 0, removed: 0." in run(*arguments).stderr

    def test_folder_that_is_renamed_to_an_indexed_one(self, photos, run, tmp_path):
        """Its images have names of the index and are older than it, so none was embedded."""
        images = sorted((photos / "food").iterdir())[:3]
        for folder, sources in (("a", images), ("b", [images[1], images[0], images[2]])):
            (tmp_path / folder).mkdir()
            for target, source in zip(images, sources, strict=True):
                shutil.copy2(source, tmp_path / folder / target.name)
        time.sleep(0.05)  # longer than the resolution of the time stamps
        run("index", tmp_path / "a", "-o", tmp_path / "index", "--quiet")
        (tmp_path / "a").rename(tmp_path / "c")
        (tmp_path / "b").rename(tmp_path / "a")
        arguments = ("index", tmp_path / "a", "-o", tmp_path / "index", "--update")
        assert "Images embedded: 2, removed: 0." in run(*arguments).stderr
        assert "Images embedded: 0, removed: 0." in run(*arguments).stderr
        query = [str(tmp_path / "a" / images[0].name)]
        result = load_pretrained(tmp_path / "index").search(query, k=1, modality="image")
        assert result.items == [query]

    def test_clock_that_was_set_back_after_indexing(self, photos, run, tmp_path):
        """Images that changed were older than the index, so none was embedded."""
        shutil.copytree(photos / "food", tmp_path / "food")
        first, second = sorted((tmp_path / "food").iterdir())[:2]
        arguments = ("index", tmp_path / "food", "-o", tmp_path / "index", "--update")
        run(*arguments)
        record = json.loads((tmp_path / "index" / "indexed_at").read_text())
        record["time"] += 10**12
        (tmp_path / "index" / "indexed_at").write_text(json.dumps(record))
        shutil.copy(second, first)
        assert "Images embedded: 1, removed: 0." in run(*arguments).stderr

    def test_folder_in_a_folder_without_permission(self, photos, run, tmp_path, monkeypatch):
        """A mounted folder is writable where its parent is not, and may be on another disk."""
        run("index", photos / "food", "-o", tmp_path / "index", "--quiet")
        create, usage = tempfile.TemporaryFile, shutil.disk_usage

        def deny(*args, dir=None, **options):
            if dir == tmp_path:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))
            return create(*args, dir=dir, **options)

        monkeypatch.setattr(tempfile, "TemporaryFile", deny)
        measured = []
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: measured.append(path) or usage(path)
        )
        arguments = ("index", photos / "food", "-o", tmp_path / "index", "--update")
        assert "Images embedded: 0, removed: 0." in run(*arguments).stderr
        assert measured == [tmp_path / "index"]
        assert "cannot be written" in run("index", photos, "-o", tmp_path / "new", code=1).stderr

    @pytest.mark.exhaustive
    def test_copied_index(self, photos, run, tmp_path):
        """Images that had changed between the index and its copy counted as unchanged."""
        shutil.copytree(photos / "food", tmp_path / "food")
        first, second = sorted((tmp_path / "food").iterdir())[:2]
        run("index", tmp_path / "food", "-o", tmp_path / "index")
        shutil.copy(second, first)
        shutil.copytree(tmp_path / "index", tmp_path / "copy", copy_function=shutil.copyfile)
        arguments = ("index", tmp_path / "food", "-o", tmp_path / "copy", "--update")
        assert "Images embedded: 1, removed: 0." in run(*arguments).stderr
        assert "Images embedded: 0, removed: 0." in run(*arguments).stderr

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("record", [None, "", '{"time": 1e999, "stamps": []}'])
    def test_index_without_valid_time_is_embedded_again(self, photos, run, tmp_path, record):
        """An index saved in Python does not say when its images were read."""
        run("index", photos / "food", "-o", tmp_path / "index")
        time = tmp_path / "index" / "indexed_at"
        if record is None:
            time.unlink()
        else:
            time.write_text(record)
        arguments = ("index", photos / "food", "-o", tmp_path / "index", "--update")
        n_images = len(list((photos / "food").iterdir()))
        assert f"Images embedded: {n_images}, removed: 0." in run(*arguments).stderr
        assert "Images embedded: 0, removed: 0." in run(*arguments).stderr

    @pytest.mark.exhaustive
    def test_clock_that_differs_from_that_of_the_file_system(
        self, photos, run, tmp_path, monkeypatch
    ):
        """Images that had changed in the hour after the index counted as unchanged."""
        shutil.copytree(photos / "food", tmp_path / "food")
        first, second = sorted((tmp_path / "food").iterdir())[:2]
        arguments = ("index", tmp_path / "food", "-o", tmp_path / "index", "--update")
        clock = time.time
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: clock() + 3600)
            run(*arguments)
        shutil.copy(second, first)
        assert "Images embedded: 1, removed: 0." in run(*arguments).stderr

    def test_images_that_exist_are_not_dropped(self, photos, run, tmp_path):
        run("index", photos / "food", "-o", tmp_path / "index", "--quiet")
        before = (tmp_path / "index" / "config.json").stat().st_mtime_ns
        n_food = len(list((photos / "food").iterdir()))
        arguments = ("index", photos / "animal", "-o", tmp_path / "index", "--update")
        error = run(*arguments, code=1).stderr
        assert f"IMAGES does not include {n_food} indexed images that exist" in error
        assert (tmp_path / "index" / "config.json").stat().st_mtime_ns == before

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
    def test_images_in_an_unreadable_folder_are_not_dropped(
        self, photos, run, tmp_path, monkeypatch, number
    ):
        """Without permission or connection, `os.path.isfile` returns False."""
        run("index", photos / "food", "-o", tmp_path / "index", "--quiet")
        stat = os.stat

        def deny(path, *args, **kwargs):
            if str(photos / "food") in str(path):
                raise OSError(number, os.strerror(number), path)
            return stat(path, *args, **kwargs)

        monkeypatch.setattr(os, "stat", deny)
        arguments = ("index", photos / "animal", "-o", tmp_path / "index", "--update")
        assert "that exist or cannot be read now" in run(*arguments, code=1).stderr

    def test_update_without_index_creates_it(self, photos, run, tmp_path):
        run("index", photos / "food", "-o", tmp_path / "index", "--update", "--quiet")
        n_images = len(list((photos / "food").iterdir()))
        assert load_pretrained(tmp_path / "index").n_samples_fit_ == n_images

    def test_index_without_paths_raises(self, photos, run, tmp_path):
        """The items of images in memory are row numbers, and the update failed with TypeError."""
        images = [np.full((9, 9, 3), grey, np.uint8) for grey in (0, 255)]
        with pytest.warns(UserWarning, match="items in results are not saved"):
            CrossModalRetriever().fit(images).save_pretrained(tmp_path / "index")
        arguments = ("index", photos, "-o", tmp_path / "index", "--update")
        assert "its items are not the paths of images" in run(*arguments, code=1).stderr

    @pytest.mark.parametrize("update", [(), ("--update",)])
    def test_index_and_model_do_not_replace_each_other(self, photos, run, tmp_path, update):
        for name in ("kernel", "retriever"):
            shutil.copytree(FIXTURES / name, tmp_path / name)
        result = run("index", photos, "-o", tmp_path / "kernel", *update, code=1)
        assert "kernel' has a model of class KernelAligner, which would be rep" in result.stderr
        # The folder is checked before the data are loaded.
        result = run("fit", tmp_path / "missing", "-o", tmp_path / "retriever", code=1)
        assert "retriever' has an index, which would be replaced" in result.stderr

    def test_unknown_kind_names_the_option(self, photos, run, tmp_path):
        """The error named the parameter of CrossModalRetriever, index."""
        result = run("index", photos, "-o", tmp_path / "index", "--kind", "annoy", code=2)
        assert "'annoy' is not one of 'exact', 'faiss', 'usearch'" in " ".join(
            result.stderr.split()
        )

    def test_kind_raises(self, photos, run, tmp_path):
        arguments = ("index", photos, "-o", tmp_path / "index", "--update", "--kind", "faiss")
        assert "keeps the aligner and the kind" in run(*arguments, code=2).stderr


class TestMinScore:
    def test_query_without_results_is_reported(self, photos, run):
        result = run("search", photos, "--query", "a fruit", "--min-score", "0.99")
        assert result.stdout.splitlines() == ["query,rank,path,score"]
        assert "Nothing was found for 'a fruit'. Remove --min-score" in result.stderr

    def test_auto_lists_related_images(self, photos, run):
        result = run("search", photos, "--query", "a tomato", "--min-score", "auto", "-k", "60")
        assert 1 <= len(result.stdout.splitlines()) - 1 < 30

    @pytest.mark.parametrize("score", ["high", "nan"])
    def test_invalid_score_is_a_message(self, photos, run, score):
        result = run("search", photos, "--query", "a", "--min-score", score, code=2)
        assert "is not a number or auto" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "is a folder"),
        ("text.jpg", "cannot be read as an image: it is a text file, not an image"),
        ("cut.png", "cannot be read as an image"),
        ("narrow.png", "cannot be read as an image: it is too narrow"),
        ("none", "does not exist"),
        ("http://x.org/a.jpg", "'http://x.org/a.jpg' cannot be read as an image: it is a URL"),
    ],
)
def test_query_image_is_checked_first(photos, run, tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("RGB", (900, 2)).save(tmp_path / "narrow.png")
    image = next((photos / "food").iterdir()).read_bytes()
    (tmp_path / "cut.png").write_bytes(image[: len(image) // 2])
    path = name if "://" in name else tmp_path / name
    result = run("search", photos, "--like", path, code=1)
    assert message in " ".join(result.stderr.split())
    assert "Encoding" not in result.stderr


def test_query_image_with_damaged_metadata_gives_no_warning(small_folder, run, tmp_path):
    """Pillow's warning does not name the image, which is read nevertheless."""
    image = Image.new("RGB", (40, 40), "red")
    image.save(tmp_path / "query.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Corrupt EXIF data")
        result = run("search", small_folder, "--like", tmp_path / "query.jpg")
    assert len(result.stdout.splitlines()) > 1


def test_image_instead_of_text_suggests_like(photos, run):
    """The images were encoded before an error of the text encoder, which has no such option."""
    image = next((photos / "food").iterdir())
    result = run("search", photos, "--query", image, code=2)
    message = " ".join(result.stderr.split())
    assert "is an image file, not a text. To find similar images, pass it as --like." in message
    assert "Encoding" not in result.stderr


def test_text_instead_of_image_suggests_query(photos, run):
    result = run("search", photos, "a cat", code=2)
    message = " ".join(result.stderr.split())
    assert "'a cat' is not a file. Did you mean --query" in message


@pytest.mark.exhaustive
def test_model_is_another_name_of_aligner(photos, run, tmp_path):
    run("index", photos / "food", "-o", tmp_path / "index", "--quiet")
    options = ("--query", "a tomato", "-k", "1")
    found = run("search", photos / "food", "--model", tmp_path / "index", *options).stdout
    assert found == run("search", photos / "food", *options).stdout
