"""Tables and the HTML report of the demo."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._demo import PHOTO_NAMES, PHOTO_TRUTHS, CurvePoint, DemoResult, Prediction, Search

if TYPE_CHECKING:
    from PIL import Image

_THUMBNAIL_SIDE = 96

# Size of the plot in pixels.
_PLOT_WIDTH, _PLOT_HEIGHT = 340, 200


def print_result(result: DemoResult) -> None:
    """Print the scores and the cost as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    photographs = Table(
        title="Photographs named by the starter model, without training", title_justify="left"
    )
    for heading in ("photograph", "most probable names"):
        photographs.add_column(heading)
    for photograph in result.photographs:
        photographs.add_row(photograph.truth, _describe_names(photograph, n_names=3))
    console.print(photographs)
    n = result.n_held_out
    console.print(
        f"\nThe starter model, which was trained on emoji of other styles, was extended by "
        f"{result.n_train} captioned emoji, and tested on {n} held-out images, whose captions are "
        "not among them."
    )
    curve = Table(title="Recall@1 by number of training pairs", title_justify="left")
    curve.add_column("training pairs")
    for point in result.curve:
        curve.add_column(str(point.n_pairs), justify="right")
    curve.add_row("starter and these", *(f"{point.extended:.1%}" for point in result.curve))
    curve.add_row("these alone", *(f"{point.alone:.1%}" for point in result.curve), style="dim")
    console.print(curve)
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

    stages = Table(title="Time", title_justify="left")
    for heading in ("stage", "seconds"):
        stages.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, seconds in result.seconds.items():
        stages.add_row(name, f"{seconds:.1f}")
    console.print(stages)
    is_cached = result.image_cache.misses == 0 and result.text_cache.misses == 0
    source = "from the cache" if is_cached else f"{result.image_cache.misses} images encoded"
    console.print(f"Features: {source}. {result.n_parameters:,} parameters.")
    console.print(
        "\nNext, with your own images:\n"
        '  sklearn-ape classify FOLDER --labels "a cat,a dog"   (without training)\n'
        "  sklearn-ape fit FOLDER --captions filename -o MODEL  (with your captions)\n"
        '  APEAligner(init="starter").fit(images, captions)     (in Python)',
        highlight=False,
        markup=False,
    )


def _describe_names(prediction: Prediction, n_names: int) -> str:
    names = zip(prediction.names[:n_names], prediction.probabilities[:n_names], strict=True)
    return ", ".join(f"{name} {_format_percent(probability)}" for name, probability in names)


def write_report(result: DemoResult, folder: Path) -> Path:
    """Write the report ``index.html``, which contains its images, and ``search.png``.

    Parameters
    ----------
    result : DemoResult
        Return value of `run_demo`.
    folder : pathlib.Path
        Folder of the report, created if it does not exist.

    Returns
    -------
    page : pathlib.Path
        Path of ``index.html``.
    """
    from jinja2 import Environment

    folder.mkdir(parents=True, exist_ok=True)
    source = files("sklearn_ape").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(thumbnail=_encode_thumbnail, percent=_format_percent, zip=zip)
    page = folder / "index.html"
    html = environment.from_string(source).render(
        result=result,
        plot=_make_plot(result.curve),
        n_photo_names=len(PHOTO_NAMES),
        photo_truths=PHOTO_TRUTHS,
    )
    page.write_text(html, encoding="utf-8")
    draw_contact_sheet(result.searches).save(folder / "search.png")
    return page


def draw_contact_sheet(searches: Sequence[Search], size: int = 112) -> Image.Image:
    """Draw queries with their results.

    Parameters
    ----------
    searches : sequence of Search
        Queries and results, drawn as one row per query.
    size : int, default=112
        Side length of each image in pixels.

    Returns
    -------
    sheet : PIL.Image.Image
        RGB image.
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
            label = caption if len(caption) <= 18 else caption[:17] + "…"
            draw.text((left, top + 32 + size), label, fill="#4b5563", font=small)
    return sheet


def _encode_thumbnail(item: str | np.ndarray) -> str:
    """Return a small copy of an image, a path or an array, as a data URL."""
    from PIL import Image

    with Image.fromarray(item) if isinstance(item, np.ndarray) else Image.open(item) as image:
        small = image.convert("RGB")
        small.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _format_percent(fraction: float) -> str:
    """Return a fraction in percent, without rounding it to 0 % or 100 %."""
    space = "\N{NO-BREAK SPACE}"
    if 0 < fraction < 0.01:
        return f"<{space}1{space}%"
    if 0.99 < fraction < 1:
        return f">{space}99{space}%"
    return f"{100 * fraction:.0f}{space}%"


def _make_plot(curve: Sequence[CurvePoint]) -> dict[str, Any]:
    """Return the lines and ticks of a plot of recall by number of own pairs, in pixels."""
    lines = {
        "starter and these pairs": [point.extended for point in curve],
        "these pairs alone": [point.alone for point in curve],
    }
    # The next multiple of 0.1, so that ticks are round.
    top = math.ceil(10 * max(max(values) for values in lines.values()) + 1e-9) / 10

    def position(index: int, recall: float) -> tuple[float, float]:
        # Evenly spaced, because the numbers of pairs grow by factors.
        return index / (len(curve) - 1) * _PLOT_WIDTH, (1 - recall / top) * _PLOT_HEIGHT

    return {
        "width": _PLOT_WIDTH,
        "height": _PLOT_HEIGHT,
        "lines": {
            name: [position(index, value) for index, value in enumerate(values)]
            for name, values in lines.items()
        },
        "pairs": [(position(index, 0)[0], point.n_pairs) for index, point in enumerate(curve)],
        "recalls": [(position(0, share * top)[1], share * top) for share in (0, 0.5, 1)],
    }
