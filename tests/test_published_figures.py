"""Figures on the pages of the documentation, compared with the published results."""

import csv
import re
from collections import Counter

import numpy as np
import pytest

from benchmarks import figures, scale
from benchmarks._results import RESULTS, Results
from tests.robustness.numerics.case_table import CELLS

ROOT = RESULTS.parents[1]
# Names on the pages, and in the files of results.
NAMES = {
    "stamps by folder": "stamp folders",
    "the same, predict_together": "FewShotClassifier, predict_together",
    "predict, shares known": "predict, class_prior",
    "predict_together, shares known": "predict_together, class_prior",
    "all images": "all",
    "emoji, plain MLP": "mlp",
    "emoji, residual blocks": "residual",
    "init=None": "APE (init=None)",
}


def rename(name):
    return NAMES.get(name, name)


def read_tables(page):
    """Return the tables of a page, each as a list of rows of cells without Markdown."""
    tables, is_table = [], False
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            is_table = False
            continue
        if not is_table:
            tables.append([])
            is_table = True
        if not line.startswith("|---"):
            text = re.sub(r"\*\*|`| \[\d\]", "", line.replace("\xa0", " "))
            tables[-1].append([cell.strip() for cell in text.strip("|").split("|")])
    return tables


def find_table(page, *header):
    """Return the rows of the only table of a page whose header starts with these cells."""
    (table,) = (table for table in read_tables(page) if table[0][: len(header)] == list(header))
    return table


def read_results(name):
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def read_accuracies(table, file="few_labels"):
    """Return the accuracies of a file by collection, method and case."""
    return {
        (row["data"].partition(",")[0], row["method"], row["case"]): row["accuracy"]
        for row in read_results(file)
        if row["table"] == table
    }


@pytest.mark.parametrize(
    ("number", "table", "file"),
    [
        *((0, "few labels", "few_labels"), (1, "half of the classes", "few_labels")),
        *((2, "collections", "few_labels"), (4, "few labels", "cifar")),
        *((5, "collections", "cifar"), (6, "many labels", "cifar")),
    ],
)
def test_accuracies_of_classifiers(number, table, file):
    """The page has all rows of the file."""
    header, *rows = read_tables("docs/benchmark_classifiers.md")[number]
    cases = [rename(name.removesuffix(" images per class")) for name in header[2:]]
    accuracies = {}
    data = ""
    for name, method, *cells in rows:
        data = rename(name.partition(", ")[0]) or data
        for case, cell in zip(cases, cells, strict=True):
            if cell:
                accuracies[data, rename(method), case] = cell
    expected = read_accuracies(table, file)
    if "10 classes" not in cases:  # these are all classes of CIFAR-10 and Fashion-MNIST
        expected = {key: value for key, value in expected.items() if key[2] != "10 classes"}
    assert accuracies == expected


def test_accuracies_of_readme():
    header, *rows = find_table("README.md", "labelled images per class")
    expected = read_accuracies("few labels", "cifar")
    methods = (
        *("names alone", "FewShotClassifier"),
        *("FewShotClassifier, predict_together", "LogisticRegression"),
    )
    for method, (_, *cells) in zip(methods, rows, strict=True):
        for case, cell in zip(header[1:], cells, strict=True):
            if cell:
                assert cell == f"{expected['CIFAR-10', method, case]} %"


def test_accuracies_of_start_page():
    text = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    sentences = r"classes alone, ([\d.]+) %.* the accuracy to ([\d.]+) %"
    figures_of_page = re.search(sentences, text, re.DOTALL).groups()
    expected = read_accuracies("few labels", "cifar")
    cases = (("names alone", "0"), ("FewShotClassifier", "4"))
    assert list(figures_of_page) == [expected["CIFAR-10", method, case] for method, case in cases]


def test_gains_for_whole_collections():
    """The page has the range of the gains over three collections, and those for all digits."""
    _, *rows = find_table("docs/collections.md", "images", "shares unknown")
    accuracies = {key: float(accuracy) for key, accuracy in read_accuracies("collections").items()}
    images = ("emoji", "stamps", "stamp folders")
    sets = [(images, ["all"]), (images, ["100 images"])]
    sets += [(images, ["5 classes", "10 classes"]), (["digits"], ["all"])]
    together, informed = "predict_together", "predict_together, class_prior"
    methods = ((together, "predict"), (informed, "predict, class_prior"), (informed, "predict"))
    for (names, cases), (_, *cells) in zip(sets, rows, strict=True):
        for (method, baseline), cell in zip(methods, cells, strict=True):
            gains = [
                accuracies[name, method, case] - accuracies[name, baseline, case]
                for name in names
                for case in cases
            ]
            low, _, high = cell.partition(" to ")
            assert [round(min(gains)), round(max(gains))] == [int(low), int(high or low)]


def test_recall_of_methods():
    """Deviations that are rounded to 0 are left out on the page."""
    _, *rows = find_table("docs/benchmark_aligners.md", "method", "stamps")
    expected = {
        row["method"]: [
            f"{row['stamps i2t@1']} / {row['t2i@1']}",
            row["emoji, held-out concepts: i2t@1 / t2i@1"],
            row["clip art, held-out folders: i2t@1 / t2i@1"],
            row["seconds"],
        ]
        for row in read_results("accuracy_A")
    }
    assert len(rows) > 20
    for method, *cells in rows:
        assert cells[:4] == [cell.replace(" ± 0.0", "") for cell in expected[method]]


def test_recall_of_curated_pairs():
    _, *rows = find_table("docs/benchmark_aligners.md", "method", "selection")
    assert rows == [list(row.values()) for row in read_results("accuracy_G")]


def test_recall_by_number_of_pairs():
    results = Results(RESULTS / "scale.csv", scale.COLUMNS)
    header, *rows = find_table("docs/benchmark_aligners.md", "method", "1,000 pairs")
    methods = {label: method for method, label in scale.LABELS.items()}
    assert {methods[label] for label, *_ in rows} == set(scale.METHODS)
    for label, *cells in rows:
        for name, cell in zip(header[1:], cells, strict=True):
            n_pairs = int(re.sub(r"\D", "", name))
            mean = scale.mean_recall(results, methods[label], n_pairs, scale.TEST_SETS)
            assert cell.partition(" ")[0] == (f"{mean[0]:.1f}" if mean else "")


def test_recall_by_encoder():
    """Each row of the page is two lines of the file, one per test set."""
    _, *rows = find_table("docs/benchmark_aligners.md", "image encoder")
    lines = (RESULTS / "encoders.txt").read_text(encoding="utf-8").splitlines()[1:]
    expected = []
    for stamps, emoji in zip(lines[::2], lines[1::2], strict=True):
        cells, others = (re.split(r"\s{2,}", line) for line in (stamps, emoji))
        rate, test = cells[2].split()
        assert test == "stamps"
        expected.append([*cells[:2], rate, *cells[3:], *others[3:]])
    assert rows == expected


def test_recall_by_depth():
    header, *rows = find_table("docs/reproduction.md", "", "depth 1")
    depths = [re.sub(r"\D", "", name) for name in header[1:]]
    expected = {row["head"]: row for row in read_results("accuracy_E")}
    results = Results(RESULTS / "scale.csv", scale.COLUMNS)
    for name, *cells in rows:
        for depth, cell in zip(depths, cells, strict=True):
            if name.startswith("icons"):
                n_pairs = int(re.sub(r"\D", "", name))
                mean = scale.mean_recall(results, f"head-{depth}", n_pairs, scale.TEST_SETS)
                assert cell == (f"{mean[0]:.1f}" if mean else "")
            else:
                assert cell == expected[rename(name)][f"depth {depth}"].partition(" ")[0]


def test_recall_under_distribution_shift():
    header, *rows = find_table("docs/reproduction.md", "", "clip art → photographs")
    columns = [name.replace("→ photographs", "→ stamps: photographs") for name in header[1:]]
    expected = {
        row["method"]: row for row in read_results("accuracy_F") if row["scores"] == "cosine"
    }
    for name, *cells in rows:
        row = expected[rename(name)]
        assert cells == [re.sub(r" ± \d\.\d", "", row[column]) for column in columns]


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_encoding_speed(kind):
    _, *rows = find_table("docs/benchmark_speed.md", "", f"{kind}/s")
    speeds = figures.read_speeds(read_results("speed"), kind)
    rates = {}
    for method, rate, *_ in rows:
        method = re.sub(r" \(.*|'s TimmEncoder", "", method)
        method = re.sub(r"^T\w+Encoder, |^(?=OpenVINO|ONNX)", "sklearn_ape, ", method)
        rates[method] = rate
    rates.pop("photographs of 12 megapixels, OpenVINO", None)
    assert rates == {method: f"{speed:,.0f}" for method, speed in speeds.items()}


def test_speed_error_and_recall_of_engines():
    """The page has all configurations; errors below 1e-6 are 0."""
    _, *rows = find_table("docs/benchmark_speed.md", "encoder", "engine")
    results = {
        row["name"]: float(row["value"])
        for row in read_results("speed")
        if row["part"] == "precision"
    }
    engines = {"torch": "torch", "ONNX Runtime": "onnx", "OpenVINO": "openvino"}
    suffixes = ("", ": largest 1 - cosine", ": mean 1 - cosine", ": recall@1")
    encoder = ""
    for name, engine, dtype, *cells in rows:
        encoder = name.replace('pooling="gem"', "gem") or encoder
        for cell, suffix in zip(cells, suffixes, strict=True):
            value = results.pop(f"{encoder}, {engines[engine]} {dtype}{suffix}")
            number = cell.partition(" ")[0].replace(",", "")
            n_digits = len(number.partition(".")[2])
            assert abs(float(number) - value) < (1e-6 if cell == "0" else 0.501 * 10**-n_digits)
    assert not results


def test_counts_of_hostile_and_random_inputs():
    _, *rows = find_table("docs/benchmark_reliability.md", "inputs")
    names = ("files, read one by one", "files, one batch of an encoder", "fuzz")
    counts = {name: np.zeros(3, int) for name in names}
    for row in read_results("reliability"):
        name = row["part"] if row["part"] == "fuzz" else row["name"]
        if name in counts:
            counts[name] += [int(row[column]) for column in ("cases", "right", "clear_errors")]
    assert [cells for _, *cells in rows] == [
        [f"{count:,}" for count in row] for row in counts.values()
    ]


def test_counts_of_unusual_inputs():
    """`python -m benchmarks.reliability numerics` counts them again after a change."""
    counts = {
        row["name"]: [int(row["cases"]), int(row["clear_errors"])]
        for row in read_results("reliability")
        if row["part"] == "numerics"
    }
    n_cells = Counter(cell.table for cell in CELLS)
    n_errors = Counter(cell.table for cell in CELLS if cell.expected == "error")
    assert counts == {table: [n, n_errors[table]] for table, n in n_cells.items()}


def test_recall_of_starter_model_is_that_of_its_card():
    _, *card = find_table("sklearn_ape/aligners/starter_model/README.md", "direction")
    _, *rows = find_table("docs/benchmark_starter.md", "images", "direction")
    assert [cells for _, *cells in card] == [cells for _, _, *cells in rows[:2]]
