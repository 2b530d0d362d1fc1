"""search and index: words to images, images to images."""

import pytest

from sklearn_ape import CrossModalRetriever


@pytest.fixture
def paths(few):
    return [str(path) for path in sorted(few.rglob("*.png"))]


class TestSearch:
    def test_finds_what_the_retriever_finds(self, few, paths, rows):
        queries = ["something to eat", "a wild animal"]
        (few / "food" / "zz.jpg").write_text("no image")
        found = rows("search", few, *(x for q in queries for x in ("--query", q)), "-k", "3")
        expected = CrossModalRetriever().fit(paths).search(queries, k=3)
        assert [row["path"] for row in found] == [*expected.items[0], *expected.items[1]]
        assert [row["query"] for row in found] == [queries[0]] * 3 + [queries[1]] * 3
        assert [row["rank"] for row in found] == ["1", "2", "3"] * 2
        assert float(found[0]["score"]) == pytest.approx(expected.scores[0, 0], abs=1e-3)

    def test_by_an_image_which_is_not_its_own_answer(self, few, paths, rows):
        found = rows("search", few, "--like", paths[0], "-k", "99")
        assert len(found) == len(paths) - 1
        assert paths[0] not in {row["path"] for row in found}
        assert {row["query"] for row in found} == {paths[0]}

    def test_in_an_index_that_was_saved(self, few, rows, run, tmp_path):
        out = tmp_path / "my-index"
        assert "12 images indexed" in run("index", few, "-o", out).stderr
        arguments = ("--query", "something to eat", "-k", "3")
        fresh = rows("search", few, *arguments)
        for image in few.rglob("*.png"):
            image.unlink()
        assert rows("search", "--index", out, *arguments) == fresh
        result = run("search", "--index", few, *arguments, code=1)
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
    def test_errors(self, few, run, arguments, code, message):
        result = run("search", few, *arguments, code=code)
        assert message in " ".join(result.stderr.split())

    def test_like_what_is_no_image(self, few, run):
        (few / "zz.jpg").write_text("no image")
        result = run("search", few / "food", "--like", few / "zz.jpg", code=1)
        assert "cannot be read as an image" in result.stderr
