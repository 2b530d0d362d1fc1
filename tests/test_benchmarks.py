"""The accuracy benchmark: that it can go on where it stopped, and that its figures are right."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks._results import Results
from benchmarks.accuracy import methods, plan, report, runs
from benchmarks.accuracy.data import ClassifierHead, Collections, EvaluationSet, TrainingPairs
from sklearn_ape import CCAAligner
from sklearn_ape.encoders import HeadPairs

TABLES = "ABCDEFGH"


@pytest.fixture
def made_up(concepts):
    """Pairs to train on, a test of which two images share a caption, and a head."""
    image, text = concepts.image, concepts.text
    captions = [f"concept {i}" for i in range(300)]
    titles = ["", "a title"] * 100
    train = TrainingPairs(image[:200], text[:200], captions[:200], titles, text[100:])
    pairs = np.column_stack([np.arange(100), np.r_[0, np.arange(99)]])
    test = EvaluationSet("made up", image[200:], text[201:], captions[201:], pairs)
    weights, texts = image[:20], 2 * text[200:220]
    pairs_of_head = HeadPairs(weights, texts)
    head = ClassifierHead(weights, np.zeros(20, np.float32), texts, pairs_of_head, pairs_of_head)
    return SimpleNamespace(train=train, test=test, head=head)


def test_rows_are_those_of_the_aligner(made_up):
    """What is written is what the aligner's own report says, by cosine and standardised."""
    train, test = made_up.train, made_up.test
    rows = methods.fit_and_test("CCA", train, [test], made_up.head, seed=0)
    aligner = CCAAligner().fit(train.image, train.text)
    numbers = test.pairs[:, 1]
    text = test.text[numbers]
    expected = aligner.retrieval_report(test.image, text, ks=(1, 5), groups=numbers)
    assert [row["scores"] for row in rows] == ["cosine", "standardised"]
    for way, recall in zip(("i2t", "t2i"), expected.values(), strict=True):
        for k in (1, 5):
            assert rows[0][f"{way}@{k}"] == pytest.approx(100 * recall[k], abs=1e-3)


def test_titles_and_head_pairs_are_learnt(made_up):
    """Further captions and classes reach the aligner: a kernel stores each of them."""
    names = ["kernel ridge", "kernel ridge + head pairs", "kernel ridge + head pairs + titles"]
    given = (made_up.train, [made_up.test], made_up.head, 0)
    sizes = [methods.fit_and_test(name, *given)[0]["parameters"] for name in names]
    assert sizes[0] < sizes[1] < sizes[2]


def test_recalls_count_any_image_of_a_caption(made_up):
    """A perfect similarity is 100 %, an empty one 0: ties count against a query."""
    perfect = np.zeros((100, 99), np.float32)
    perfect[tuple(made_up.test.pairs.T)] = 1
    assert set(methods.compute_recall(perfect, made_up.test.pairs).values()) == {100}
    assert set(methods.compute_recall(0 * perfect, made_up.test.pairs).values()) == {0}


def test_chance_is_what_random_orders_reach(made_up):
    """The row is exact, so many random similarities come near to it."""
    expected = methods.fit_and_test("chance", made_up.train, [made_up.test], made_up.head, 0)[0]
    rng = np.random.default_rng(0)
    drawn = [methods.compute_recall(rng.random((100, 99)), made_up.test.pairs) for _ in range(300)]
    for key in drawn[0]:
        assert np.mean([row[key] for row in drawn]) == pytest.approx(expected[key], abs=0.3)


def test_conse_takes_the_likeliest_names(made_up):
    """An image that lies on a class is nearest to that class's text."""
    weights = 100 * np.eye(20, 32, dtype=np.float32)
    head = made_up.head._replace(weights=weights)
    similarity = methods.ConSE(head).similarity(np.eye(20, 32), head.class_texts)
    np.testing.assert_array_equal(similarity.argmax(axis=1), np.arange(20))


def test_a_fit_that_ran_out_of_time_says_so(made_up):
    """A row of a training that was cut short must not pass for a whole one."""
    rows = methods.fit_and_test(
        "linear (recipe)", made_up.train, [made_up.test], made_up.head, seed=0, effort=1e-9
    )
    assert rows[0]["epochs"] == 1
    assert "stopped after 0 CPU seconds, max_epochs=100" in rows[0]["note"]


def test_curve_measures_every_epoch(made_up):
    """Training and held-out recall, of an aligner that copies its callbacks."""
    rows = runs._run_curve(
        plan.PLAIN, made_up.train, [made_up.test], 0, SimpleNamespace(head=made_up.head), 0.03
    )
    assert [(row["test"], row["step"]) for row in rows] == [
        (test, step) for step in (1, 2, 3) for test in ("training pairs", "held-out pairs")
    ]


def test_a_killed_run_goes_on(tmp_path):
    """Whole rows are kept, a line that was cut off is not taken for one."""
    file = tmp_path / "results" / "accuracy.csv"
    row = {"fit": "CCA", "setting": "clip art", "seed": 0, "i2t@1": 1.5, "note": "a, b"}
    Results(file, plan.COLUMNS).append([row, row | {"method": "second row"}])
    Results(file, plan.COLUMNS).append([row | {"seed": 1}])
    with file.open("a") as stream:
        stream.write("A,ASIF,clip")
    results = Results(file, plan.COLUMNS)
    assert plan.completed_fits(results.rows) == {("CCA", "clip art", 0), ("CCA", "clip art", 1)}
    assert [row["note"] for row in results.rows] == ["a, b"] * 3
    results.append([row | {"fit": "ASIF"}])
    results.remove("fit", ["CCA"])
    assert plan.completed_fits(Results(file, plan.COLUMNS).rows) == {("ASIF", "clip art", 0)}


def test_first_seed_reaches_every_table_first():
    """A run that is interrupted holds something of every table."""
    tasks = plan.plan_tasks(TABLES, n_seeds=3)
    assert len({task.key for task in tasks}) == len(tasks)
    seeds = [task.seed for task in tasks]
    assert seeds == sorted(seeds, key=bool)
    assert set("".join(task.table for task in tasks if not task.seed)) == set(TABLES)
    assert all("C" in task.table for task in tasks if task.isolated)
    assert {task.fit for task in plan.plan_tasks("C", 3) if not task.seed} == set(plan.COST)


def test_rows_to_train_on_share_nothing_with_those_tested():
    """At most five images a caption; no caption, file or concept on both sides."""
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
    rows = collections.clip_art_rows(0)
    counts = np.unique([collections.clip_art.captions[row] for row in rows], return_counts=True)[1]
    assert counts.max() == 5
    assert (collections.clip_art_rows(0) == rows).all()
    assert set(collections.clip_art_rows(1)) != set(rows)
    train, test = collections.folder_rows(0)
    for column in (
        collections.clip_art.captions,
        collections.clip_art.categories,
        collections.clip_art.groups,
    ):
        assert not {column[row] for row in train} & {column[row] for row in test}
    train, test = (
        {collections.emoji.concepts[row] for row in part} for part in collections.emoji_rows(0)
    )
    assert not train & test


def test_tables_show_means_and_spreads():
    """Means over seeds in the tables; tables without rows are empty."""
    rows = [
        {"table": "ABF", "fit": "CCA", "method": "CCA", "setting": "clip art", "test": "stamps",
         "scores": "cosine", "n_pairs": "100", "note": "", "seed": str(seed), "step": "",
         "i2t@1": str(value), "i2t@5": "20", "t2i@1": "9", "t2i@5": "20", "seconds": "1",
         "parameters": "7", "score": "", "std": "", "peak_mb": "", "added_mb": ""}
        for seed, value in enumerate((10, 11, 12))
    ]  # fmt: skip
    found = report.Measurements(rows)
    tables = {letter: make(found) for letter, make in report.TABLE_MAKERS.items()}
    assert "11.0 ± 1.0" in report.format_table(tables["A"])
    assert "11.0 ± 1.0" in report.format_table(tables["B"])
    assert [letter for letter, table in tables.items() if table.rows] == ["A", "B", "F"]
