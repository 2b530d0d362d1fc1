"""Commands in the documentation, and the scripts for newcomers."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sklearn_ape import load_pretrained
from tests.cli.conftest import named

ROOT = Path(__file__).parents[2]
PAGES = {"docs/command_line.md": "", "README.md": "## Your own images"}
NUMBER = re.compile(r"-?\d+\.\d+")


def commands(page):
    """Return the commands of a page or section with their documented output."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if PAGES[page]:
        text = text.partition(PAGES[page])[2].partition("\n## ")[0]
    return [
        (command, output)
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)
        for command, output in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE)
    ]


@pytest.fixture
def at_photos(photos, captioned_images, tmp_path, monkeypatch):
    """Change to a folder with photos/ and, with other images, new_photos/."""
    shutil.copytree(photos, tmp_path / "photos")
    for row in range(60, 120):
        target = (
            tmp_path
            / "new_photos"
            / captioned_images.categories[row]
            / named(captioned_images.captions[row])
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(captioned_images.images[row], target)
    monkeypatch.chdir(tmp_path)


def output_of(run, command):
    """Return the output of a command; the only supported pipe is `| head -N`."""
    command, _, head = command.partition(" | head -")
    lines = run(*shlex.split(command)[1:]).stdout.splitlines()
    return lines[: int(head)] if head else lines


@pytest.mark.parametrize("page", PAGES)
def test_documented_commands_print_documented_output(page, run, at_photos):
    shown_there = commands(page)
    assert len(shown_there) > 1
    for command, shown in shown_there:
        found = output_of(run, command)
        expected = shown.rstrip().splitlines()
        # The last digits depend on the engine and the processor.
        assert [NUMBER.sub("#", line) for line in found] == [
            NUMBER.sub("#", line) for line in expected
        ], command
        for line, other in zip(found, expected, strict=True):
            numbers = [float(number) for number in NUMBER.findall(line)]
            assert numbers == pytest.approx([float(n) for n in NUMBER.findall(other)], abs=0.1)


class TestNewcomer:
    """Scripts from the installation to a saved classifier, in at most ten lines."""

    @pytest.mark.parametrize("name", ["newcomer.py", "newcomer.sh"])
    def test_newcomer_script_has_ten_lines(self, name):
        text = (ROOT / "examples" / name).read_text(encoding="utf-8")
        text = re.sub(r'"""(.*?)"""', "", text, flags=re.DOTALL)
        lines = [line for line in text.splitlines() if line.strip() and line[0] != "#"]
        assert len(lines) <= 10 - name.endswith(".py")  # and a line for pip

    def test_newcomer_python_script_runs(self, at_photos, capsys):
        runpy.run_path(str(ROOT / "examples" / "newcomer.py"))
        assert "an animal" in capsys.readouterr().out
        assert load_pretrained("my-classifier").labels == ["an animal", "food", "a vehicle"]

    def test_newcomer_shell_script_runs(self, at_photos, tmp_path):
        """The script runs in a shell; only pip is replaced, so that this checkout is tested."""
        tools = tmp_path / "bin"
        tools.mkdir()
        for name, line in (
            ("pip", f'echo "$@" > {shlex.quote(str(tmp_path / "pip"))}'),
            ("sklearn-ape", f'exec {shlex.quote(sys.executable)} -m sklearn_ape "$@"'),
        ):
            (tools / name).write_text(f"#!/bin/sh\n{line}\n")
            (tools / name).chmod(0o755)
        path = os.pathsep.join([str(tools), os.environ["PATH"]])
        result = subprocess.run(
            ["sh", ROOT / "examples" / "newcomer.sh"],
            env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "pip").read_text() == "install .[starter]\n"
        assert len((tmp_path / "names.csv").read_text().splitlines()) == 61
        assert result.stdout.count("something to eat") == 3
        assert load_pretrained("my-classifier").labels == ["an animal", "food", "a vehicle"]
