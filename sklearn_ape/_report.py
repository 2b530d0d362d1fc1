"""Show what the demo measured: a table in the terminal, a page and an image."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ._demo import DemoResult, Search

if TYPE_CHECKING:
    from PIL import Image

_THUMBNAIL = 96


def print_result(result: DemoResult) -> None:
    """Print the figures as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    n = result.n_held_out
    console.print(
        f"\nTrained on {result.n_train} captioned images, tested on {n} held-out images "
        f"whose captions were not among them."
    )
    recall = Table(title=f"Retrieval among {n} held-out pairs", title_justify="left")
    recall.add_column("direction")
    for k in (1, 5, 10):
        recall.add_column(f"recall@{k}", justify="right")
    names = {"image_to_text": "image → caption", "text_to_image": "caption → image"}
    for direction, name in names.items():
        recall.add_row(name, *(f"{result.recall[direction][k]:.1%}" for k in (1, 5, 10)))
    recall.add_row("chance", *(f"{k / n:.1%}" for k in (1, 5, 10)), style="dim")
    console.print(recall)

    zero_shot = Table(title="Zero-shot classification", title_justify="left")
    for heading in ("labels", "accuracy", "chance"):
        zero_shot.add_column(heading, justify="left" if heading == "labels" else "right")
    zero_shot.add_row(f"{n} held-out concepts", f"{result.concept_accuracy:.1%}", f"{1 / n:.1%}")
    zero_shot.add_row(
        f"{result.n_categories} categories (animals, food, travel, ...)",
        f"{result.category_accuracy:.1%}",
        f"{1 / result.n_categories:.1%}",
    )
    console.print(zero_shot)

    stages = Table(title="Cost", title_justify="left")
    for heading in ("stage", "seconds", "peak memory"):
        stages.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in result.stages:
        stages.add_row(stage.name, f"{stage.seconds:.1f}", f"{stage.peak_memory / 2**20:.0f} MiB")
    console.print(stages)
    cached = result.image_cache.misses == 0 and result.text_cache.misses == 0
    source = "from the cache" if cached else f"{result.image_cache.misses} images encoded"
    console.print(
        f"Features: {source}. Numbers learned: {result.n_parameters:,}; {_kept(result)}."
    )


def write_report(result: DemoResult, folder: Path) -> Path:
    """Write ``index.html``, which needs no other file, and ``search.png``.

    Parameters
    ----------
    result : DemoResult
        What `run_demo` returns.
    folder : pathlib.Path
        Made when it does not exist.

    Returns
    -------
    page : pathlib.Path
        The page.
    """
    from jinja2 import Environment

    folder.mkdir(parents=True, exist_ok=True)
    source = files("sklearn_ape").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(thumbnail=_thumbnail, zip=zip)
    page = folder / "index.html"
    html = environment.from_string(source).render(
        result=result, curve=_curve(result), kept=_kept(result)
    )
    page.write_text(html, encoding="utf-8")
    contact_sheet(result.searches).save(folder / "search.png")
    return page


def contact_sheet(searches: Sequence[Search], size: int = 112) -> Image.Image:
    """Draw queries and the images found for them.

    Parameters
    ----------
    searches : sequence of Search
        One row each.
    size : int, default=112
        Side of an image in pixels.

    Returns
    -------
    sheet : PIL.Image.Image
        Of mode RGB.
    """
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(18), ImageFont.load_default(12)
    columns = max(len(search.images) for search in searches)
    row_height = size + 56
    sheet = Image.new("RGB", (columns * (size + 12) + 12, len(searches) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, search in enumerate(searches):
        top = row * row_height
        draw.text((12, top + 6), f"“{search.query}”", fill="#1f2937", font=font)
        for column, (path, caption) in enumerate(zip(search.images, search.captions, strict=True)):
            left = 12 + column * (size + 12)
            with Image.open(path) as image:
                sheet.paste(image.convert("RGB").resize((size, size)), (left, top + 30))
            shown = caption if len(caption) <= 18 else caption[:17] + "…"
            draw.text((left, top + 32 + size), shown, fill="#4b5563", font=small)
    return sheet


def _kept(result: DemoResult) -> str:
    """Say which epoch was kept; the history's first row is the start, epoch 0, if there is one."""
    n_epochs = sum(row["epoch"] > 0 for row in result.history)
    if result.best_epoch == 0:
        return f"the start in closed form was kept, which {n_epochs} epochs did not beat"
    return f"epoch {result.best_epoch} of {n_epochs} was kept"


def _thumbnail(path: str) -> str:
    """Return an image as a data address."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _curve(result: DemoResult, width: int = 560, height: int = 160) -> str:
    """Return the points of the held-out recall by epoch, scaled to the drawing."""
    recalls = [row.get("valid_recall", 0.0) for row in result.history]
    top = max(recalls) or 1.0
    step = width / max(1, len(recalls) - 1)
    return " ".join(
        f"{place * step:.1f},{height * (1 - recall / top):.1f}"
        for place, recall in enumerate(recalls)
    )
