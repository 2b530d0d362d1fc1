"""The command line, in processes of its own as a user starts it."""

import re
import subprocess
import sys

import pytest


def run(*arguments, **options):
    command = [sys.executable, "-m", "sklearn_ape", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo twice, on one cache: (first, second, folder of the report)."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = ("demo", "--output", str(folder / "report"), "--cache", str(folder / "features"))
    return run(*arguments), run(*arguments), folder / "report"


def figures(text):
    """Return all percentages but chance's."""
    return re.findall(r"\d+\.\d%", text)


class TestDemo:
    def test_first_run_encodes_with_a_progress_bar_of_rate_and_time_left(self, demo):
        first, _, _ = demo
        assert first.returncode == 0, first.stderr
        assert re.search(r"efficientnet_lite0: +100%.*image/s", first.stderr)
        assert re.search(r"\d+:\d+<\d+:\d+", first.stderr)
        assert "pictures encoded" in first.stdout
        for text in ("recall@10", "picture → caption", "9 categories", "MiB", "seconds"):
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


class TestCommands:
    def test_models_lists_the_packaged_encoders(self):
        result = run("models", env={"COLUMNS": "200", "PATH": ""})
        assert result.returncode == 0, result.stderr
        assert "efficientnet_lite0" in result.stdout
        assert "all-MiniLM-L6-v2" in result.stdout

    @pytest.mark.parametrize("command", ["demo", "models"])
    def test_help_has_an_example(self, command):
        result = run(command, "--help")
        assert result.returncode == 0
        assert f"Example: sklearn-ape {command}" in result.stdout

    def test_an_error_is_a_line_and_not_a_traceback(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        result = run("demo", "--quiet", "--cache", str(tmp_path / "file" / "features"))
        assert result.returncode == 1
        assert "sklearn-ape: The feature cache" in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""

    def test_unknown_command(self):
        result = run("demmo")
        assert result.returncode == 2
        assert "No such command" in result.stderr
