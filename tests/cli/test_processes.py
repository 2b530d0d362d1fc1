"""What only a process of its own shows: start-up, pipes, Ctrl-C; and what a killed run keeps."""

import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest

from sklearn_ape.features.feature_file import FeatureFile

COMMANDS = (
    *("demo", "fit", "classify", "search", "index", "evaluate", "encode", "curate"),
    *("models", "serve"),
)


class TestHelp:
    def test_starts_without_what_is_heavy(self):
        code = """
import sys
from sklearn_ape.cli import app
try:
    app(["classify", "--help"])
except SystemExit as ended:
    assert ended.code == 0
print([name for name in ("torch", "sklearn", "numpy", "PIL") if name in sys.modules])
"""
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert result.stdout.rstrip().endswith("[]")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_has_an_example_of_every_command(self, command, run):
        assert f"Example: sklearn-ape {command}" in run(command, "--help").stdout

    def test_help_of_every_command(self, run):
        shown = run("--help").stdout
        assert all(re.search(rf"\b{command}\b", shown) for command in COMMANDS)
        assert run("--version").stdout.strip()

    def test_unknown_command(self, run):
        assert "No such command" in run("demmo", code=2).stderr


class TestPipes:
    def test_a_reader_that_goes_away_is_no_error(self):
        command = shlex.join([sys.executable, "-m", "sklearn_ape", "models"])
        result = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command} | true"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")

    def test_results_and_progress_do_not_mix(self, few, shell, tmp_path):
        (few / "notes.txt").write_text("no image")
        result = shell(
            *("classify", few, "--labels", "an animal,food", "--cache", tmp_path / "cache")
        )
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert lines[0] == "path,label,probability,error"
        assert len(lines) == 13
        assert "Passed over" in result.stderr
        assert "\x1b" not in result.stdout


class TestCtrlC:
    def test_ends_with_130_and_a_line(self, few):
        (few / "notes.txt").write_text("no image")
        command = [sys.executable, "-m", "sklearn_ape", "classify", str(few), "--labels", "a,b"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert "Passed over" in process.stderr.readline()  # the work begins
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
            assert process.wait() == 130
        assert "Interrupted" in said
        assert "Traceback" not in said

    def test_encode_goes_on_where_it_was(self, few, run, tmp_path, monkeypatch):
        monkeypatch.setattr(sys.modules["sklearn_ape.cli.encode"], "_CHUNK", 4)
        out, write, written, again = tmp_path / "f.npy", FeatureFile.write, [], []

        def interrupted_at_the_last(file, number, *arguments):
            if number == 2 and not again:
                raise KeyboardInterrupt
            written.append(number)
            write(file, number, *arguments)

        monkeypatch.setattr(FeatureFile, "write", interrupted_at_the_last)
        result = run("encode", few, "-o", out, code=130)
        assert f"What is finished is in '{out}.partial'" in result.stderr
        assert not out.exists()
        again.append(True)
        run("encode", few, "-o", out)
        assert written == [0, 1, 2]
        assert np.isfinite(np.load(out)).all()
