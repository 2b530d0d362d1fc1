"""Start-up time, pipes and Ctrl-C of commands in child processes."""

import os
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest

from sklearn_ape.cli import app
from sklearn_ape.features.feature_file import FeatureFile

COMMANDS = [command.callback.__name__ for command in app.registered_commands]


class TestHelp:
    @pytest.mark.parametrize("command", ["", "classify", "cache prune"])
    def test_help_does_not_import_heavy_packages(self, command):
        code = f"""
import sys
from sklearn_ape.cli import app
try:
    app([*"{command}".split(), "--help"])
except SystemExit as ended:
    assert ended.code == 0
heavy = ["torch", "sklearn", "skorch", "timm", "transformers", "pandas", "numpy", "PIL"]
print([name for name in heavy if name in sys.modules])
"""
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert result.stdout.rstrip().endswith("[]")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_of_command_has_example(self, command, run):
        assert f"Example: sklearn-ape {command}" in run(command, "--help").stdout

    @pytest.mark.parametrize("command", [*COMMANDS, "cache info"])
    def test_help_says_that_the_suffix_gives_the_format_if_there_is_one(self, command, run):
        """The file of `evaluate` is always JSON, and some commands write no file."""
        output = " ".join(run(*command.split(), "--help").stdout.split())
        assert ("by file suffix" in output) == (command in ("classify", "search", "curate"))

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_fits_on_a_screen(self, command, run):
        assert len(run(command, "--help").stdout.splitlines()) <= 60

    @pytest.mark.parametrize("group", [(), ("cache",)])
    def test_summaries_of_commands_are_not_truncated(self, group, run):
        _, _, summaries = run(*group, "--help").stdout.partition("Commands:")
        assert summaries
        assert "..." not in summaries

    def test_help_lists_all_commands(self, run):
        output = run("--help").stdout
        assert all(re.search(rf"\b{command}\b", output) for command in COMMANDS)
        assert run("--version").stdout.strip()

    def test_unknown_command_raises(self, run):
        assert "No such command" in run("demmo", code=2).stderr


class TestPipes:
    def test_closed_pipe_is_not_an_error(self):
        command = shlex.join([sys.executable, "-m", "sklearn_ape", "models"])
        result = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command} | true"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")

    def test_pipes_are_utf8(self, small_folder, shell):
        """The encoding of pipes on Windows made an error of the first such character."""
        environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
        arguments = ("search", small_folder, "--query", "猫", "-k", 1)
        result = shell(*arguments, encoding="utf-8", env=environment)
        assert result.stdout.splitlines()[1].startswith("猫,1,"), result.stderr

    @pytest.mark.parametrize("stream", [1, 2])
    def test_closed_stream(self, small_folder, tmp_path, stream):
        """Messages were written to the results, or the command failed after its work."""
        (small_folder / "notes.txt").write_text("no image")
        output = tmp_path / "results.csv"
        arguments = ("search", str(small_folder), "--query", "x", "-k", "1")
        command = shlex.join([sys.executable, "-m", "sklearn_ape", *arguments])
        command += f" -o {output} {stream}>&-" if stream == 1 else f" {stream}>&- >{output}"
        subprocess.run(["bash", "-c", command], check=True)
        assert output.read_text().startswith("query,rank,path,score\nx,1,")

    def test_results_and_progress_are_separate(self, small_folder, shell, tmp_path):
        (small_folder / "notes.txt").write_text("no image")
        result = shell(
            *(
                "classify",
                small_folder,
                "--labels",
                "an animal,food",
                "--cache",
                tmp_path / "cache",
            )
        )
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert lines[0] == "path,label,probability,error"
        assert len(lines) == 13
        assert "Skipped" in result.stderr
        assert "\x1b" not in result.stdout


class TestCtrlC:
    def test_ctrl_c_exits_with_130_and_message(self, small_folder):
        (small_folder / "notes.txt").write_text("no image")
        command = [
            sys.executable,
            "-m",
            "sklearn_ape",
            "classify",
            str(small_folder),
            "--labels",
            "a,b",
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert "Skipped" in process.stderr.readline()  # printed before the images are encoded
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
            assert process.wait() == 130
        assert "Interrupted" in said
        assert "Traceback" not in said

    def test_interrupted_encode_resumes(self, small_folder, run, tmp_path, monkeypatch):
        monkeypatch.setattr(sys.modules["sklearn_ape.cli.encode"], "_CHUNK", 4)
        out, write, written, again = tmp_path / "f.npy", FeatureFile.write, [], []

        def interrupted_at_the_last(file, number, *arguments):
            if number == 2 and not again:
                raise KeyboardInterrupt
            written.append(number)
            write(file, number, *arguments)

        monkeypatch.setattr(FeatureFile, "write", interrupted_at_the_last)
        result = run("encode", small_folder, "-o", out, code=130)
        assert f"Finished features are in '{out}.partial'" in result.stderr
        assert not out.exists()
        again.append(True)
        run("encode", small_folder, "-o", out)
        assert written == [0, 1, 2]
        assert np.isfinite(np.load(out)).all()
