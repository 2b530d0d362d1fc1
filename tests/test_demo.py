"""The report of the demo: texts, and its accessibility."""

import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from sklearn_ape._demo import (
    CurvePoint,
    DemoResult,
    Prediction,
    _format_percent,
    print_result,
    write_report,
)


class Report(HTMLParser):
    """Parsed elements of the report."""

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.html = html
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def result(captioned_images):
    images, names = captioned_images.images[:6], captioned_images.captions[:6]
    recall = {1: 0.25, 5: 0.5, 10: 0.75}
    probabilities = [0.26, 0.2, 0.1, 0.004, 0.001]
    return DemoResult(
        n_train=1000,
        n_held_out=383,
        recall={"image_to_text": recall, "text_to_image": recall},
        concept_accuracy=0.26,
        concept_top_accuracy=0.61,
        category_accuracy=0.5,
        photographs=[
            Prediction(np.zeros((8, 8, 3), np.uint8), "china.jpg", ["a bus"] * 5, probabilities)
        ],
        predictions=[
            Prediction(images[0], names[0], names[:5], probabilities),
            Prediction(images[5], "<b>bold</b>", names[:5], probabilities),
        ],
        searches={"a fruit": list(zip(images, names, strict=True))},
        curve=[CurvePoint(0, 0.2, 0.003), CurvePoint(1000, 0.26, 0.1)],
        n_parameters=10,
        seconds={"train": 1.0},
        n_images_encoded=0,
    )


@pytest.fixture(scope="module")
def report(result, tmp_path_factory):
    page = write_report(result, tmp_path_factory.mktemp("report"))
    return Report(page.read_text(encoding="utf-8"))


class TestReport:
    def test_product_and_model_are_named(self, report):
        title = re.search(r"<title>(.*?)</title>", report.html)[1]
        assert "sklearn-ape" in title
        for name in ("starter model", "EfficientNet-Lite0", "all-MiniLM-L6-v2"):
            assert name in report.html

    def test_accuracy_is_shown_with_top_5_and_chance(self, report):
        text = " ".join(report.html.replace("&nbsp;", " ").split())
        assert re.search(r"26\.0 %.{0,80}383 names.{0,60}chance 0\.3 %", text)
        assert re.search(r"61\.0 %.{0,80}top-5.{0,100}chance 1\.3 %", text)
        assert "not calibrated" in text

    def test_names_that_are_not_in_the_top_5_are_shown_escaped(self, report):
        assert "correct: &lt;b&gt;bold&lt;/b&gt;" in report.html
        assert "<b>bold" not in report.html

    def test_contains_no_restructured_text(self, report):
        assert not re.search(r"^-{3,}|^:\w[\w, ]*:|``", report.html, re.MULTILINE)
        assert "CC BY-SA 4.0" in report.html  # the attribution

    def test_small_probabilities_are_not_rounded_to_zero(self):
        shown = [_format_percent(value) for value in (0, 0.004, 0.26, 0.996, 1)]
        assert [text.replace("\xa0", " ") for text in shown] == [
            *("0 %", "< 1 %", "26 %", "> 99 %", "100 %")
        ]

    def test_console_shows_chance_and_the_most_probable_names(self, result, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        print_result(result)
        shown = capsys.readouterr().out.replace("\xa0", " ")
        assert re.search(r"held-out concepts \W* 26\.0% \W* 0\.3%", shown)
        assert re.search(r"most probable \W* 61\.0% \W* 1\.3%", shown)
        first = result.predictions[0]
        assert re.search(rf"{first.truth} \W* {', '.join(first.names)}", shown)

    def test_narrow_console_shows_all_digits(self, result, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "40")
        print_result(result)
        assert "…" not in capsys.readouterr().out


class TestAccessibility:
    def test_images_and_plot_have_texts(self, report):
        images = report.all("img")
        assert len(images) == 9
        assert all(len(image["alt"]) > 2 for image in images)
        (plot,) = report.all("svg")
        assert f'id="{plot["aria-labelledby"]}"' in report.html

    def test_language_is_set(self, report):
        assert report.all("html")[0]["lang"] == "en"

    def test_headings_are_in_order(self, report):
        levels = [int(tag[1]) for tag, _ in report.elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))

    def test_tables_have_captions_and_scopes(self, report):
        assert len(report.all("caption")) == len(report.all("table")) == 3
        assert all(cell.get("scope") in ("row", "col") for cell in report.all("th"))

    def test_texts_have_contrast_in_both_color_schemes(self, report):
        """4.5:1 is the minimum of WCAG 2 (level AA) for text."""
        light, dark = (
            dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
            for block in re.findall(r":root \{(.*?)\}", report.html)
        )
        assert re.search(r"@media \(prefers-color-scheme: dark\) \{\s*:root", report.html)
        assert light.keys() == dark.keys()
        for colors in (light, dark):
            for name in ("ink", "soft", "good", "bad", "first", "second"):
                for background in ("paper", "box"):
                    assert contrast(colors[name], colors[background]) >= 4.5, (name, background)


def contrast(first, second):
    """Return the contrast ratio of two colors by the definition of WCAG 2."""
    luminances = []
    for color in (first, second):
        values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        luminances.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)
