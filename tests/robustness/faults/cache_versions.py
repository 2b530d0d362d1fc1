"""Group of faults: cache files of older, newer and other versions."""

import hashlib
import shutil
import sqlite3
import warnings
from pathlib import Path

import numpy as np

from sklearn_ape.features import DiskFeatureCache
from tests.features.conftest import WIDTH, make_entry
from tests.robustness.child_processes import expect, judge_in_child

FIXTURE = Path(__file__).parents[2] / "fixtures" / "cache_format_0" / "features.sqlite"
STORED = dict(make_entry(number) for number in range(12))  # entries of the fixture, in both types
NEW = dict(make_entry(number) for number in range(1000, 1003))
_TABLE = "(key BLOB PRIMARY KEY, value BLOB NOT NULL)"

# SQL statements that change a copy of the fixture as another version might do.
CHANGES = {
    "as it is": [],
    "no table of float16": ["DROP TABLE features_float16"],
    "a table more": ["CREATE TABLE provenance (key BLOB, source TEXT)"],
    "a column more": ["ALTER TABLE features ADD COLUMN written_at REAL"],
    "an index and a view": [
        "CREATE INDEX by_value ON features (value)",
        "CREATE VIEW all_keys AS SELECT key FROM features",
    ],
    "no table at all": ["DROP TABLE features", "DROP TABLE features_float16"],
    "a column that must be filled": [
        "ALTER TABLE features RENAME TO f",
        "CREATE TABLE features (key BLOB PRIMARY KEY, value BLOB NOT NULL, more BLOB NOT NULL)",
        "INSERT INTO features SELECT key, value, x'00' FROM f",
        "DROP TABLE f",
    ],
    "columns of other names": ["ALTER TABLE features RENAME COLUMN value TO numbers"],
    "a view of that name": [
        "ALTER TABLE features RENAME TO f",
        "CREATE VIEW features AS SELECT key, value FROM f",
    ],
    "without a key that is unique": [
        "ALTER TABLE features RENAME TO f",
        "CREATE TABLE features (key BLOB, value BLOB NOT NULL)",
        "INSERT INTO features SELECT key, value FROM f",
        "DROP TABLE f",
    ],
    "entries without a digest": ["UPDATE features SET value = substr(value, 17)"],
    "entries with a longer digest": ["UPDATE features SET value = x'0102030405060708' || value"],
    "numbers of float64": [f"UPDATE features SET value = x'{'00' * (8 * WIDTH)}'"],
    "entries exchanged": [
        "UPDATE features SET value = (SELECT g.value FROM features g WHERE g.key != features.key)"
    ],
    "float16 taken for float32": [
        "DROP TABLE features",
        "ALTER TABLE features_float16 RENAME TO features",
        f"CREATE TABLE features_float16 {_TABLE}",
    ],
    "keys of another version": ["UPDATE features SET key = substr(key, 1, 20)"],
    "keys as text": ["UPDATE features SET key = hex(key)"],
    "a journal of the older kind": ["PRAGMA journal_mode = DELETE"],
    "pages of another size": ["PRAGMA journal_mode = DELETE", "PRAGMA page_size = 4096", "VACUUM"],
    "a later format": ["PRAGMA user_version = 1"],
    "a later format, in another form": [
        "PRAGMA user_version = 7",
        "ALTER TABLE features RENAME COLUMN value TO numbers",
    ],
}
_LATER = ("a later format", "a later format, in another form")
_COMPATIBLE = (
    *("as it is", "no table of float16", "a table more", "an index and a view"),
    *("a journal of the older kind", "pages of another size"),
)


def _rows(path):
    """Return the digests of all rows of all tables in a file."""
    connection = sqlite3.connect(path)
    connection.text_factory = bytes
    names = [
        name.decode()
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    ]
    rows = {}
    for name in names:
        for row in connection.execute(f"SELECT * FROM {name}"):
            rows[hashlib.sha256(repr((name, row)).encode()).digest()] = name
    connection.close()
    return set(rows)


def _read_and_write(folder, dtype):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with DiskFeatureCache(folder, dtype) as cache:
            features = cache.get_many([*STORED, *NEW])
            cache.put_many(NEW)
        with DiskFeatureCache(folder, dtype) as cache:
            features_after_writing = cache.get_many([*STORED, *NEW])
    messages = [str(warning.message) for warning in caught]
    for key, feature in [*features.items(), *features_after_writing.items()]:
        expected = {**STORED, **NEW}[key].astype(dtype).astype(np.float32)
        expect(np.array_equal(feature, expected), "a wrong feature")
    return features, features_after_writing, messages


def _run_case(folder, change, dtype):
    folder.mkdir()
    path = folder / "features.sqlite"
    shutil.copy(FIXTURE, path)
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in CHANGES[change]:
        connection.execute(statement)
    connection.close()
    before = _rows(path)
    features, features_after_writing, messages = _read_and_write(folder, dtype)
    if change in _LATER:
        expect(
            not features_after_writing and all("newer version" in text for text in messages),
            f"{messages}",
        )
        expect(
            any("upgrade sklearn-ape" in text.lower() for text in messages),
            f"no remedy: {messages}",
        )
    else:
        expect(
            features_after_writing.keys() >= NEW.keys(),
            f"new features are not kept: {messages}",
            "lost",
        )
    if change in _COMPATIBLE:
        is_there = change != "no table of float16" or dtype == "float32"
        expect(features.keys() == STORED.keys() or not is_there, "not features", "lost")
        expect(not messages, f"{messages}")
    files = [path, *folder.glob("features.sqlite.damaged*")]
    rows = set().union(*map(_rows, files))
    expect(before <= rows, f"{len(before - rows)} rows are gone", "lost")
    return "error" if messages else "right"


def outcomes(folder, amount, inputs):
    for number, change in enumerate(CHANGES):
        for dtype in ("float32", "float16"):
            place = folder / f"{number} {dtype}"
            yield judge_in_child(
                f"a cache of {dtype}, {change}",
                lambda c=change, p=place, d=dtype: _run_case(p, c, d),
            )
