"""Tests that docs/conventions.md refers to."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8")
BODY, LIST = PAGE.split("\n## Tests\n")
ROWS = [line for line in BODY.splitlines() if line.startswith("| ")]
ITEMS = re.findall(r"^(\d+)\. (.*(?:\n {3,}.*)*)", LIST, re.MULTILINE)
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def test_every_row_of_the_page_names_a_test():
    numbers = [int(match[1]) for row in ROWS if (match := re.match(r"\| (\d+) \|", row))]
    assert len(numbers) == len(ROWS) - 2  # without the two header rows
    assert numbers == list(range(1, len(numbers) + 1))
    assert [int(number) for number, tests in ITEMS if "::" in tests] == numbers
    pitfalls = BODY.split("\n## Pitfalls")[1]
    assert len(re.findall(r"^\| \d+ \|", pitfalls, re.MULTILINE)) == 10


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_named_test_exists(file, name):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^ *def {name}\(", text, re.MULTILINE)
