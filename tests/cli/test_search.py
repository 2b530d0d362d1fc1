"""The commands `search` and `index`."""

import pytest

from sklearn_ape import CrossModalRetriever


@pytest.fixture
def paths(small_folder):
    return [str(path) for path in sorted(small_folder.rglob("*.png"))]


class TestSearch:
    def test_results_equal_those_of_retriever(self, small_folder, paths, rows):
        queries = ["something to eat", "a wild animal"]
        (small_folder / "food" / "zz.jpg").write_text("no image")
        table_rows = rows(
            "search", small_folder, *(x for q in queries for x in ("--query", q)), "-k", "3"
        )
        expected = CrossModalRetriever().fit(paths).search(queries, k=3)
        assert [row["path"] for row in table_rows] == [*expected.items[0], *expected.items[1]]
        assert [row["query"] for row in table_rows] == [queries[0]] * 3 + [queries[1]] * 3
        assert [row["rank"] for row in table_rows] == ["1", "2", "3"] * 2
        assert float(table_rows[0]["score"]) == pytest.approx(expected.scores[0, 0], abs=1e-3)

    def test_query_image_is_not_its_own_result(self, small_folder, paths, rows):
        table_rows = rows("search", small_folder, "--like", paths[0], "-k", "99")
        assert len(table_rows) == len(paths) - 1
        assert paths[0] not in {row["path"] for row in table_rows}
        assert {row["query"] for row in table_rows} == {paths[0]}

    def test_saved_index_gives_same_results(self, small_folder, rows, run, tmp_path):
        out = tmp_path / "my-index"
        assert "12 images indexed" in run("index", small_folder, "-o", out).stderr
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
            (("--like", "gone.jpg"), 1, "'gone.jpg' does not exist"),
            (("--query", "a cat", "--index", "gone"), 2, "either images"),
        ],
    )
    def test_invalid_arguments_are_messages(self, small_folder, run, arguments, code, message):
        result = run("search", small_folder, *arguments, code=code)
        assert message in " ".join(result.stderr.split())

    def test_unreadable_query_image_raises(self, small_folder, run):
        (small_folder / "zz.jpg").write_text("no image")
        result = run("search", small_folder / "food", "--like", small_folder / "zz.jpg", code=1)
        assert "cannot be read as an image" in result.stderr
