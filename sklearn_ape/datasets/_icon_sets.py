"""Icon sets of the npm packages of Iconify: their files, names and drawings."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

from ..utils.validation import parse_json
from .base import check_folder

# Words that only name the style of a drawing.
_STYLE_WORDS = frozenset(
    {"alt", "baseline", "bold", "broken", "duo", "duotone", "fill", "filled", "outline"}
    | {"outlined", "regular", "remix", "rounded", "sharp", "solid", "thin", "tone", "twotone"}
)

# Words that name a style in some sets and a thing in others, such as "light" in "traffic light".
# They count as a style where they are at the same end of a considerable share of a set's names.
_POSSIBLE_STYLE_WORDS = frozenset(
    {"bx", "bxl", "bxs", "circle", "color", "dark", "f", "flat", "ios", "light", "line", "linear"}
    | {"logo", "md", "negative", "o", "pop", "print", "round", "square"}
)
_MIN_STYLE_SHARE = 0.05
_MIN_STYLE_COUNT = 10

_SKIN_TONE = re.compile(r"-((medium-)?(light|dark)|medium)-skin-tone")
_SIZE = re.compile(r"\d+(px|x\d+)?")

# Names become file names, so that no other characters are allowed.
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

# Elements and attributes that run code or read files, as far as a renderer supports them.
_UNSAFE = re.compile(
    r"<\s*(script|foreignobject|image|feimage|iframe|!doctype|!entity)"
    r"|\son[a-z]+\s*=|javascript:|@import"
    r"|href\s*=\s*[\"'](?!\s*(#|&quot;#))|url\(\s*(?![\s\"']*(&quot;)?#)",
    re.IGNORECASE,
)

# Limits of the numbers in a view box, and of the characters of a drawing, for damaged or hostile
# packages.
_MAX_SIDE = 100_000
_MAX_LENGTH = 2_000_000
# The renderer ends the process at about 250 levels of elements, with those that are referred to.
_MAX_LEVELS = 150
_REFERENCE = re.compile(r"""url\(\s*["']?#([^"')\s]+)|^\s*#(\S+)\s*$""")


class IconSet(NamedTuple):
    """An icon set: its file, and its description in the package."""

    prefix: str
    file: Path
    info: Mapping[str, Any]

    @property
    def license(self) -> str:
        """SPDX identifier of the licence."""
        return self.info["license"]["spdx"]

    @property
    def category(self) -> str:
        """Category of the set, "Uncategorized" if the package does not name one."""
        return self.info.get("category") or "Uncategorized"

    def attribution(self) -> str:
        """Return the name, author and licence of the set in one line."""
        author = self.info.get("author") or {}
        url = f" ({author['url']})" if author.get("url") else ""
        return (
            f"- {self.info.get('name', self.prefix)} (`{self.prefix}`) by "
            f"{author.get('name', 'unknown authors')}{url}, {self.license}"
        )


class Icon(NamedTuple):
    """Set, name and caption of an icon, and the digest of its drawing."""

    icon_set: IconSet
    name: str
    caption: str
    digest: str

    @property
    def stem(self) -> str:
        """Path of the rendered file below the data home, without extension."""
        # The digest prevents that an image of another version of the set is used.
        return f"{self.icon_set.prefix}/{self.name[:80]}-{self.digest}"


def find_sets(path: str | os.PathLike[str]) -> tuple[str, list[IconSet]]:
    """Return the name of the package in a folder, and its sets."""
    expected = (
        "the folder of the unpacked npm package @iconify/json (npm pack @iconify/json, then tar "
        "xf) or of one set such as @iconify-json/mdi"
    )
    folder = check_folder(path, expected)
    for root in (folder, folder / "package"):
        if (root / "collections.json").is_file():
            sets = [
                _check_set(prefix, file, info)
                for prefix, info in _read_json(root / "collections.json").items()
                if (file := root / "json" / f"{prefix}.json").is_file()
            ]
            if not sets:
                raise ValueError(f"{str(root)!r} has no icon sets. Unpack the package again.")
            return "@iconify/json", sets
        if (root / "icons.json").is_file() and (root / "info.json").is_file():
            info = _read_json(root / "info.json")
            prefix = info.get("prefix")
            return f"@iconify-json/{prefix}", [_check_set(prefix, root / "icons.json", info)]
    raise FileNotFoundError(
        f"{str(folder)!r} has neither 'collections.json' nor 'icons.json' and 'info.json'. Pass "
        f"{expected}."
    )


def _check_set(prefix: Any, file: Path, info: Any) -> IconSet:
    if not isinstance(prefix, str) or not _NAME.fullmatch(prefix):
        raise ValueError(
            f"{str(file)!r} has the prefix {prefix!r}. A prefix consists of lower-case letters, "
            "digits and hyphens. Unpack the package again."
        )
    license_ = info.get("license") if isinstance(info, dict) else None
    if not isinstance(license_, dict) or not isinstance(license_.get("spdx"), str):
        raise ValueError(
            f"Set {prefix!r} has no SPDX identifier of its licence in the package. Unpack the "
            "package again, or a later version."
        )
    author, category = info.get("author") or {}, info.get("category") or ""
    if not isinstance(author, dict) or not isinstance(category, str):
        raise ValueError(
            f"Set {prefix!r} has an author that is not an object, or a category that is not a "
            "text. Unpack the package again."
        )
    return IconSet(prefix, file, info)


def read_icons(icon_set: IconSet) -> list[Icon]:
    """Return the icons of a set, in the order of the file."""
    drawings = read_drawings(icon_set)
    first, last = _find_style_words(drawings)
    icons = []
    for name, svg in drawings.items():
        try:
            digest = sha256(svg.encode()).hexdigest()[:16]
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Icon '{icon_set.prefix}:{name}' is not valid Unicode ({error.reason}). Unpack "
                "the package again, or remove the icon from its file."
            ) from error
        icons.append(Icon(icon_set, name, _clean_name(name, first, last), digest))
    return icons


def read_drawings(icon_set: IconSet) -> dict[str, str]:
    """Return the SVG text of every icon of a set by its name."""
    content = _read_json(icon_set.file)
    icons = content.get("icons")
    if not isinstance(icons, dict):
        raise ValueError(f"{str(icon_set.file)!r} has no 'icons'. Unpack the package again.")
    drawings = {}
    for name, icon in icons.items():
        if not (isinstance(icon, dict) and icon.get("hidden")):
            drawings[name] = _make_svg(f"{icon_set.prefix}:{name}", icon, content)
    return drawings


def _make_svg(label: str, icon: Any, defaults: Mapping[str, Any]) -> str:
    """Return the SVG text of an icon, centered on a square."""
    if not _NAME.fullmatch(label.partition(":")[2]):
        raise ValueError(
            f"Icon {label!r} has an invalid name. A name consists of lower-case letters, digits "
            "and hyphens."
        )
    body = icon.get("body") if isinstance(icon, dict) else None
    if not isinstance(body, str):
        raise ValueError(f"Icon {label!r} has no 'body'. Unpack the package again.")
    box = [
        icon.get(key, defaults.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    ]
    # Not `isinstance`, because a bool is an int. A comparison with NaN is False.
    is_number = all(type(n) in (int, float) and abs(n) <= _MAX_SIDE for n in box)
    if not is_number or min(box[2:]) < 0:
        raise ValueError(
            f"Icon {label!r} has left, top, width and height {box}. They must be numbers up to "
            f"{_MAX_SIDE}, and width and height at least 0."
        )
    if 0 in box[2:]:
        body, box = "", [0, 0, 1, 1]  # by the SVG standard, nothing is drawn
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 224 224"><svg x="12" y="12" width="200" height="200" '
        f'viewBox="{" ".join(map(str, box))}" color="#333">{body}</svg></svg>'
    )


def check_safety(label: str, svg: str) -> None:
    if len(svg) > _MAX_LENGTH:
        raise ValueError(
            f"Icon {label!r} has {len(svg)} characters. At most {_MAX_LENGTH} are allowed."
        )
    unsafe = _UNSAFE.search(svg)
    if unsafe:
        raise ValueError(
            f"Icon {label!r} contains {unsafe.group().strip()!r}. Scripts and references to files "
            "are not allowed. Remove the icon from its file, or select other sets."
        )
    # Fewer elements cannot have more levels, which saves time for most icons.
    if svg.count("<") > _MAX_LEVELS and _count_levels(svg) > _MAX_LEVELS:
        raise ValueError(
            f"Icon {label!r} has more than {_MAX_LEVELS} levels of elements, with those that it "
            "refers to. Remove the icon from its file, or select other sets."
        )


def _count_levels(svg: str) -> int:
    """Return the number of nested elements, where those that are referred to count as nested.

    Gradients are not counted. Every element is taken to have the references of a style sheet.
    """
    path: list[str | None] = [""]  # ids of the open elements; "" is the drawing
    gradients: set[str | None] = set()
    # For each element with an id, the level of its references within it; that of None is its own.
    levels: dict[str | None, dict[str | None, int]] = {"": {None: 0}}
    counts: dict[str | None, int] = {}
    styles: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append(attributes.get("id"))
        if name.endswith("Gradient"):
            gradients.add(path[-1])
        references = {
            first or second
            for value in attributes.values()
            for first, second in _REFERENCE.findall(value)
        }
        scopes = path if len(path) <= _MAX_LEVELS else path[:1]
        for level, scope in enumerate(scopes):
            if scope is not None:
                inner = levels.setdefault(scope, {})
                for target in (None, *references):
                    inner[target] = max(inner.get(target, 0), len(path) - level)

    def count(scope: str | None, n_above: int) -> int:
        if scope in gradients or scope not in levels or n_above > _MAX_LEVELS:
            return 0
        if scope not in counts:
            counts[scope] = 0  # the renderer ignores an element that refers to itself
            inner = levels[scope]
            inner |= dict.fromkeys(styled - inner.keys(), inner[None])
            counts[scope] = max(
                level + count(target, n_above + level) for target, level in inner.items()
            )
        return counts[scope]

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, lambda _: path.pop()
    parser.CharacterDataHandler = styles.append
    with suppress(expat.ExpatError, UnicodeError):  # the renderer reports it
        parser.Parse(svg, True)
    styled = {first for first, _ in _REFERENCE.findall("".join(styles)) if first}
    return count("", 0)


def _find_style_words(names: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the words that name a style at the beginning and at the end of the names of a set."""
    words = [name.split("-") for name in names]
    styles = []
    for position in (0, -1):
        counts = Counter(parts[position] for parts in words if len(parts) > 1)
        least = max(_MIN_STYLE_COUNT, _MIN_STYLE_SHARE * len(words))
        frequent = {word for word, count in counts.items() if count >= least}
        styles.append(set(_STYLE_WORDS) | (_POSSIBLE_STYLE_WORDS & frequent))
    return styles[0], styles[1]


def _clean_name(name: str, first: set[str], last: set[str]) -> str:
    """Return the words of a name without style words and sizes at its ends.

    >>> _clean_name("account-circle-outline-24", set(), {"outline"})
    'account circle'
    """
    words = _SKIN_TONE.sub("", name).replace("two-tone", "twotone").split("-")
    while len(words) > 1 and (words[-1] in last or _SIZE.fullmatch(words[-1])):
        words.pop()
    while len(words) > 1 and words[0] in first:
        words.pop(0)
    return " ".join(words)


def _read_json(file: Path) -> Any:
    content = parse_json(file.read_bytes(), repr(str(file)), "Unpack the package again.")
    if not isinstance(content, dict):
        raise ValueError(f"{str(file)!r} contains no JSON object. Unpack the package again.")
    return content
