"""Entries of the disk cache: their checksums, damaged entries and those of previous versions."""

import hashlib
import itertools
import zlib

import numpy as np
import pytest

from sklearn_ape.features import DiskFeatureCache
from sklearn_ape.features._sqlite import FLOAT16_TABLE, FLOAT32_TABLE, pack, unpack
from tests.features.conftest import ENTRIES, WIDTH, assert_equal_to_entries

TABLES = {FLOAT32_TABLE: np.float32, FLOAT16_TABLE: np.float16}
KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def pack_one(numbers, key=KEY, table=FLOAT32_TABLE):
    return pack(table, {key: numbers.astype(TABLES[table]).tobytes()})[key]


def pack_old(key, numbers, table=FLOAT32_TABLE):
    """Return an entry as previous versions wrote it."""
    person = b"" if table == FLOAT32_TABLE else table.encode()
    numbers = numbers.astype(TABLES[table]).tobytes()
    return hashlib.blake2b(key + numbers, digest_size=16, person=person).digest() + numbers


def unpack_dict(entries, table=FLOAT32_TABLE):
    blocks = unpack(table, entries)
    return {key: row for keys, block in blocks for key, row in zip(keys, block, strict=True)}


def flip(value, *bits):
    numbers = int.from_bytes(value, "little")
    for bit in bits:
        numbers ^= 1 << bit
    return numbers.to_bytes(len(value), "little")


def is_detected(value, key=KEY):
    """Return whether an entry counts as damaged, alone and between valid entries."""
    valid = [(bytes([i]) * 32, pack_one(np.ones(8), bytes([i]) * 32)) for i in range(2)]
    results = unpack_dict([valid[0], (key, value), valid[1]])
    assert results.keys() - {key} == {key for key, _ in valid}
    assert (key in results) == bool(unpack_dict([(key, value)]))
    return key not in results


@pytest.fixture(params=["new", "old"])
def value(request):
    numbers = np.random.default_rng(0).normal(size=8).astype(np.float32)
    return pack_one(numbers) if request.param == "new" else pack_old(KEY, numbers)


class TestDamage:
    def test_undamaged_entry_is_returned(self, value):
        assert not is_detected(value)

    def test_every_flipped_bit_is_detected(self, value):
        assert all(is_detected(flip(value, bit)) for bit in range(8 * len(value)))

    def test_every_flipped_bit_of_the_key_is_detected(self, value):
        assert all(is_detected(value, flip(KEY, bit)) for bit in range(8 * len(KEY)))

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("bit", [0, 15, 22, 31])
    def test_same_bit_of_two_numbers_is_detected(self, bit):
        """Flips of the sign are lost in sums whose words are as long as the sum."""
        entry = pack_one(np.random.default_rng(0).normal(size=256))
        for first, second in itertools.combinations(range(256), 2):
            damaged = flip(entry, 128 + 32 * first + bit, 128 + 32 * second + bit)
            assert not unpack(FLOAT32_TABLE, [(KEY, damaged)])[0][0]

    def test_random_damage_is_detected(self, value):
        rng = np.random.default_rng(0)
        for _ in range(200):
            damaged = bytearray(value)
            start, end = sorted(rng.integers(len(value) + 1, size=2))
            damaged[start:end] = rng.bytes(end - start)
            assert bytes(damaged) == value or is_detected(bytes(damaged))

    def test_moved_numbers_are_detected(self, value):
        checksum, numbers = value[:16], value[16:]
        moved = [numbers[16:] + numbers[:16], numbers[4:8] + numbers[:4] + numbers[8:]]
        moved += [numbers[k:] + numbers[:k] for k in range(1, len(numbers))]
        for damaged in moved:
            assert is_detected(checksum + damaged)

    @pytest.mark.parametrize("numbers", [np.ones(8), np.zeros(8), np.r_[1.0, np.zeros(7)]])
    def test_changed_length_is_detected(self, numbers):
        """Zeros that are lost or added do not change the sum of the numbers."""
        entry = pack_one(numbers)
        assert all(is_detected(entry[:length]) for length in range(len(entry)))
        assert all(is_detected(entry + bytes(n)) for n in range(1, 40))

    def test_zeros_are_detected(self):
        assert all(is_detected(bytes(length)) for length in range(80))

    def test_exchanged_entries_are_detected(self, value):
        other = pack_one(np.random.default_rng(1).normal(size=8), OTHER_KEY)
        assert is_detected(other)
        assert is_detected(value, OTHER_KEY)
        assert is_detected(value[:16] + other[16:])
        assert is_detected(value[:8] + other[8:])
        assert is_detected(other[:8] + value[8:])

    @pytest.mark.parametrize("damaged", [b"", b"short", 7, 2.5, None, "text"])
    def test_value_or_key_of_another_type_is_skipped(self, damaged):
        assert is_detected(damaged)
        assert unpack_dict([(damaged, pack_one(np.ones(8)))]) == {}


@pytest.mark.parametrize("table", TABLES)
class TestFormat:
    @pytest.mark.parametrize("width", [0, 1, 2, 3, 5, 1280])
    def test_entry_is_checksum_and_numbers(self, table, width):
        """The checksum is a part of the format of the file, so it must not change."""
        numbers = np.random.default_rng(width).normal(size=width).astype(TABLES[table]).tobytes()
        words = np.frombuffer(numbers + bytes(-len(numbers) % 4), "<u4").tolist()
        weights = hashlib.shake_128(b"sklearn_ape").digest(8 * len(words))
        weights = [int(weight) | 1 for weight in np.frombuffer(weights, "<u8")]
        tag = zlib.crc32(b"key", zlib.crc32(table.encode())) + (len(numbers) << 32)
        total = (sum(a * b for a, b in zip(weights, words, strict=True)) + tag) % 2**64
        expected = total.to_bytes(8, "little") + tag.to_bytes(8, "little") + numbers
        assert pack(table, {b"key": numbers}) == {b"key": expected}

    def test_entries_of_previous_versions_are_read(self, table):
        numbers = np.float32([1, 2, 3])
        value = pack_old(KEY, numbers, table)
        np.testing.assert_array_equal(unpack_dict([(KEY, value)], table)[KEY], numbers)

    def test_previous_versions_treat_entries_as_damaged(self, table):
        """They compare the start of an entry with their own checksum."""
        numbers = np.float32([1, 2, 3])
        assert pack_one(numbers, table=table)[:16] != pack_old(KEY, numbers, table)[:16]

    def test_entry_of_the_other_table_is_damaged(self, table):
        (other,) = TABLES.keys() - {table}
        for value in (pack_one(np.ones(4), table=table), pack_old(KEY, np.ones(4), table)):
            assert unpack_dict([(KEY, value)], table).keys() == {KEY}
            assert unpack_dict([(KEY, value)], other) == {}

    def test_one_block_per_dimension(self, table):
        features = {bytes([i]): np.arange(i % 3, dtype=np.float32) for i in range(9)}
        values = pack(table, {k: f.astype(TABLES[table]).tobytes() for k, f in features.items()})
        assert values.keys() == features.keys()
        blocks = unpack(table, values.items())
        assert [block.shape for _, block in blocks] == [(3, 0), (3, 1), (3, 2)]
        for key, feature in unpack_dict(values.items(), table).items():
            assert feature.dtype == np.float32
            np.testing.assert_array_equal(feature, features[key])


def test_file_with_old_and_new_entries(tmp_path):
    """Old entries are read, verified and replaced like new ones."""
    keys = list(ENTRIES)
    with DiskFeatureCache(tmp_path) as cache:
        cache.put_many({key: ENTRIES[key] for key in keys[::2]})
        cache._write()
        old = [(key, pack_old(key, ENTRIES[key])) for key in keys[1::2]]
        old[0] = (old[0][0], flip(old[0][1], 200))
        with cache._connection as transaction:
            transaction.executemany("INSERT INTO features VALUES (?, ?)", old)
        features = cache.get_many(keys)
        assert features.keys() == ENTRIES.keys() - {keys[1]}
        assert_equal_to_entries(features)
        assert cache.info().counts == {("float32", WIDTH): len(keys)}
        assert cache.verify() == (len(keys), 1, [])
        cache.put_many(ENTRIES)
    assert cache.verify() == (len(keys), 0, [])


def test_damaged_entry_does_not_hide_other_entries(folder):
    with DiskFeatureCache(folder) as cache:
        rows = cache._connection.execute("SELECT key, value FROM features").fetchall()
    (first, value), *others = rows
    for damaged in (value[:-1], value[:-4], value[:16], b"\0" + value[1:]):
        features = unpack_dict([(first, damaged), *others])
        assert features.keys() == ENTRIES.keys() - {first}
        assert_equal_to_entries(features)
