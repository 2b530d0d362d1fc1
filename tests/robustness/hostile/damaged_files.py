"""Truncated files and files with flipped bits."""

import struct
from functools import cache

import numpy as np

from tests.robustness.hostile.cases import Case, as_bytes, base_image, decode_with_pillow


@cache
def undamaged_files():
    """Return the bytes of one image in every tested format and variant."""
    rgb = base_image()
    rgba = rgb.copy()
    rgba.putalpha(rgb.getchannel("R"))
    return {
        "png": as_bytes(rgb, "PNG"),
        "png-rgba": as_bytes(rgba, "PNG"),
        "png-palette": as_bytes(rgb.quantize(16), "PNG"),
        "jpeg": as_bytes(rgb, "JPEG"),
        "jpeg-progressive": as_bytes(rgb, "JPEG", progressive=True),
        "gif": as_bytes(rgb.quantize(64), "GIF"),
        "gif-animated": as_bytes(
            rgb.quantize(16), "GIF", save_all=True, append_images=[rgb.rotate(180).quantize(16)]
        ),
        "webp": as_bytes(rgb, "WEBP"),
        "webp-lossless": as_bytes(rgba, "WEBP", lossless=True),
        "tiff": as_bytes(rgb, "TIFF"),
        "tiff-lzw": as_bytes(rgb, "TIFF", compression="tiff_lzw"),
        "bmp": as_bytes(rgb, "BMP"),
        "bmp-palette": as_bytes(rgb.quantize(16), "BMP"),
    }


def boundaries(name, data):
    """Return the offsets at which parts of a file start."""
    walk = {"png": _png, "jpe": _jpeg, "gif": _gif, "web": _riff, "tif": _tiff, "bmp": _bmp}
    return sorted(offset for offset in set(walk[name[:3]](data)) if 0 < offset < len(data))


def _png(data):
    offset, offsets = 8, [1, 8]
    while offset < len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        offsets += [offset + 4, offset + 8, offset + 8 + length, offset + 12 + length]
        offset += 12 + length
    return offsets


def _jpeg(data):
    offset, offsets = 2, [1, 2]
    while data[offset + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, offset + 2)
        offsets += [offset + 1, offset + 2, offset + 4, offset + 2 + length]
        offset += 2 + length
    (length,) = struct.unpack_from(">H", data, offset + 2)
    return [*offsets, offset + 2 + length, len(data) - 2, len(data) - 1]


def _gif(data):
    table = 3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 0
    offset, offsets = 13 + table, [3, 6, 10, 13, 13 + table]
    while data[offset] != 0x3B:
        if data[offset] == 0x21:
            offset += 2
        else:
            flags = data[offset + 9]
            offset += 11 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
        offsets.append(offset)
        while data[offset]:
            offset += 1 + data[offset]
            offsets.append(offset)
        offset += 1
        offsets.append(offset)
    return offsets


def _riff(data):
    offset, offsets = 12, [4, 8, 12]
    while offset < len(data):
        (length,) = struct.unpack_from("<I", data, offset + 4)
        offsets += [offset + 4, offset + 8, offset + 18]
        offset += 8 + length + length % 2
    return [*offsets, len(data) - 1]


def _tiff(data):
    (offset,) = struct.unpack_from("<I", data, 4)
    (n_entries,) = struct.unpack_from("<H", data, offset)
    entries = [offset + 2 + 12 * entry for entry in range(n_entries + 1)]
    return [2, 4, 8, offset, *entries, len(data) - 1]


def _bmp(data):
    (start,) = struct.unpack_from("<I", data, 10)
    return [2, 6, 10, 14, 18, 26, 54, start, len(data) - 1]


def cut_files(n_more=4):
    """Yield files truncated at each boundary and between; the result is all pixels or an error."""
    for name, data in undamaged_files().items():
        pixels = decode_with_pillow(data)
        grid = np.linspace(0, len(data), n_more + 2).astype(int)[1:-1].tolist()
        for offset in sorted({*boundaries(name, data), *grid}):
            yield Case(f"{name} cut at {offset} of {len(data)}", data[:offset], "either", pixels)


def flipped_files(n_each=8, seed=0):
    """Yield files with one or several flipped bits."""
    rng = np.random.default_rng(seed)
    for name, data in undamaged_files().items():
        head = max(boundaries(name, data)[:-1], default=len(data))
        for number in range(n_each):
            damaged = bytearray(data)
            end = min(head, len(data)) if number % 2 else len(data)
            offsets = rng.integers(0, end, 1 + 3 * (number % 4 == 3)).tolist()
            for offset in offsets:
                damaged[offset] ^= 1 << int(rng.integers(8))
            # If the bytes can still be decoded, Pillow gives the reference pixels.
            yield Case(f"{name}, flip {number}, of bits in {offsets}", bytes(damaged))
