"""Hostile paths, and objects that are not images."""

import io
import os
import socket
import struct
from pathlib import Path

import numpy as np

from tests.robustness.hostile.cases import Case, as_bytes, base_image, decode_with_pillow

FORMATS = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp"}


def make_paths(folder):
    """Create files below `folder`, and yield their paths as cases."""
    folder = Path(folder)
    image = as_bytes(base_image(), "PNG")
    pixels = np.asarray(base_image())

    def put(name, data=image):
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        with open(path, "wb") as file:
            file.write(data)
        return os.fsdecode(path)

    names = {
        "spaces": "an image  of two .png",
        "a line feed": "line\nfeed\r.png",
        "a tab": "tab\t.png",
        "other scripts": "ネコ-кот-قط.png",
        "emoji": "🦊👩‍🚀.png",
        "no Unicode": b"latin-\xe9\xff.png",
        "quotes": 'it\'s "quoted" `x` $HOME;.png',
        "a percent sign": "100%20.png",
        "markup": "<b>&amp;.png",
        "braces": "{0.__class__}.png",
        "a dash": "-rf.png",
        "stars": "[*]?.png",
        "no extension": "image",
        "a dot at its end": "image.png.",
        "right-to-left marks": "\u202egnp.exe",
        "a backslash": "C:\\image.png",
        "250 letters": "x" * 246 + ".png",
    }
    for description, name in names.items():
        yield Case(f"path with {description}", put(name), "right", pixels)
    whole = put("whole.png")
    yield Case("Path object", Path(whole), "right", pixels)
    with os.scandir(os.fsencode(folder)) as entries:
        entry = next(entry for entry in entries if entry.name == b"whole.png")
    yield Case("DirEntry of bytes", entry, "right", pixels)
    gone = put("gone.png")
    with os.scandir(os.fsencode(folder)) as entries:
        entry = next(entry for entry in entries if entry.name == b"gone.png")
    os.unlink(gone)
    yield Case("DirEntry of bytes of a file that is gone", entry, "error")
    put("there.png")
    yield Case("relative path", "there.png", "right", pixels)  # relative to the current folder
    yield Case("relative path with dots", "./../" + folder.name + "/there.png", "right", pixels)
    yield Case("np.str_", np.str_(whole), "right", pixels)
    for name, text in {
        "home": "~",
        "a file at home": "~/no such image.png",
        "nothing": "",
        "a dot": ".",
        "the root": "/",
        "NUL": whole + "\0.png",
        "half a surrogate pair": "\ud800.png",
        "an address": "https://example.org/a.png",
        "a file's address": f"file://{whole}",
        "data": "data:image/png;base64,AAAA",
        "5,000 letters": "x" * 5000 + ".png",
        "a file for a folder": whole + "/a.png",
        "a caption": "a photo of a cat",
        "a caption of 10,000 words": "word " * 10_000,
        "a missing file": "missing.png",
    }.items():
        yield Case(f"path of {name}", text, "error")

    contents = {form: as_bytes(base_image(), form) for form in FORMATS}
    shifted = [*list(FORMATS.values())[1:], "png"]
    for (form, data), suffix in zip(contents.items(), shifted, strict=True):
        path = put(f"really {form}.{suffix}", data)
        yield Case(f"{form} called {suffix}", path, "right", decode_with_pillow(data))
    for name, data in {
        "0 bytes": b"",
        "one byte": b"\x89",
        "text": b"just words\n",
        "a page": b"<!DOCTYPE html><html><body>404</body></html>",
        "a drawing": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "a zip": b"PK\x03\x04" + bytes(99),
        "a PDF": b"%PDF-1.7\n" + bytes(99),
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nrun\n",
        "a program": b"\x7fELF" + bytes(999),
        "a pickle": b"\x80\x04\x95" + bytes(99),
        "zeros": bytes(5000),
        "noise": np.random.default_rng(0).bytes(5000),
        "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    }.items():
        yield Case(f"{name} called png", put(f"{name}.png", data), "error")
    sparse = put("sparse.png", b"")
    os.truncate(sparse, 2**40)
    yield Case("1 TB of zeros", sparse, "error")
    yield Case("1 TB that begins as a TIFF", _enlarge(put("sparse.tif", b"II*\0"), 2**40), "error")

    if hasattr(os, "mkfifo"):
        yield from _make_special_files(folder, whole, pixels)


def _enlarge(path, size):
    os.truncate(path, size)
    return path


def _make_special_files(folder, whole, pixels):
    def link(name, target):
        os.symlink(target, folder / name)
        return str(folder / name)

    os.mkfifo(folder / "pipe.png")
    yield Case("FIFO", str(folder / "pipe.png"), "error")
    yield Case("link to a FIFO", link("to pipe.png", folder / "pipe.png"), "error")
    (folder / "folder.png").mkdir()
    yield Case("folder", str(folder / "folder.png"), "error")
    yield Case("link to a folder", link("to folder.png", folder / "folder.png"), "error")
    yield Case("link", link("link.png", whole), "right", pixels)
    yield Case("relative link", link("relative.png", "there.png"), "right", pixels)
    yield Case("link to itself", link("loop.png", folder / "loop.png"), "error")
    link("ping.png", folder / "pong.png")
    yield Case("links in a circle", link("pong.png", folder / "ping.png"), "error")
    yield Case("link to nothing", link("dangling.png", folder / "nothing.png"), "error")
    place = whole
    for number in range(60):
        place = link(f"chain {number}.png", place)
    yield Case("60 links in a row", place, "error")
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder)  # paths of sockets are limited in length
    server.bind("socket.png")
    os.chdir(here)
    server.close()
    yield Case("socket", str(folder / "socket.png"), "error")
    for device in ("/dev/zero", "/dev/null", "/dev/full", "/dev/tty", "/proc/self/mem"):
        if os.path.exists(device):
            yield Case(device, device, "error")
    if os.geteuid():
        secret = folder / "secret.png"
        secret.write_bytes(Path(whole).read_bytes())
        secret.chmod(0)
        yield Case("file without permission", str(secret), "error")


def make_objects():
    """Yield cases of objects that are not paths."""
    rgb = np.asarray(base_image())
    data = as_bytes(base_image(), "PNG")
    right = {
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "array": rgb,
        "Fortran array": np.asfortranarray(rgb),
        "read-only array": np.frombuffer(rgb.tobytes(), np.uint8).reshape(rgb.shape),
        "every second pixel of an array": np.repeat(rgb, 2, axis=1)[:, ::2],
        "array backwards": rgb[::-1, ::-1][::-1, ::-1],
        "opaque array": np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)]),
    }
    for name, item in right.items():
        yield Case(name, item, "right", rgb)
    grey = rgb[..., 0]
    for name, item in {"grey array": grey, "grey array (H, W, 1)": grey[..., None]}.items():
        yield Case(name, item, "right", np.repeat(grey[..., None], 3, axis=2))
    yield Case("array 20000 x 1", np.zeros((20000, 1, 3), np.uint8), "right")
    nan = rgb.astype(float)
    nan[0] = np.nan
    for name, item in {
        "no bytes": b"",
        "empty bytearray": bytearray(),
        "text as bytes": b"a caption",
        "every second byte": memoryview(data)[::2],
        "open file": io.BytesIO(data),
        "floats": rgb / 255,
        "NaN": nan,
        "int64": rgb.astype(np.int64),
        "int8": rgb.astype(np.int8),
        "uint16": rgb.astype(np.uint16),
        "bools": rgb > 0,
        "complex": rgb.astype(complex),
        "objects": rgb.astype(object),
        "texts": np.array([["a", "b"]]),
        "times": np.zeros((4, 4, 3), "datetime64[s]"),
        "records": np.zeros((4, 4), [("r", "u1")]),
        "two channels": rgb[..., :2],
        "five channels": np.dstack([rgb, rgb[..., :2]]),
        "channels first": rgb.transpose(2, 0, 1).copy(),
        "one row": rgb[0, :, 0],
        "no axis": np.uint8(3),
        "an array without axes": np.array(3, np.uint8),
        "four axes": rgb[None],
        "no pixels": rgb[:0],
        "None": None,
        "a number": 3,
        "not a number": float("nan"),
        "a list": [1, 2, 3],
        "a dict": {"pixels": data},
        "a class": Path,
        "a packed struct": struct.Struct("I"),
    }.items():
        yield Case(f"object: {name}", item, "error")
