"""Sentences and tables that the page shows."""

from __future__ import annotations

import math

from .._escape import escape_markdown
from ._alignment import Alignment


def about_model(alignment: Alignment | None) -> str:
    """Say which aligner the visitor uses."""
    if alignment is None:
        return "You are using the **aligner this page came with**."
    return f"You are using **your own {alignment.method} aligner**, in all three tabs."


def about_alignment(alignment: Alignment | None, remark: str) -> str:
    """Say in Markdown what an alignment brought; the remark names a visitor's files as text."""
    if alignment is None:
        return "The page's own aligner is in use again."
    lines = []
    if alignment.recall:
        n = alignment.n_held_out
        lines += [
            f"### On {n} images held out",
            "How often is the right one of an image and its caption found first, or among the "
            "first five?",
            "",
            "| | first | first five |",
            "|---|---|---|",
            *(f"| {r.who} | {r.at_1:.0f} % | {r.at_5:.0f} % |" for r in alignment.recall),
            f"| chance | {100 / n:.0f} % | {min(100, 500 / n):.0f} % |",
            "",
            f"Your aligner was then fitted on all {alignment.n_pairs} images.",
        ]
        lines += ["", _judgement(alignment)]
    elif alignment.n_pairs:
        lines += [f"Aligned on all {alignment.n_pairs} images."]
    return "\n".join([*lines, "", alignment.remark, "", escape_markdown(remark)]).strip()


def _judgement(alignment: Alignment) -> str:
    """Say whether it was worth it, as far as so many images can tell."""
    before, after = alignment.recall[0].at_1, alignment.recall[-1].at_1
    share = (before + after) / 200
    error = 100 * math.sqrt(2 * share * (1 - share) / alignment.n_held_out)
    if abs(after - before) <= error:
        return "So few images show no clear difference between the two."
    if after > before:
        return "**Yours does better on these images.**"
    more = "" if alignment.with_head else " let it learn the class names as well,"
    return (
        f"**The first aligner does better on these images.** Send more of them,{more} or go "
        "back to the first one."
    )
