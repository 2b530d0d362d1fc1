"""Accuracy benchmark: measurements, plan, resumption of an interrupted run. Figures of results."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import figures
from benchmarks._results import RESULTS, Results
from benchmarks.accuracy import methods, plan, report, runs
from benchmarks.accuracy.data import ClassifierHead, Collections, EvaluationSet, TrainingPairs
from sklearn_ape import CCAAligner
from sklearn_ape.encoders import HeadPairs

TABLES = "ABCDEFGH"


@pytest.fixture
def sample(concepts):
    """Return training pairs, a test set in which two images share a caption, and a head."""
    image, text = concepts.image, concepts.text
    captions = [f"concept {i}" for i in range(300)]
    titles = ["", "a title"] * 100
    train = TrainingPairs(image[:200], text[:200], captions[:200], titles, text[100:])
    pairs = np.column_stack([np.arange(100), np.r_[0, np.arange(99)]])
    test = EvaluationSet("random", image[200:], text[201:], captions[201:], pairs)
    weights, texts = image[:20], 2 * text[200:220]
    pairs_of_head = HeadPairs(weights, texts)
    head = ClassifierHead(weights, np.zeros(20, np.float32), texts, pairs_of_head, pairs_of_head)
    return SimpleNamespace(train=train, test=test, head=head)


def test_rows_match_retrieval_report(sample):
    """Recall by cosine equals that of the aligner's retrieval report; both scores have a row."""
    train, test = sample.train, sample.test
    rows = methods.fit_and_test("CCA", train, [test], sample.head, seed=0)
    aligner = CCAAligner().fit(train.image, train.text)
    groups = test.pairs[:, 1]
    text = test.text[groups]
    expected = aligner.retrieval_report(test.image, text, ks=(1, 5), groups=groups)
    assert [row["scores"] for row in rows] == ["cosine", "standardised"]
    for direction, recall in zip(("i2t", "t2i"), expected.values(), strict=True):
        for k in (1, 5):
            assert rows[0][f"{direction}@{k}"] == pytest.approx(100 * recall[k], abs=1e-3)


def test_titles_and_head_pairs_are_trained_on(sample):
    """A kernel has one parameter vector per text, so additional texts increase its size."""
    names = ["kernel ridge", "kernel ridge + head pairs", "kernel ridge + head pairs + titles"]
    data = (sample.train, [sample.test], sample.head, 0)
    sizes = [methods.fit_and_test(name, *data)[0]["parameters"] for name in names]
    assert sizes[0] < sizes[1] < sizes[2]


def test_recall_counts_any_image_of_a_caption(sample):
    """Perfect similarities give 100 %, constant ones 0 %, since ties count as errors."""
    perfect = np.zeros((100, 99), np.float32)
    perfect[tuple(sample.test.pairs.T)] = 1
    assert set(methods.compute_recall(perfect, sample.test.pairs).values()) == {100}
    assert set(methods.compute_recall(0 * perfect, sample.test.pairs).values()) == {0}


def test_chance_equals_mean_of_random_similarities(sample):
    """The exact expectation is close to the mean over many random similarities."""
    expected = methods.fit_and_test("chance", sample.train, [sample.test], sample.head, 0)[0]
    rng = np.random.default_rng(0)
    recalls = [
        methods.compute_recall(rng.random((100, 99)), sample.test.pairs) for _ in range(300)
    ]
    for key in recalls[0]:
        assert np.mean([row[key] for row in recalls]) == pytest.approx(expected[key], abs=0.3)


def test_conse_predicts_most_probable_class(sample):
    """An image equal to the weights of a class is most similar to the text of that class."""
    weights = 100 * np.eye(20, 32, dtype=np.float32)
    head = sample.head._replace(weights=weights)
    similarity = methods.ConSE(head).similarity(np.eye(20, 32), head.class_texts)
    np.testing.assert_array_equal(similarity.argmax(axis=1), np.arange(20))


def test_fit_stopped_by_time_limit_has_a_note(sample):
    """The note distinguishes rows of a stopped training from those of a complete one."""
    rows = methods.fit_and_test(
        "linear (recipe)", sample.train, [sample.test], sample.head, seed=0, effort=1e-9
    )
    assert rows[0]["epochs"] == 1
    assert "stopped after 0 CPU seconds, max_epochs=100" in rows[0]["note"]


def test_curve_has_one_row_per_epoch(sample):
    """Both test sets are measured after every epoch, although aligners copy their callbacks."""
    rows = runs._run_curve(
        plan.PLAIN, sample.train, [sample.test], 0, SimpleNamespace(head=sample.head), 0.03
    )
    assert [(row["test"], row["step"]) for row in rows] == [
        (test, step) for step in (1, 2, 3) for test in ("training pairs", "held-out pairs")
    ]


def test_killed_run_is_resumed(tmp_path):
    """Complete rows are read; an incomplete last line is removed."""
    file = tmp_path / "results" / "accuracy.csv"
    row = {"fit": "CCA", "setting": "clip art", "seed": 0, "i2t@1": 1.5, "note": "a, b"}
    Results(file, plan.COLUMNS).append([row, row | {"method": "second row"}])
    Results(file, plan.COLUMNS).append([row | {"seed": 1}])
    with file.open("a") as stream:
        stream.write("A,ASIF,clip")
    results = Results(file, plan.COLUMNS)
    assert plan.find_completed_fits(results.rows) == {
        ("CCA", "clip art", 0),
        ("CCA", "clip art", 1),
    }
    assert [row["note"] for row in results.rows] == ["a, b"] * 3
    results.append([row | {"fit": "ASIF"}])
    results.remove("fit", ["CCA"])
    assert plan.find_completed_fits(Results(file, plan.COLUMNS).rows) == {("ASIF", "clip art", 0)}


def test_plan_runs_first_seed_of_all_tables_first():
    """An interrupted run has rows for every table."""
    tasks = plan.plan_tasks(TABLES, n_seeds=3)
    assert len({task.key for task in tasks}) == len(tasks)
    seeds = [task.seed for task in tasks]
    assert seeds == sorted(seeds, key=bool)
    assert set("".join(task.table for task in tasks if not task.seed)) == set(TABLES)
    assert all("C" in task.table for task in tasks if task.isolated)
    assert {task.fit for task in plan.plan_tasks("C", 3) if not task.seed} == set(plan.COST)


def test_training_and_test_rows_are_disjoint():
    """At most five images per caption; no caption, file or concept is in both parts."""
    rng = np.random.default_rng(0)
    collections = Collections("memory")
    collections.clip_art = SimpleNamespace(
        captions=[f"caption {i}" for i in rng.integers(100, size=900)],
        categories=rng.choice(list("abcdefgh"), 900),
        groups=rng.integers(800, size=900),
    )
    collections.emoji = SimpleNamespace(
        captions=[""] * 100, concepts=list(map(str, range(50))) * 2
    )
    rows = collections.draw_clip_art_rows(0)
    counts = np.unique([collections.clip_art.captions[row] for row in rows], return_counts=True)[1]
    assert counts.max() == 5
    assert (collections.draw_clip_art_rows(0) == rows).all()
    assert set(collections.draw_clip_art_rows(1)) != set(rows)
    train, test = collections.split_folders(0)
    for column in (
        collections.clip_art.captions,
        collections.clip_art.categories,
        collections.clip_art.groups,
    ):
        assert not {column[row] for row in train} & {column[row] for row in test}
    train, test = (
        {collections.emoji.concepts[row] for row in part} for part in collections.split_emoji(0)
    )
    assert not train & test


def test_tables_show_mean_and_std():
    """Cells are means over seeds; tables without measurements have no rows."""
    rows = [
        {"table": "ABF", "fit": "CCA", "method": "CCA", "setting": "clip art", "test": "stamps",
         "scores": "cosine", "n_pairs": "100", "note": "", "seed": str(seed), "step": "",
         "i2t@1": str(value), "i2t@5": "20", "t2i@1": "9", "t2i@5": "20", "seconds": "1",
         "parameters": "7", "score": "", "std": "", "peak_mb": "", "added_mb": ""}
        for seed, value in enumerate((10, 11, 12))
    ]  # fmt: skip
    measurements = report.Measurements(rows)
    tables = {letter: make(measurements) for letter, make in report.TABLE_MAKERS.items()}
    assert "11.0 ± 1.0" in report.format_table(tables["A"])
    assert "11.0 ± 1.0" in report.format_table(tables["B"])
    assert [letter for letter, table in tables.items() if table.rows] == ["A", "B", "F"]


def test_speeds_are_sorted_and_include_peers():
    rows = [
        {"name": "encode images, onnx", "value": "9", "unit": "images/s"},
        {"name": "encode images, torch", "value": "3", "unit": "images/s"},
        {"name": "encode images, torch: largest 1 - cosine", "value": "0", "unit": ""},
        {"name": "encode large photographs, onnx", "value": "5", "unit": "images/s"},
        {"name": "encode texts torch", "value": "4", "unit": "texts/s"},
    ]
    rows = [{"peer": "a loop", "peer_value": "1", **row} for row in rows]
    speeds = figures.read_speeds(rows, "images")
    assert list(speeds.items()) == [
        ("a loop", 1),
        ("sklearn_ape, torch", 3),
        ("sklearn_ape, ONNX Runtime", 9),
    ]


def test_memory_is_sorted_by_size_and_converted_to_megabytes():
    rows = [
        {"name": "classify 2,000 rows: resident memory", "value": "100", "unit": "MiB"},
        {"name": "classify 500 rows: resident memory", "value": "7", "unit": "MB"},
        {"name": "classify 500 rows: CPU time per row", "value": "1", "unit": "s"},
    ]
    sizes, megabytes = figures.read_memory(rows, r"classify ([\d,]+) rows: resident memory")
    assert sizes == [500, 2000]
    assert megabytes == pytest.approx([7, 104.8576])


@pytest.mark.exhaustive
def test_figures_of_published_results_can_be_drawn(tmp_path):
    """All names in the published results are known, and no curve is empty."""
    pytest.importorskip("matplotlib")
    for name, plot in figures.PLOTS.items():
        shutil.copy(RESULTS / f"{name}.csv", tmp_path)
        figure = plot(figures.read_rows(RESULTS / f"{name}.csv"))
        lines = [line for axis in figure.axes for line in axis.get_lines()]
        assert all(len(line.get_xdata()) > 1 for line in lines)
    figures.draw(tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == len(figures.PLOTS)
