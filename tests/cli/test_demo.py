"""The demo and the list of models, as a user starts them."""

import json
import re
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo twice, on one cache: (first, second, folder of the report)."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "sklearn_ape", "demo"]
    command += ["--output", str(folder / "report"), "--cache", str(folder / "features")]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2)
    )
    return first, second, folder / "report"


def figures(text):
    """Return all percentages but chance's."""
    return re.findall(r"\d+\.\d%", text)


class TestDemo:
    def test_first_run_encodes_with_a_progress_bar_of_rate_and_time_left(self, demo):
        first, _, _ = demo
        assert first.returncode == 0, first.stderr
        assert re.search(r"efficientnet_lite0: +100%.*image/s", first.stderr)
        assert re.search(r"\d+:\d+<\d+:\d+", first.stderr)
        assert "images encoded" in first.stdout
        for text in ("recall@10", "image → caption", "9 categories", "MiB", "seconds"):
            assert text in first.stdout

    def test_second_run_takes_features_from_the_cache_and_gives_the_same_figures(self, demo):
        first, second, _ = demo
        assert "Features: from the cache" in second.stdout
        assert figures(first.stdout) == figures(second.stdout)

    def test_figures_are_above_chance(self, demo):
        concepts, _, categories, _ = figures(demo[0].stdout)[-4:]
        assert float(concepts[:-1]) > 8  # chance is 0.3
        assert float(categories[:-1]) > 40  # chance is 11.1

    def test_report_needs_no_other_file(self, demo):
        html = (demo[2] / "index.html").read_text(encoding="utf-8")
        sources = re.findall(r'(?:src|href)="([^"]{0,30})', html)
        assert len(sources) > 40
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        assert "search by words" in html.lower()
        assert "CC BY-SA" in html
        assert (demo[2] / "search.png").read_bytes().startswith(b"\x89PNG")

    def test_a_file_in_the_way_of_the_report_is_told_before_the_work(self, run, tmp_path):
        (tmp_path / "file").write_text("in the way")
        result = run("demo", "--output", tmp_path / "file" / "report", code=1)
        assert "cannot be written" in result.stderr
        assert result.stdout == ""

    def test_a_cache_that_cannot_be(self, run, tmp_path):
        (tmp_path / "file").write_text("in the way")
        result = run(
            *("demo", "--quiet", "--output", tmp_path / "r"),
            *("--cache", tmp_path / "file" / "features"),
            code=1,
        )
        assert "sklearn-ape: The feature cache" in result.stderr


class TestModels:
    def test_lists_the_packaged_encoders(self, rows):
        listed = rows("models")
        assert {"efficientnet_lite0", "all-MiniLM-L6-v2"} <= {row["name"] for row in listed}
        assert {row["modality"] for row in listed} == {"image", "text"}

    def test_a_table_for_people(self, run):
        shown = run("models", "--format", "table").stdout
        assert "efficientnet" in shown
        assert "Hugging Face hub" in shown

    def test_json_for_programs(self, run):
        assert json.loads(run("models", "--format", "json").stdout)[0]["features"] == 1280
