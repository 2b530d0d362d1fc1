"""One csv file that holds every measurement, appended to as soon as it is there."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS = (
    "table", "fit", "setting", "seed", "method", "test", "scores", "step", "n_pairs",
    "i2t@1", "i2t@5", "t2i@1", "t2i@5", "score", "spread",
    "seconds", "parameters", "epochs", "peak_mb", "added_mb", "note",
)  # fmt: skip
Key = tuple[str, str, int]


class Results:
    """Rows of a csv file; the rows of one fit are written in one go.

    Parameters
    ----------
    file : Path
        Made with its folder when the first rows come.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, str]] = []
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]  # what a kill cut off is run again
            if whole != text:
                file.write_text(whole, encoding="utf-8")
            self.rows = list(csv.DictReader(io.StringIO(whole)))

    def done(self) -> set[Key]:
        """Return the fits that have rows."""
        return {(row["fit"], row["setting"], int(row["seed"])) for row in self.rows}

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows and see them to the disk."""
        rows = [{key: str(row.get(key, "")) for key in COLUMNS} for row in rows]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8", newline="") as stream:
            stream.write(_text(rows, header=not self.file.stat().st_size))
            stream.flush()
            os.fsync(stream.fileno())
        self.rows += rows

    def forget(self, fits: Iterable[str]) -> None:
        """Take the rows of some methods out, so that they are run again."""
        fits = set(fits)
        unknown = fits - {row["fit"] for row in self.rows}
        if unknown:
            raise ValueError(f"There are no rows of {', '.join(sorted(unknown))}.")
        self.rows = [row for row in self.rows if row["fit"] not in fits]
        new = self.file.with_suffix(".tmp")
        new.write_text(_text(self.rows, header=True), encoding="utf-8")
        os.replace(new, self.file)


def _text(rows: list[dict[str, str]], header: bool) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
