"""Information about a disk cache, its verification, and removal of features."""

import os
import re
import sqlite3
import subprocess
import sys
import time
from datetime import datetime

import numpy as np
import pytest

from sklearn_ape.features import DiskFeatureCache, _maintenance, _sqlite
from tests.features.conftest import ENTRIES, N_ENTRIES, WIDTH, assert_equal_to_entries

KEYS = list(ENTRIES)


def make_features(n, width, seed=0):
    rng = np.random.default_rng(seed)
    return {rng.bytes(32): rng.normal(size=width).astype(np.float32) for _ in range(n)}


def store(folder, features, dtype="float32"):
    with DiskFeatureCache(folder, dtype) as cache:
        cache.put_many(features)
    return cache


def load(folder, keys=KEYS):
    with DiskFeatureCache(folder) as cache:
        return cache.get_many(keys)


@pytest.mark.parametrize(
    "use", [lambda c: c.info(), lambda c: c.verify(), lambda c: c.prune(max_bytes=0)]
)
class TestFile:
    """Requirements on the file that all methods share."""

    def test_folder_without_cache_raises_and_stays_empty(self, use, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"is not a feature cache, because it has no"):
            use(DiskFeatureCache(tmp_path))
        assert not list(tmp_path.iterdir())

    def test_missing_folder_is_not_created(self, use, tmp_path):
        with pytest.raises(FileNotFoundError, match="Check the folder"):
            use(DiskFeatureCache(tmp_path / "missing"))
        assert not (tmp_path / "missing").exists()

    def test_file_of_newer_version_raises(self, use, folder):
        connection = sqlite3.connect(folder / "features.sqlite")
        connection.execute("PRAGMA user_version = 1")
        connection.close()
        content = (folder / "features.sqlite").read_bytes()
        with pytest.raises(OSError, match=r"format 1; this version supports 0.* Upgrade sklearn"):
            use(DiskFeatureCache(folder))
        assert (folder / "features.sqlite").read_bytes() == content

    def test_no_file_is_left_behind(self, use, folder):
        use(DiskFeatureCache(folder))
        assert [file.name for file in folder.iterdir()] == ["features.sqlite"]

    def test_empty_file_has_no_features(self, use, tmp_path):
        (tmp_path / "features.sqlite").touch()
        assert use(DiskFeatureCache(tmp_path)) is not None
        assert DiskFeatureCache(tmp_path).info().counts == {}


class TestInfo:
    def test_features_are_counted_by_type_and_dimension(self, folder):
        store(folder, make_features(5, 384), "float16")
        store(folder, make_features(7, 32))
        counts = DiskFeatureCache(folder).info().counts
        assert counts == {("float32", 32): 7, ("float32", WIDTH): 200, ("float16", 384): 5}

    def test_damaged_entry_is_counted_with_the_others(self, folder):
        """Its length gives no other dimension."""
        with sqlite3.connect(folder / "features.sqlite") as connection:
            value = b"\0" * (16 + 4 * WIDTH + 1)
            connection.execute("UPDATE features SET value = ? WHERE key = ?", (value, KEYS[3]))
        connection.close()
        assert DiskFeatureCache(folder).info().counts == {("float32", WIDTH): N_ENTRIES}

    @pytest.mark.parametrize("n_bytes", [0, 3, 16])
    def test_damaged_entry_without_features_is_not_counted(self, folder, n_bytes):
        """Its dimension was negative, because a value starts with a checksum of 16 bytes."""
        with sqlite3.connect(folder / "features.sqlite") as connection:
            value = b"\0" * n_bytes
            connection.execute("UPDATE features SET value = ? WHERE key = ?", (value, KEYS[3]))
        connection.close()
        assert DiskFeatureCache(folder).info().counts == {("float32", WIDTH): N_ENTRIES - 1}

    def test_size_and_time_are_those_of_the_file(self, folder):
        os.utime(folder / "features.sqlite", (1e9, 1e9))
        info = DiskFeatureCache(folder).info()
        assert info.n_bytes == (folder / "features.sqlite").stat().st_size
        assert info.last_change == datetime.fromtimestamp(1e9)

    @pytest.mark.skipif(sys.platform == "win32", reason="limits of Unix")
    def test_file_on_a_full_disk_can_be_inspected(self, folder):
        """SQLite cannot create the index of its log, without which it opens no file to write."""
        import resource

        expected = DiskFeatureCache(folder).info().counts
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        try:
            assert DiskFeatureCache(folder).info().counts == expected
            assert DiskFeatureCache(folder).verify() == (N_ENTRIES, 0, [])
            with pytest.raises(OSError, match="free some disk space"):
                DiskFeatureCache(folder).prune(max_bytes=0)
            (folder / "features.sqlite-wal").write_bytes(b"")
            assert DiskFeatureCache(folder).info().counts == expected
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    @pytest.mark.parametrize("inspect", [DiskFeatureCache.info, DiskFeatureCache.verify])
    def test_file_that_is_being_written_is_not_inspected(self, folder, monkeypatch, inspect):
        """It was read as on a full disk, although the other process was changing it."""
        monkeypatch.setattr(_sqlite, "_BUSY_TIMEOUT_S", 0.1)
        writer = sqlite3.connect(folder / "features.sqlite", isolation_level=None)
        writer.execute("PRAGMA locking_mode = EXCLUSIVE")
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OSError, match=r"database is locked\. Close other programs"):
            inspect(DiskFeatureCache(folder))
        writer.close()

    def test_log_of_a_linked_file_is_measured(self, folder, tmp_path):
        link = tmp_path / "link" / "features.sqlite"
        link.parent.mkdir()
        link.symlink_to(folder / "features.sqlite")
        with DiskFeatureCache(link.parent) as cache:
            cache.put_many(make_features(10, 5))
            assert cache.info().n_bytes == DiskFeatureCache(folder).info().n_bytes
            assert (folder / "features.sqlite-wal").stat().st_size > 0

    def test_other_files_are_exports_and_damaged_files(self, folder):
        (folder / "engines" / "a").mkdir(parents=True)
        (folder / "engines" / "a" / "model.xml").write_bytes(b"x" * 30)
        (folder / "features.sqlite.damaged-2").write_bytes(b"x" * 12)
        (folder / "unrelated").write_bytes(b"x" * 99)
        assert DiskFeatureCache(folder).info().n_other_bytes == 42

    def test_export_that_another_process_removes_is_not_counted(self, folder, monkeypatch):
        """FileNotFoundError was raised while another process replaced an exported network."""
        for name in "ab":
            (folder / "engines" / name).mkdir(parents=True)
            (folder / "engines" / name / "model.xml").write_bytes(b"x" * 30)
        scan = os.scandir

        def remove_and_scan(path):
            if os.fspath(path) == os.fspath(folder / "engines" / "a"):
                os.rename(path, folder / "removed")
            return scan(path)

        monkeypatch.setattr(os, "scandir", remove_and_scan)
        assert DiskFeatureCache(folder).info().n_other_bytes == 30

    def test_open_cache_can_be_inspected(self, folder):
        """The log of an open cache belongs to the size."""
        with DiskFeatureCache(folder) as cache:
            cache.put_many(make_features(50, 640))
            info = cache.info()
            assert info.n_bytes == sum(file.stat().st_size for file in folder.iterdir())
        assert info.counts["float32", 640] == 50

    def test_damaged_file_raises(self, folder):
        (folder / "features.sqlite").write_bytes(b"garbage " * 5000)
        with pytest.raises(OSError, match=r"is damaged: file is not a database\. Delete the file"):
            DiskFeatureCache(folder).info()


class TestVerify:
    def test_correct_cache_has_no_problems(self, folder):
        store(folder, make_features(5, 384), "float16")
        assert DiskFeatureCache(folder).verify() == (N_ENTRIES + 5, 0, [])

    @pytest.mark.parametrize("value", [b"short", "text", 5, b"\0" * (16 + 4 * WIDTH)])
    def test_damaged_entries_are_counted(self, folder, value):
        with sqlite3.connect(folder / "features.sqlite") as connection:
            connection.execute("UPDATE features SET value = ? WHERE key = ?", (value, KEYS[3]))
        connection.close()
        assert DiskFeatureCache(folder).verify()[:2] == (N_ENTRIES, 1)

    def test_entry_with_damaged_key_is_counted(self, folder):
        with sqlite3.connect(folder / "features.sqlite") as connection:
            connection.execute("UPDATE features SET key = 7 WHERE key = ?", (KEYS[3],))
        connection.close()
        assert DiskFeatureCache(folder).verify()[:2] == (N_ENTRIES, 1)

    @pytest.mark.parametrize(
        "content", [b"garbage " * 5000, b"SQLite format 3\0" + b"\xff" * 9000]
    )
    def test_unreadable_file_is_a_problem_and_is_not_changed(self, folder, content):
        (folder / "features.sqlite").write_bytes(content)
        report = DiskFeatureCache(folder).verify()
        assert report.n_features == 0
        assert report.problems == ["file is not a database"]
        assert (folder / "features.sqlite").read_bytes() == content
        assert [file.name for file in folder.iterdir()] == ["features.sqlite"]

    def test_name_that_is_not_utf8_can_be_reported(self, folder):
        with sqlite3.connect(folder / "features.sqlite") as connection:
            connection.execute("CREATE TABLE otherX (value         )")
            connection.execute("INSERT INTO otherX VALUES (NULL)")
        connection.close()
        path = folder / "features.sqlite"
        content = path.read_bytes().replace(b"otherX", b"other\xff")
        path.write_bytes(content.replace(b"value         )", b"value NOT NULL)"))
        report = DiskFeatureCache(folder).verify()
        assert report == (N_ENTRIES, 0, ["NULL value in other\N{REPLACEMENT CHARACTER}.value"])

    def test_problems_of_entries_and_of_the_structure_are_reported(self, folder):
        path = folder / "features.sqlite"
        content = bytearray(path.read_bytes())
        content[9 - 16384] ^= 255  # the position of the first entry of the last page
        path.write_bytes(content)
        first, *others = DiskFeatureCache(folder).verify().problems
        assert first == "database disk image is malformed"
        assert others

    @pytest.mark.exhaustive
    def test_every_flipped_byte_that_loses_a_feature_is_reported(self, folder):
        path = folder / "features.sqlite"
        content = path.read_bytes()
        rng = np.random.default_rng(0)
        n_reported = 0
        for offset in [*range(16, 100, 4), *rng.integers(len(content), size=60)]:
            damaged = bytearray(content)
            damaged[offset] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            try:
                report = DiskFeatureCache(folder).verify()
                is_reported = bool(report.n_damaged or report.problems)
            except OSError as error:
                is_reported = "Upgrade sklearn-ape" in str(error)  # a flipped format number
            n_reported += is_reported
            if not is_reported:
                features = load(folder)
                assert features.keys() == ENTRIES.keys(), offset
                assert_equal_to_entries(features)
            for file in folder.iterdir():
                file.unlink()
        assert n_reported > 20


class TestPrune:
    @pytest.mark.parametrize("share", [0.8, 0.5, 0.1])
    def test_oldest_features_are_removed_and_space_is_given_back(self, tmp_path, share):
        features = make_features(600, 1280)
        for start in range(0, 600, 100):
            store(tmp_path, dict(list(features.items())[start : start + 100]))
        cache = DiskFeatureCache(tmp_path)
        max_bytes = int(share * cache.path.stat().st_size)
        n_removed = cache.prune(max_bytes)
        assert 0.9 * max_bytes < cache.info().n_bytes <= max_bytes
        stored = load(tmp_path, features)
        # The features of a transaction are stored in the order of their keys.
        keys = list(features)
        in_order = [key for i in range(0, 600, 100) for key in sorted(keys[i : i + 100])]
        assert stored.keys() == set(in_order[n_removed:])
        for key, feature in stored.items():
            np.testing.assert_array_equal(feature, features[key])
        assert cache.verify() == (600 - n_removed, 0, [])

    def test_features_stored_again_are_newest(self, folder):
        """A file can be pruned again, because VACUUM keeps the order of rows."""
        store(folder, {key: ENTRIES[key] for key in KEYS[:50]})
        store(folder, make_features(300, 640))
        for max_bytes in (700_000, 500_000, 300_000):
            DiskFeatureCache(folder).prune(max_bytes)
        stored = load(folder)
        assert stored.keys() <= set(KEYS[:50])

    def test_mixed_dimensions_and_types_are_pruned_to_the_size(self, tmp_path):
        """SQLite's overhead depends on the dimension, so one round is not exact."""
        store(tmp_path, make_features(3000, 8))
        store(tmp_path, make_features(100, 2500, seed=1))
        store(tmp_path, make_features(500, 384, seed=2), "float16")
        cache = DiskFeatureCache(tmp_path)
        n_features = sum(cache.info().counts.values())
        n_removed = cache.prune(600_000)
        assert 400_000 < cache.info().n_bytes <= 600_000
        assert cache.verify() == (n_features - n_removed, 0, [])

    def test_size_zero_removes_all_features(self, folder):
        cache = DiskFeatureCache(folder)
        assert cache.prune(0) == N_ENTRIES
        assert cache.info().counts == {}
        assert cache.info().n_bytes < 100_000

    def test_smaller_cache_is_not_changed(self, folder):
        cache = DiskFeatureCache(folder)
        content = cache.path.read_bytes()
        assert cache.prune(len(content)) == 0
        assert cache.path.read_bytes() == content

    def test_features_of_a_dimension_are_removed(self, folder):
        store(folder, make_features(20, 384), "float16")
        store(folder, make_features(30, 384))
        cache = DiskFeatureCache(folder)
        n_bytes = cache.info().n_bytes
        assert cache.prune(dimension=384) == 50
        store(folder, make_features(2, 1))
        assert cache.prune(dimension=1) == 2
        assert cache.info().counts == {("float32", WIDTH): N_ENTRIES}
        assert cache.info().n_bytes < n_bytes
        assert_equal_to_entries(load(folder))

    def test_dimension_and_size_can_be_combined(self, folder):
        store(folder, make_features(30, 384))
        cache = DiskFeatureCache(folder)
        assert cache.prune(0, dimension=384) == 30 + N_ENTRIES

    def test_removed_dimension_makes_room_for_the_others(self, folder):
        """Pages that the removal leaves free do not count to the size."""
        n_bytes = DiskFeatureCache(folder).info().n_bytes
        store(folder, make_features(30, 384))
        cache = DiskFeatureCache(folder)
        assert cache.prune(n_bytes, dimension=384) == 30
        assert cache.info().counts == {("float32", WIDTH): N_ENTRIES}

    def test_only_features_that_stay_are_copied(self, tmp_path, monkeypatch):
        """VACUUM needs as much free space on the disk as the rest of the file."""
        cache = store(tmp_path, make_features(500, 512) | make_features(500, 128, seed=1))
        sizes = []

        def shrink(connection, path):
            n_pages, n_free_pages, page_size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
            sizes.append((n_pages - n_free_pages) * page_size)

        monkeypatch.setattr(_maintenance, "_shrink", shrink)
        cache.prune(100_000, dimension=128)
        assert sizes[0] < 200_000

    def test_neither_size_nor_dimension_raises(self, folder):
        with pytest.raises(ValueError, match="max_bytes and dimension are both None"):
            DiskFeatureCache(folder).prune()

    @pytest.mark.parametrize(
        "options", [{"max_bytes": -1}, {"max_bytes": "2GB"}, {"dimension": "3"}, {"dimension": 0}]
    )
    def test_invalid_parameters_remove_nothing(self, folder, options):
        """A size of -1, which means no limit elsewhere, removed all features."""
        with pytest.raises(ValueError, match=f"^{next(iter(options))} must be None or a"):
            DiskFeatureCache(folder).prune(**options)
        assert DiskFeatureCache(folder).verify().n_features == N_ENTRIES

    def test_space_of_an_interrupted_run_is_given_back(self, folder):
        """If a run is killed after the removal, the next run shrinks the file."""
        store(folder, make_features(100, 1280))
        cache = DiskFeatureCache(folder)
        n_bytes = cache.info().n_bytes
        with sqlite3.connect(cache.path) as connection:
            connection.execute("DELETE FROM features WHERE LENGTH(value) > 4000")
        connection.close()
        assert cache.info().n_bytes == n_bytes
        assert cache.prune(dimension=999) == 0
        assert cache.info().n_bytes < n_bytes - 500_000

    def test_read_only_file_raises(self, folder, monkeypatch):
        """Root may write to all files, so the permission is simulated."""
        monkeypatch.setattr(_sqlite, "is_read_only", lambda path: True)
        with pytest.raises(PermissionError, match=r"is not writable\. Change its permissions"):
            DiskFeatureCache(folder).prune(0)
        assert load(folder).keys() == ENTRIES.keys()

    def test_damaged_file_raises(self, folder):
        content = b"garbage " * 5000
        (folder / "features.sqlite").write_bytes(content)
        with pytest.raises(OSError, match="is damaged"):
            DiskFeatureCache(folder).prune(0)
        assert (folder / "features.sqlite").read_bytes() == content


class TestOtherProcesses:
    def test_locked_file_raises_and_no_feature_is_removed(self, folder, monkeypatch):
        monkeypatch.setattr(_sqlite, "_BUSY_TIMEOUT_S", 0.1)
        writer = sqlite3.connect(folder / "features.sqlite")
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(OSError, match=r"database is locked\. Close other programs"):
            DiskFeatureCache(folder).prune(0)
        writer.close()
        assert load(folder).keys() == ENTRIES.keys()

    def test_reader_delays_shrinking_with_a_warning(self, folder, monkeypatch):
        monkeypatch.setattr(_sqlite, "_BUSY_TIMEOUT_S", 0.1)
        store(folder, make_features(100, 1280))
        cache = DiskFeatureCache(folder)
        n_bytes = cache.path.stat().st_size
        reader = sqlite3.connect(cache.path)
        rows = reader.execute("SELECT key, value FROM features ORDER BY rowid")
        first = rows.fetchone()
        with pytest.warns(RuntimeWarning, match=r"sqlite' is read by another process"):
            assert cache.prune(dimension=1280) == 100
        assert len([first, *rows]) == N_ENTRIES + 100  # the reader sees the state of its start
        reader.close()
        assert cache.info().n_bytes < n_bytes - 500_000
        assert cache.verify() == (N_ENTRIES, 0, [])

    def test_cache_is_pruned_while_another_process_writes_and_reads(self, folder):
        code = f"""
import itertools, numpy as np
from sklearn_ape.features import DiskFeatureCache
with DiskFeatureCache({str(folder)!r}) as cache:
    for number in itertools.count():
        features = {{
            b"%d %d" % (number, row): np.full(640, number, dtype=np.float32) for row in range(50)
        }}
        cache.put_many(features)
        for key, feature in cache.get_many(features).items():
            assert (feature == number).all()
        print(number, flush=True)
"""
        command = [sys.executable, "-W", "error", "-c", code]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as writer:
            try:
                assert writer.stdout.readline() == "0\n"
                cache, n_removed, end = DiskFeatureCache(folder), 0, time.monotonic() + 60
                while n_removed < 2000 and time.monotonic() < end:
                    n_removed += cache.prune(300_000)
                    report = cache.verify()
                    assert (report.n_damaged, report.problems) == (0, [])
                assert writer.poll() is None, writer.stderr.read()
            finally:
                writer.kill()
        assert n_removed >= 2000
        n_left = sum(cache.info().counts.values())
        assert cache.verify() == (n_left, 0, [])


def test_documented_size_of_an_empty_cache(tmp_path):
    (n_kilobytes,) = map(int, re.findall(r"about (\d+) kB", DiskFeatureCache.prune.__doc__))
    store(tmp_path, make_features(3, 8))
    cache = store(tmp_path, make_features(3, 8), "float16")
    cache.prune(0)
    assert cache.info().n_bytes == pytest.approx(n_kilobytes * 1000, rel=0.1)
