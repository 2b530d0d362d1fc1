"""The model card: what a model is, in the words that the hub reads."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

from .._escape import escape_controls, escape_markdown

if TYPE_CHECKING:
    from ._values import Recorder

_LONGEST = 120
_LIMITS = (
    "Images and texts unlike those that it was fitted on are matched less well: measure on your "
    "own before relying on it.",
    "It inherits what its encoders know and what they are biased towards.",
)


@dataclass
class Facts:
    """What an estimator tells of itself.

    Parameters
    ----------
    what : str
        A sentence or two, in Markdown: names that a user gave are to be escaped in it.
    facts : dict of str to object
        Rows of a table, as plain text.
    scores : dict of str to float
        What it measured itself, by names in plain text.
    limits : list of str
        Sentences, in Markdown.
    usage : str
        Code that uses ``model``.
    tags : list of str
        Of the hub.
    """

    what: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    usage: str = ""
    tags: list[str] = field(default_factory=list)


def checked_scores(scores: Mapping[str, float] | None) -> dict[str, float]:
    """Return scores as plain numbers.

    Raises
    ------
    ValueError
        When one is not finite, or has no name.
    """
    if scores is None:
        return {}
    if not isinstance(scores, Mapping):
        raise ValueError(
            f"scores must be a mapping such as {{'accuracy': 0.9}}, not {type(scores).__name__}."
        )
    for name, score in scores.items():
        known = isinstance(name, str) and isinstance(score, Real) and not isinstance(score, bool)
        if not known or not math.isfinite(score):
            raise ValueError(f"scores holds {name!r}: {score!r}: expected a name and a number.")
    return {name: float(score) for name, score in scores.items()}


def card_of(
    model: Mapping[str, Any],
    facts: Facts,
    scores: Mapping[str, float],
    recorder: Recorder,
    version: str,
) -> str:
    """Return the text of a model card."""
    name = model["$class"]
    n_bytes = sum(array.nbytes for array in recorder.tensors.values())
    rows = {
        **facts.facts,
        "encoders": ", ".join(dict.fromkeys(_encoders(model)))
        or facts.facts.get("encoders", "none: it takes features"),
        "size": f"{n_bytes / 1e6:.3g} MB",
        "made with": f"sklearn-ape {version}",
    }
    parts = [
        _front(facts.tags),
        f"# {name}",
        facts.what,
        "| | |\n|---|---|\n" + "\n".join(f"| {k} | {_cell(v)} |" for k, v in rows.items()),
        "## Use",
        f"```python\n{_usage(name, facts.usage)}\n```",
    ]
    measured = {**facts.scores, **scores}
    parts += ["## Measured"]
    if measured:
        parts += [
            "| | |\n|---|---|\n"
            + "\n".join(f"| {_cell(k)} | {v:.4g} |" for k, v in measured.items())
        ]
    else:
        parts += ["Nothing was given: `save_pretrained(folder, scores={...})` puts figures here."]
    parts += ["## Made by", f"```python\n{name}(\n{_params(model)})\n```"]
    if recorder.left_out:
        places = ", ".join(f"`{_in_code(place)}`" for place in recorder.left_out)
        parts += [f"Not saved, since it has no form in a file: {places}."]
    limits = [*facts.limits, *_LIMITS]
    parts += ["## Limits", "\n".join(f"- {limit}" for limit in limits)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(tags: list[str]) -> str:
    lines = ["library_name: sklearn-ape", "tags:"]
    # Of other tags, JSON is YAML that says nothing but this text.
    lines += [
        f"- {tag if re.fullmatch('[a-z][a-z0-9-]*', tag) else json.dumps(tag)}"
        for tag in ("sklearn-ape", "scikit-learn", *tags)
    ]
    # Whose images, whose license: only who fitted it knows.
    return "\n".join(["---", *lines, "# license: apache-2.0", "---"])


def _usage(name: str, usage: str) -> str:
    load = "import sklearn_ape\n\nmodel = sklearn_ape.load_pretrained('owner/name or folder')"
    return f"{load}  # a {name}\n{usage}".rstrip()


def _encoders(value: Any) -> Iterator[str]:
    """Yield the encoders in a record, with what tells their weights from others."""
    if isinstance(value, dict):
        name = str(value.get("$class", ""))
        if name.endswith("Encoder"):
            weights = str((value.get("state") or {}).get("weights") or "")
            at = f" ({weights[:24]})" if weights else ""
            yield f"{name}({str(value['params'].get('model_name'))!r}){at}"
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _encoders(item)


def _params(model: Mapping[str, Any]) -> str:
    lines = []
    for name, value in model["params"].items():
        if isinstance(value, dict) and len(value) == 1:
            tag, inner = next(iter(value.items()))
            value = _Named("Pipeline(...)") if tag == "$pipeline" else inner
        if isinstance(value, dict) and "$class" in value:
            value = _Named(f"{value['$class']}(...)")
        lines.append(f"    {name}={_in_code(_short.repr(value))},\n")
    return "".join(lines)


class _Named(str):
    """Shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _LONGEST
_short.maxlist = _short.maxdict = 8


def _cell(value: Any) -> str:
    return escape_markdown(value if isinstance(value, str) else _short.repr(value))


def _in_code(text: str) -> str:
    r"""Return the same Python without what could end a code block or begin HTML.

    In a literal, which is where such characters come from, the escapes mean the same text.
    """
    return re.sub("[`<>]", lambda found: f"\\x{ord(found[0]):02x}", escape_controls(text))
