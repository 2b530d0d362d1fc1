"""TrainingHistoryDisplay: loss, recall and the selected epoch."""

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_ape import APEAligner, CCAAligner
from sklearn_ape.inspection import TrainingHistoryDisplay


def fit_aligner(concepts, **parameters):
    aligner = APEAligner(width=16, depth=1, max_epochs=4, random_state=0, **parameters)
    return aligner.fit(concepts.image[:150], concepts.text[:150])


class TestTrainingHistoryDisplay:
    def test_shows_the_history(self, concepts, ax):
        aligner = fit_aligner(concepts, init=None)
        display = TrainingHistoryDisplay.from_estimator(aligner, name="$x_1$")
        losses = [row["train_loss"] for row in aligner.history_]
        np.testing.assert_array_equal(display.loss_line_.get_ydata(), losses)
        recalls = [row["valid_recall"] for row in aligner.history_]
        np.testing.assert_array_equal(display.recall_line_.get_ydata(), recalls)
        assert display.best_line_.get_xdata()[0] == aligner.best_epoch_
        assert display.start_line_ is None
        del aligner.history_
        assert display.plot(ax=ax, legend=False).ax_ is ax
        np.testing.assert_array_equal(display.loss_line_.get_ydata(), losses)

    def test_initialization_is_epoch_0_without_loss(self, concepts):
        aligner = fit_aligner(concepts)
        display = TrainingHistoryDisplay.from_estimator(aligner)
        assert display.recall_line_.get_xdata()[0] == 0
        assert display.loss_line_.get_xdata()[0] == 1
        assert display.start_line_.get_ydata()[0] == aligner.history_[0]["valid_recall"]
        expected = "initialization was kept" if aligner.best_epoch_ == 0 else "was kept"
        assert expected in display.best_line_.get_label()

    def test_aligner_in_pipeline_and_search_is_found(self, concepts):
        grid = GridSearchCV(
            make_pipeline(
                StandardScaler(), APEAligner(width=8, depth=1, max_epochs=2, random_state=0)
            ),
            {"apealigner__init": [None]},
            cv=KFold(2),
        ).fit(concepts.image, concepts.text)
        display = TrainingHistoryDisplay.from_estimator(grid)
        assert len(display.history) == len(grid.best_estimator_[-1].history_)

    def test_ticks_of_a_single_epoch_are_integers(self):
        display = TrainingHistoryDisplay([{"epoch": 1, "train_loss": 0.5}]).plot()
        assert all(tick == round(tick) for tick in display.ax_.get_xticks())

    def test_history_without_held_out_pairs_has_only_a_loss(self, concepts):
        display = TrainingHistoryDisplay.from_estimator(
            fit_aligner(concepts, init=None, early_stopping=False)
        )
        assert display.recall_line_ is display.recall_ax_ is None
        assert len(display.loss_line_.get_xdata()) == 4

    def test_aligner_without_history_raises(self, concepts):
        with pytest.raises(ValueError, match="CCAAligner, which has no history_"):
            TrainingHistoryDisplay.from_estimator(CCAAligner().fit(concepts.image, concepts.text))

    def test_empty_history_raises(self, concepts):
        aligner = APEAligner(random_state=0).fit(concepts.image[:20], concepts.text[:20])
        with pytest.raises(ValueError, match="history is empty"):
            TrainingHistoryDisplay.from_estimator(aligner)
