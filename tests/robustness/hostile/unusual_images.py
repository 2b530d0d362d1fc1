"""Valid images of unusual kinds, and files whose header claims too much."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

from tests.robustness.hostile.cases import Case, as_bytes, base_image, decode_with_pillow

UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def png_of(width, height, depth, kind, raw, *chunks):
    """Return the bytes of a PNG with the given header and chunks."""
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )


def tiff_of(entries, tail=b"", offset=8, following=0, order="<"):
    """Return the bytes of a TIFF with the given entries (tag, type, count, value)."""
    mark = b"II" if order == "<" else b"MM"
    body = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3
        packed = struct.pack(order + ("HH" if short else "I"), *([value, 0] if short else [value]))
        body += struct.pack(order + "HHI", tag, kind, count) + packed
    return (
        mark
        + struct.pack(order + "HI", 42, offset)
        + body
        + struct.pack(order + "I", following)
        + tail
    )


def _grey_tiff(**changes):
    values = {
        "width": (256, 4, 1, 8),
        "height": (257, 4, 1, 8),
        "bits": (258, 3, 1, 8),
        "compression": (259, 3, 1, 1),
        "photometric": (262, 3, 1, 1),
        "offset": (273, 4, 1, 134),
        "samples": (277, 3, 1, 1),
        "rows": (278, 4, 1, 8),
        "bytes": (279, 4, 1, 64),
    }
    values |= {name: (*values[name][:2], *change) for name, change in changes.items()}
    return tiff_of(sorted(values.values()), bytes(12) + bytes(range(64)) + bytes(64))


def unusual_files():
    """Yield valid files of unusual kinds with their pixels."""
    rgb = base_image()
    pixels = np.asarray(rgb)
    yield from _animated(rgb)
    yield from _modes(rgb, pixels)
    yield from _turned(rgb)
    for size in [(1, 1), (1, 20000), (20000, 1), (1, 100), (3, 2)]:
        small = base_image(*size)
        for form in ("PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"):
            if form == "WEBP" and max(size) > 16383:
                continue
            yield Case(f"{form} {size[0]} x {size[1]}", as_bytes(small, form), "right")
    junk = b"no profile at all" * 9
    for form in ("PNG", "JPEG", "WEBP", "TIFF"):
        data = as_bytes(rgb, form, icc_profile=junk)
        yield Case(f"{form} with a broken colour profile", data, "right")
    text = PngImagePlugin.PngInfo()
    for number in range(300):
        text.add_text(f"k{number}", "v" * 2000)
    yield Case("PNG with 300 texts", as_bytes(rgb, "PNG", pnginfo=text), "right", pixels)
    data = as_bytes(rgb, "JPEG")
    expected = decode_with_pillow(data)
    for count, length in [(2000, 10), (60, 65533)]:
        segment = b"\xff\xe5" + struct.pack(">H", length + 2) + b"x" * length
        yield Case(
            f"JPEG with {count} segments of {length} bytes",
            data[:2] + count * segment + data[2:],
            "right",
            expected,
        )
    yield Case("JPEG followed by junk", data + b"junk" * 1000, "right", expected)
    yield Case("PNG followed by junk", as_bytes(rgb, "PNG") + bytes(9999), "right", pixels)


def _animated(rgb):
    frames = [rgb.rotate(90 * turn) for turn in range(1, 4)]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if form == "WEBP" else {}
        first = rgb.quantize(200).convert("RGB") if form == "GIF" else rgb
        data = as_bytes(first, form, save_all=True, append_images=frames, **options)
        yield Case(f"{form} of four frames", data, "right", np.asarray(first))
    many = [Image.new("L", (8, 8), n % 256) for n in range(500)]
    data = as_bytes(many[0], "GIF", save_all=True, append_images=many[1:])
    yield Case("GIF of 500 frames", data, "right", np.zeros((8, 8, 3), np.uint8))
    small = as_bytes(Image.new("L", (4, 4), 99), "GIF")
    beside = bytearray(small)
    place = small.index(b"\x2c")
    beside[place + 1 : place + 5] = struct.pack("<HH", 60000, 3)
    yield Case("GIF with its frame beside the canvas", bytes(beside))


def _modes(rgb, pixels):
    grey = rgb.convert("L")
    g = np.asarray(grey)
    alpha = g.astype(float)[..., None] / 255
    on_white = np.round(pixels * alpha + 255 * (1 - alpha)).astype(np.uint8)
    grey_on_white = np.round(g * alpha[..., 0] + 255 * (1 - alpha[..., 0])).astype(np.uint8)
    grey_on_white = np.repeat(grey_on_white[..., None], 3, axis=2)
    rgba = rgb.copy()
    rgba.putalpha(grey)
    la = grey.copy()
    la.putalpha(grey)
    for form in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        yield Case(f"{form} RGBA", as_bytes(rgba, form, **options), "right", on_white, 2)
        if form != "WEBP":
            yield Case(f"{form} LA", as_bytes(la, form), "right", grey_on_white, 2)
    yield Case("PIL RGBa", rgba.convert("RGBa"), "right", on_white, 3)
    yield Case("PIL La", la.convert("La"), "right", grey_on_white, 3)
    palette = rgb.quantize(16)
    p_truth = np.asarray(palette.convert("RGB")).copy()
    p_truth[np.asarray(palette) == 3] = 255
    for form in ("PNG", "GIF"):
        data = as_bytes(palette, form, transparency=3)
        yield Case(f"{form} palette, one colour clear", data, "right", p_truth)
    data = as_bytes(palette, "PNG", transparency=bytes(range(0, 160, 10)))
    yield Case("PNG palette, each colour half clear", data, "right", None, 2)
    pa = palette.copy()
    pa.putalpha(grey)
    yield Case("PIL PA", pa, "right", decode_with_pillow(pa), 2)
    bits = grey.convert("1")
    for form in ("PNG", "TIFF", "BMP", "GIF"):
        expected = np.repeat(255 * np.asarray(bits, np.uint8)[..., None], 3, axis=2)
        yield Case(f"{form} of one bit", as_bytes(bits, form), "right", expected)
    for depth in (1, 2, 4):
        data = as_bytes(rgb.quantize(2**depth), "PNG", bits=depth)
        yield Case(f"PNG palette of {depth} bits", data, "right")
    deep = g.astype(np.uint16) * 257
    grey_truth = np.repeat(g[..., None], 3, axis=2)
    image = Image.fromarray(deep)
    yield Case("PNG of 16 bits", as_bytes(image, "PNG"), "right", grey_truth)
    yield Case("TIFF of 16 bits", as_bytes(image, "TIFF"), "right", grey_truth)
    yield Case("PIL I;16", image, "right", grey_truth)
    big = Image.frombytes("I;16B", image.size, deep.astype(">u2").tobytes())
    yield Case("TIFF of 16 bits, big-endian", as_bytes(big, "TIFF"), "right", grey_truth)
    yield Case("PIL I", Image.fromarray(deep.astype(np.int32)), "right", grey_truth)
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in pixels)
    yield Case("PNG of 48 bits", png_of(40, 30, 16, 2, rows), "right", pixels)
    rows = b"\0" + struct.pack(">4H", 0, 1000, 0x8080, 65535)
    clear = png_of(4, 1, 16, 0, rows, (b"tRNS", struct.pack(">H", 1000)))
    expected = np.repeat(np.uint8([[[0], [255], [128], [255]]]), 3, axis=2)
    yield Case("PNG of 16 bits, one grey clear", clear, "right", expected)
    unit = Image.fromarray(g.astype(np.float32) / 255)
    yield Case("TIFF of floats", as_bytes(unit, "TIFF"), "right", grey_truth)
    for bad in (np.nan, np.inf):
        values = g.astype(np.float32)
        values[3, 3] = bad
        yield Case(
            f"TIFF of floats with {bad}", as_bytes(Image.fromarray(values), "TIFF"), "error"
        )
    cmyk = rgb.convert("CMYK")
    inverted = as_bytes(cmyk, "JPEG", quality=95)
    yield Case("JPEG of CMYK", inverted, "right", pixels, 90)
    place = inverted.find(b"\xff\xee")
    if place > 0:
        (length,) = struct.unpack_from(">H", inverted, place + 2)
        without = inverted[:place] + inverted[place + 2 + length :]
        yield Case(
            "JPEG of CMYK without Adobe's mark", without, "right", decode_with_pillow(inverted)
        )
    yield Case("TIFF of CMYK", as_bytes(cmyk, "TIFF"), "right", pixels, 2)
    for mode in ("YCbCr", "LAB", "HSV", "RGBX"):
        yield Case(
            f"PIL {mode}",
            rgb.convert("RGB").convert(mode)
            if mode != "LAB"
            else Image.new("LAB", (5, 5), (128, 128, 128)),
            "right",
            tolerance=3,
        )
    yield Case("JPEG of grey", as_bytes(grey, "JPEG"), "right")
    data = as_bytes(rgb, "JPEG", progressive=True, quality=95, subsampling=0)
    yield Case("progressive JPEG", data, "right", pixels, 60)
    yield Case("interlaced GIF", as_bytes(rgb.quantize(64), "GIF", interlace=True), "right")
    yield Case("TIFF LZW", as_bytes(rgb, "TIFF", compression="tiff_lzw"), "right", pixels)
    yield Case("TIFF of JPEG", as_bytes(rgb, "TIFF", compression="jpeg"), "right")
    yield Case("TIFF, big", as_bytes(rgb, "TIFF", big_tiff=True), "right", pixels)


def _turned(rgb):
    for turn, upright in UPRIGHT.items():
        for form in ("JPEG", "PNG", "WEBP", "TIFF"):
            options = {"lossless": True} if form == "WEBP" else {}
            expected = upright(decode_with_pillow(as_bytes(rgb, form, **options)))
            exif = Image.Exif()
            exif[274] = turn
            data = as_bytes(rgb, form, exif=exif, **options)
            yield Case(f"{form} turned as EXIF {turn}", data, "right", expected)
    broken = {
        "junk": b"Exif\0\0junk",
        "nothing": b"Exif\0\0",
        "wild offset": b"Exif\0\0II*\0\xff\xff\xff\x7f",
        "a circle": b"Exif\0\0" + tiff_of([(34665, 4, 1, 8), (274, 3, 1, 1)], following=8),
        "turn 0": b"Exif\0\0" + tiff_of([(274, 3, 1, 0)]),
        "turn 9": b"Exif\0\0" + tiff_of([(274, 3, 1, 9)]),
        "turn of 65,535 numbers": b"Exif\0\0" + tiff_of([(274, 3, 65535, 6)]),
        "turn of type 99": b"Exif\0\0" + tiff_of([(274, 99, 1, 6)]),
    }
    for what, exif in broken.items():
        for form in ("JPEG", "WEBP", "PNG"):
            options = {"lossless": True} if form == "WEBP" else {}
            try:
                data = as_bytes(rgb, form, exif=exif, **options)
            except Exception:  # Pillow cannot write this variant
                continue
            yield Case(
                f"{form} with EXIF of {what}",
                data,
                "right",
                decode_with_pillow(as_bytes(rgb, form, **options)),
            )
    xmp = b'<x:xmpmeta><rdf tiff:Orientation="77"/></x:xmpmeta>' + b"\xff" * 9
    yield Case("JPEG with odd XMP", as_bytes(rgb, "JPEG", xmp=xmp), "either")


def greedy_files():
    """Yield files whose headers claim more pixels or bytes than they contain."""
    head = png_of(30000, 30000, 8, 2, b"")
    yield Case("PNG bomb", head, "error")
    yield Case("PNG of 2**31 x 2**31", png_of(2**31 - 1, 2**31 - 1, 8, 2, b""), "error")
    yield Case("PNG a pixel beyond the limit", png_of(9460, 9460, 1, 0, b"\0"), "error")
    yield Case("PNG without pixels", png_of(0, 0, 8, 2, b""), "error")
    yield Case("PNG of palette without palette", png_of(4, 4, 8, 3, b"\0\1\2\3\4" * 4))
    wide = b"\0" + b"\xff" * 1125
    full = png_of(9000, 9000, 1, 0, wide * 9000)
    white = np.broadcast_to(np.uint8(255), (9000, 9000, 3))
    yield Case("PNG of 81 million pixels in 20 kB", full, "right", white, large=81_000_000)
    rows = (b"\0" + bytes(2 * 4000)) * 4000
    yield Case(
        "PNG of 16 million deep pixels", png_of(4000, 4000, 16, 0, rows), "right", large=16_000_000
    )
    small = as_bytes(base_image(4, 4), "GIF")
    for frame in (False, True):
        data = bytearray(small)
        data[6:10] = struct.pack("<HH", 65535, 65535)
        if frame:
            place = small.index(b"\x2c")
            data[place + 5 : place + 9] = struct.pack("<HH", 65535, 65535)
        yield Case(f"GIF bomb, frame {frame}", bytes(data), "error")
    data = bytearray(small)
    place = small.index(b"\x2c")
    data[place + 5 : place + 9] = struct.pack("<HH", 65535, 65535)
    yield Case("GIF with a frame larger than its canvas", bytes(data))
    data = bytearray(small)
    data[6:10] = bytes(4)
    yield Case("GIF without pixels", bytes(data))
    data = bytearray(as_bytes(base_image(4, 4), "WEBP", lossless=True))
    place = bytes(data).index(b"VP8L") + 9
    data[place : place + 4] = struct.pack("<I", 16383 | 16383 << 14)
    yield Case("WebP bomb", bytes(data), "error")
    canvas = as_bytes(base_image(4, 4), "WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0")
    data = bytearray(canvas)
    place = canvas.index(b"VP8X") + 12
    data[place : place + 6] = b"\xff\xff\xff\xff\xff\xff"
    yield Case("WebP bomb of the canvas", bytes(data), "error")
    data = bytearray(as_bytes(base_image(4, 4), "BMP"))
    for size in [(100000, 100000), (0, 0), (-5, 4), (4, -(2**31)), (2**31 - 1, 1)]:
        data[18:26] = struct.pack("<ii", *size)
        yield Case(f"BMP of {size[0]} x {size[1]}", bytes(data), "error" if size[0] else "either")
    data = bytearray(as_bytes(base_image(16, 16), "JPEG"))
    place = bytes(data).index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 65500, 65500)
    yield Case("JPEG bomb", bytes(data), "error")
    data[place : place + 4] = struct.pack(">HH", 5000, 5000)
    yield Case("JPEG that claims 25 million pixels", bytes(data), large=25_000_000)
    for name, chunk in {
        "compressed text": (b"zTXt", b"k\0\0" + zlib.compress(bytes(30_000_000))),
        "decode_with_pillow text": (b"tEXt", b"k\0" + b"v" * 3_000_000),
        "Unicode text": (b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(30_000_000))),
        "colour profile": (b"iCCP", b"k\0\0" + zlib.compress(bytes(30_000_000))),
    }.items():
        yield Case(f"PNG with 30 MB of {name}", png_of(1, 1, 8, 0, b"\0\7", chunk))
    yield Case("TIFF", _grey_tiff(), "right")
    for name, changes in {
        "pixels beyond its end": {"offset": (1, 2**31)},
        "pixels at 2**32 - 1": {"offset": (1, 2**32 - 1)},
        "2**32 - 1 bytes": {"bytes": (1, 2**32 - 1)},
        "2**31 offsets": {"offset": (2**31, 8)},
        "100,000 x 100,000 pixels": {"width": (1, 100000), "height": (1, 100000)},
        "no width": {"width": (1, 0)},
        "no pixels": {"width": (1, 0), "height": (1, 0)},
        "no rows a strip": {"rows": (1, 0)},
        "2**32 - 1 rows a strip": {"rows": (1, 2**32 - 1)},
        "200 bits": {"bits": (1, 200)},
        "9999 samples": {"samples": (1, 9999)},
        "compression 12345": {"compression": (1, 12345)},
        "compression 5 of junk": {"compression": (1, 5)},
        "compression 7 of junk": {"compression": (1, 7)},
        "compression 8 of junk": {"compression": (1, 8)},
        "compression 34925 of junk": {"compression": (1, 34925)},
    }.items():
        yield Case(f"TIFF with {name}", _grey_tiff(**changes))
    yield Case("TIFF that begins nowhere", tiff_of([], offset=2**32 - 1), "error")
    yield Case("TIFF that begins in itself", tiff_of([], offset=2), "error")
    yield Case("TIFF of no tags", tiff_of([]), "error")
    yield Case("PIL without pixels", Image.new("RGB", (0, 0)), "error")
    yield Case("PIL without rows", Image.new("L", (5, 0)), "error")
    yield Case("PIL F without pixels", Image.new("F", (0, 0)), "error")
    closed = Image.open(io.BytesIO(as_bytes(base_image(), "PNG")))
    closed.close()
    yield Case("PIL closed", closed, "error")
    cut = as_bytes(base_image(), "PNG")[:-60]
    yield Case("PIL opened, cut short", Image.open(io.BytesIO(cut)), "error")
    yield Case(
        "PIL opened, not read",
        Image.open(io.BytesIO(as_bytes(base_image(), "PNG"))),
        "right",
        np.asarray(base_image()),
    )
