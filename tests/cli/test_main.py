"""The commands `demo`, `models` and `serve`, and the exit status of errors."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
import torch
from typer.testing import CliRunner

from sklearn_ape import ZeroShotClassifier
from sklearn_ape.cli import app
from sklearn_ape.cli._output import print_message


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run the demo twice with one cache; return both results and the folder of the report."""
    folder = tmp_path_factory.mktemp("demo")
    installed = os.environ.get("SKLEARN_APE_COMMAND")  # CI sets that of a wheel
    command = [installed] if installed else [sys.executable, "-m", "sklearn_ape"]
    command += ["demo", "--output", str(folder / "report"), "--cache", str(folder / "features")]
    options: dict = {"capture_output": True, "text": True, "check": False}
    first, second = (subprocess.run(command, **options) for _ in range(2))
    return first, second, folder / "report"


def figures(text):
    """Return all percentages."""
    return re.findall(r"\d+\.\d%", text)


@pytest.mark.exhaustive  # a minute; `make demo` shows the same
class TestDemo:
    def test_first_run_shows_progress(self, demo):
        first, _, _ = demo
        assert first.returncode == 0, first.stderr
        assert re.search(r"efficientnet_lite0: +100%.*image/s", first.stderr)
        assert re.search(r"\d+:\d+<\d+:\d+", first.stderr)
        assert "images encoded" in first.stdout
        for text in ("recall@10", "image → caption", "9 categories", "training pairs", "seconds"):
            assert text in first.stdout

    def test_second_run_reads_cache_and_prints_same_scores(self, demo):
        first, second, _ = demo
        assert "Features: from the cache" in second.stdout
        assert figures(first.stdout) == figures(second.stdout)

    def test_scores_are_above_chance(self, demo):
        concepts, _, categories, _ = figures(demo[0].stdout)[-4:]
        assert float(concepts[:-1]) > 8  # chance is 0.3
        assert float(categories[:-1]) > 40  # chance is 11.1

    def test_report_contains_its_images(self, demo):
        html = (demo[2] / "index.html").read_text(encoding="utf-8")
        sources = re.findall(r'(?:src|href)="([^"]{0,30})', html)
        assert len(sources) > 40
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        assert "<h2>Image search" in html
        assert "CC BY-SA" in html


class TestErrorsOfDemo:
    def test_file_in_path_of_report_raises_before_encoding(self, run, tmp_path):
        (tmp_path / "file").write_text("in the way")
        result = run("demo", "--output", tmp_path / "file" / "report", code=1)
        assert "cannot be written" in result.stderr
        assert result.stdout == ""

    @pytest.mark.parametrize("name", ["link", "missing/../file"])
    def test_folder_that_cannot_be_created_raises_before_encoding(
        self, run, tmp_path, monkeypatch, name
    ):
        """Otherwise the results of minutes would be lost."""
        (tmp_path / "file").write_text("in the way")
        (tmp_path / "link").symlink_to(tmp_path / "nothing")
        monkeypatch.setattr("sklearn_ape._demo.run_demo", lambda *_, **__: pytest.fail("encoded"))
        result = run("demo", "--output", f"{tmp_path}/{name}", code=1)
        assert "File exists" in result.stderr

    def test_page_of_the_user_is_not_replaced(self, run, tmp_path, monkeypatch):
        """The second run of the fixture `demo` replaces a report."""
        page = tmp_path / "index.html"
        page.write_text("<title>My page</title>")
        monkeypatch.setattr("sklearn_ape._demo.run_demo", lambda *_, **__: pytest.fail("encoded"))
        result = run("demo", "--output", tmp_path, code=1)
        assert "exists and is not a report of 'sklearn-ape demo'" in result.stderr
        assert page.read_text() == "<title>My page</title>"

    def test_invalid_cache_folder_raises(self, run, tmp_path):
        (tmp_path / "file").write_text("in the way")
        result = run(
            *("demo", "--quiet", "--output", tmp_path / "r"),
            *("--cache", tmp_path / "file" / "features"),
            code=1,
        )
        assert "sklearn-ape: The feature cache" in result.stderr


class TestModels:
    def test_models_lists_packaged_encoders(self, rows):
        listed = rows("models")
        assert {"efficientnet_lite0", "all-MiniLM-L6-v2"} <= {row["name"] for row in listed}
        assert {row["modality"] for row in listed} == {"image", "text"}

    def test_models_as_table(self, run):
        output = run("models", "--format", "table").stdout
        assert "efficientnet" in output
        assert "Hugging Face Hub" in output

    def test_models_as_json(self, run):
        assert json.loads(run("models", "--format", "json").stdout)[0]["features"] == 1280


@pytest.fixture
def served(monkeypatch):
    """Return a list of the arguments of calls of `sklearn_ape.app.serve`."""
    calls = []
    monkeypatch.setattr("sklearn_ape.app.serve", lambda *a, **k: calls.append((a, k)))
    return calls


class TestServe:
    def test_default_host_is_loopback(self, run, served):
        assert not run("serve", "--quiet").stderr
        expected = (None, None, "127.0.0.1", 7860, False), {"labels": None, "verbose": 0}
        assert served == [expected]

    def test_options_are_passed_to_serve(self, run, served, small_folder):
        options = ("--labels", "a cat,a dog", "--port", "0", "--open")
        assert run("serve", "--images", small_folder, *options).stderr == "Starting the page ...\n"
        (arguments, options) = served[0]
        assert arguments == (None, small_folder, "127.0.0.1", None, True)
        assert options == {"labels": ["a cat", "a dog"], "verbose": 1}

    def test_labels_of_hierarchy_are_its_classes(self, run, served, tmp_path):
        """As in `classify`. The page has no field for several names of a class."""
        file = tmp_path / "labels.json"
        file.write_text('{"animal": {"bird": null, "cat": ["a cat", "a kitten"]}, "car": null}')
        result = run("serve", "--labels-file", file)
        assert served[0][1]["labels"] == ["bird", "cat", "car"]
        assert "without the names" in result.stderr

    def test_missing_folder_raises(self, run, served):
        assert "'gone' is not a folder" in run("serve", "--images", "gone", code=1).stderr
        assert not served

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("options", [("--quiet",), ()])
    def test_page_responds_and_stops_at_ctrl_c(self, small_folder, options):
        """The address is the result of the command, which is printed in any case."""
        command = [sys.executable, "-u", "-m", "sklearn_ape", "serve", "--port", "0", *options]
        with subprocess.Popen(
            [*command, "--images", str(small_folder)], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
                with urllib.request.urlopen(url, timeout=60) as page:
                    assert b"sklearn-ape" in page.read()
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=60) == 0
            finally:
                process.kill()  # otherwise a page that does not stop would be awaited forever


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--captions", "filename", "--strict"), "Remove them, or leave out --strict."),
        (("--captions", "folder"), "--captions folder requires that all images are in"),
        ((), "are not used as captions. Pass --captions sidecar to use them."),
    ],
)
def test_messages_name_options(small_folder, run, tmp_path, arguments, message):
    """The messages for Python name parameters."""
    for image in [*small_folder.rglob("*.png")][:3]:
        image.with_suffix(".txt").write_text("0 0.5 0.5")  # an annotation of a box
    (small_folder / "broken.png").write_bytes(b"")
    result = run("fit", small_folder, "-o", tmp_path / "model", *arguments, code=1)
    assert message in result.stderr
    assert "='" not in result.stderr


def test_captions_lists_its_values(small_folder, run):
    """Python has the value None in place of "none"."""
    result = run("evaluate", small_folder, "--captions", "folders", code=2)
    assert "'folders' is not one of 'auto', 'sidecar'" in " ".join(result.stderr.split())
    assert "'none'" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("curate", "--labels", "animal,food", "-n", "5", "--captions", "filename"),
        ("evaluate",),
        ("fit", "-o", "model"),
    ],
)
def test_unknown_templates_raise_before_encoding(
    small_folder, run, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sklearn_ape.cli._models.encode_images", None)
    result = run(*command, small_folder, "--templates", "drawin", code=1)
    assert "--templates drawin is not a set of templates" in result.stderr


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("curate", "pairs.csv", "--labels", "cat", "-n", "1", "-o"), "pairs.csv"),
        (("curate", "pairs.csv", "--labels", "cat", "-n", "1", "--dropped"), "pairs.csv"),
        (("curate", "pairs.csv", "-n", "1", "--labels-file", "names.json", "-o"), "names.json"),
        (("evaluate", "pairs.csv", "--labels-file", "names.json", "-o"), "names.json"),
        (("classify", "a.png", "--labels-file", "names.json", "-o"), "names.json"),
        (("curate", ".", "--labels", "cat", "-n", "1", "-o"), "metadata.csv"),
        (("classify", ".", "--labels", "cat,dog", "-o"), "metadata.csv"),
        (("search", ".", "--query", "cat", "-o"), "metadata.csv"),
    ],
)
def test_output_does_not_replace_an_input(run, tmp_path, monkeypatch, command, name):
    """`curate pairs.csv -o pairs.csv` deleted all pairs that it did not select.

    In a folder of images, metadata.csv has their captions.
    """
    monkeypatch.chdir(tmp_path)
    pairs = "image,caption\na.png,a cat\n"
    contents = {"pairs.csv": pairs, "metadata.csv": pairs, "names.json": '["cat", "dog"]'}
    for file, content in contents.items():
        (tmp_path / file).write_text(content)
    result = run(*command, f"./{name}", code=2)
    assert f"'{name}' is an input" in result.stderr
    assert (tmp_path / name).read_text() == contents[name]


def test_folder_without_a_model_names_the_commands_that_write_one(small_folder, run):
    result = run("search", "--index", small_folder, "--query", "a cat", code=1)
    assert "that 'sklearn-ape fit' or 'sklearn-ape index' writes" in result.stderr


def test_texts_cannot_be_skipped(small_folder, run):
    """No option skips texts, such as those of a script that is not UTF-8."""
    result = run("search", small_folder, "--query", "K\udce4se", code=1)
    assert result.stderr.endswith("Remove lone surrogates.\nRemove them.\n")


def test_strict_explains_missing_images_of_a_table(run, tmp_path):
    """Parameters of Python are not options of commands."""
    table = tmp_path / "pairs.csv"
    table.write_text("image,caption\nmissing.png,a cat\n")
    result = run("fit", table, "-o", tmp_path / "model", "--strict", code=1)
    assert f"Relative paths refer to {str(tmp_path)!r}. Correct the paths" in result.stderr
    assert "in Python" in result.stderr


@pytest.fixture
def failing(small_folder, run, monkeypatch):
    """Run classify with a classifier that raises an error, and return the result."""

    def invoke(error):
        def predict_proba(*arguments):
            raise error

        monkeypatch.setattr(ZeroShotClassifier, "predict_proba", predict_proba)
        return run("classify", small_folder, "--labels", "cat,dog", "--quiet", code=1)

    return invoke


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FloatingPointError("The loss is nan. Lower learning_rate."), "Lower learning_rate."),
        (ValueError("labels repeat"), "labels repeat"),
        (ValueError("n_jobs must be -1. Pass cache=None."), "--n-jobs must be -1. Pass --cache m"),
        (ValueError("captions do not match"), "ape: captions do not match"),
        (ValueError("not in list_encoders()"), "not in 'sklearn-ape models'"),
        (ValueError("Pass labels={'a': 'b'}."), 'Pass --labels-file labels.json with {"a": "b"}.'),
        (OSError(28, "No space left on device", "a\x1b.npy"), r"'a\x1b.npy': No space left"),
        (ValueError("Their features are NaN; `errors_` lists all of them."), "They are skipped."),
        (OSError(28, "No space left on device"), "ape: No space left on device. Free some disk"),
        (torch.OutOfMemoryError("CUDA out of memory"), "Out of device memory"),
        (ValueError("red\x1b[31m\rback\u202e"), r"red\x1b[31m\rback\u202e"),
    ],
    ids=[
        "diverged",
        "value",
        "parameters",
        "captions",
        "encoders",
        "labels",
        "system",
        "skipped",
        "full disk",
        "device",
        "controls",
    ],
)
def test_user_errors_are_messages(failing, error, message):
    stderr = failing(error).stderr
    assert stderr.splitlines()[-1].startswith("sklearn-ape: ")
    assert message in stderr


def test_bug_prints_escaped_traceback(monkeypatch):
    def parse_labels(*arguments, **options):
        raise TypeError("red\x1b[31m")

    monkeypatch.setattr("sklearn_ape.cli.classify.parse_labels", parse_labels)
    result = CliRunner().invoke(app, ["classify", ".", "--labels", "a,b"])
    assert result.exit_code == 1
    assert "in parse_labels" in result.stderr
    assert "This is a bug" in result.stderr.splitlines()[-1]
    assert r"red\x1b[31m" in result.stderr


def test_messages_keep_line_ends(capsys):
    print_message("two\nlines\tand\x07")
    assert capsys.readouterr().err == "two\nlines\\tand\\x07\n"
