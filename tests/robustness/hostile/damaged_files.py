"""Files cut at every boundary of their format, and with bits flipped."""

import struct
from functools import cache

import numpy as np

from tests.robustness.hostile.cases import Case, as_bytes, base_image, plain


@cache
def whole_files():
    """Return the bytes of one image in every format and variety that is damaged."""
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
    """Return where parts of a file begin."""
    walk = {"png": _png, "jpe": _jpeg, "gif": _gif, "web": _riff, "tif": _tiff, "bmp": _bmp}
    return sorted(place for place in set(walk[name[:3]](data)) if 0 < place < len(data))


def _png(data):
    place, found = 8, [1, 8]
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        found += [place + 4, place + 8, place + 8 + length, place + 12 + length]
        place += 12 + length
    return found


def _jpeg(data):
    place, found = 2, [1, 2]
    while data[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, place + 2)
        found += [place + 1, place + 2, place + 4, place + 2 + length]
        place += 2 + length
    (length,) = struct.unpack_from(">H", data, place + 2)
    return [*found, place + 2 + length, len(data) - 2, len(data) - 1]


def _gif(data):
    table = 3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 0
    place, found = 13 + table, [3, 6, 10, 13, 13 + table]
    while data[place] != 0x3B:
        if data[place] == 0x21:
            place += 2
        else:
            flags = data[place + 9]
            place += 11 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
        found.append(place)
        while data[place]:
            place += 1 + data[place]
            found.append(place)
        place += 1
        found.append(place)
    return found


def _riff(data):
    place, found = 12, [4, 8, 12]
    while place < len(data):
        (length,) = struct.unpack_from("<I", data, place + 4)
        found += [place + 4, place + 8, place + 18]
        place += 8 + length + length % 2
    return [*found, len(data) - 1]


def _tiff(data):
    (place,) = struct.unpack_from("<I", data, 4)
    (n_entries,) = struct.unpack_from("<H", data, place)
    entries = [place + 2 + 12 * entry for entry in range(n_entries + 1)]
    return [2, 4, 8, place, *entries, len(data) - 1]


def _bmp(data):
    (start,) = struct.unpack_from("<I", data, 10)
    return [2, 6, 10, 14, 18, 26, 54, start, len(data) - 1]


def cut_files(n_more=4):
    """Yield files cut at each boundary and at some places between; whole pixels or an error."""
    for name, data in whole_files().items():
        truth = plain(data)
        grid = np.linspace(0, len(data), n_more + 2).astype(int)[1:-1].tolist()
        for place in sorted({*boundaries(name, data), *grid}):
            yield Case(f"{name} cut at {place} of {len(data)}", data[:place], "either", truth)


def flipped_files(n_each=8, seed=0):
    """Yield files with one bit changed, or several."""
    rng = np.random.default_rng(seed)
    for name, data in whole_files().items():
        head = max(boundaries(name, data)[:-1], default=len(data))
        for number in range(n_each):
            damaged = bytearray(data)
            end = min(head, len(data)) if number % 2 else len(data)
            places = rng.integers(0, end, 1 + 3 * (number % 4 == 3)).tolist()
            for place in places:
                damaged[place] ^= 1 << int(rng.integers(8))
            # Bytes that still decode are an image: nothing but Pillow says of what.
            yield Case(f"{name}, flip {number}, of bits in {places}", bytes(damaged))
