"""Where displays draw: axes, and text that matplotlib must not read as mathematics."""

from __future__ import annotations

import textwrap
from typing import Any

_LARGEST_FIGURE = 40.0  # inches


def axes_for(ax: Any, width: float, height: float) -> Any:
    """Return the axes given, or those of a new figure of about this size in inches.

    Parameters
    ----------
    ax : matplotlib.axes.Axes or None
        None makes a figure.
    width, height : float
        Of that figure; bounded.

    Raises
    ------
    ImportError
        When matplotlib is not installed.
    TypeError
        When `ax` is not one Axes.
    """
    try:
        from matplotlib import pyplot
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError(
            "sklearn_ape.inspection draws with matplotlib, which is not installed. "
            'Install it with: pip install "sklearn-ape[plots]"'
        ) from error
    if ax is None:
        size = min(width, _LARGEST_FIGURE), min(height, _LARGEST_FIGURE)
        return pyplot.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(
            f"ax must be one matplotlib Axes or None, not {type(ax).__name__}: of several axes "
            "pass one, such as axes[0]."
        )
    return ax


def plain(text: Any, width: int = 40, lines: int = 1) -> str:
    """Return any text as some short lines that matplotlib shows as they are.

    Parameters
    ----------
    text : object
        Its str is shown.
    width : int, default=40
        The most characters of a line.
    lines : int, default=1
        The most lines; what does not fit ends in "…".
    """
    # Joiners and the like have no glyph, lone surrogates no encoding.
    visible = "".join(c if c.isprintable() or c.isspace() else " " for c in str(text))
    wrapped = textwrap.wrap(
        " ".join(visible.split()), max(width, 2), max_lines=lines, placeholder="…"
    )
    shown = "\n".join(wrapped).replace("$", r"\$")
    # A legend leaves out what begins with an underscore.
    return f" {shown}" if shown.startswith("_") else shown


def ink_on(color: Any) -> str:
    """Return black or white, whichever is readable on a colour of red, green, blue in [0, 1]."""
    red, green, blue = (float(part) for part in color[:3])
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
