"""Training of `APEAligner`."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback

from sklearn_ape import APEAligner, KernelAligner
from sklearn_ape.aligners import _ape_trainer
from sklearn_ape.training.net import AlignmentNet


def small(**parameters):
    defaults = {"init": None, "width": 64, "max_epochs": 15, "random_state": 0}
    return APEAligner(**(defaults | parameters))


class TestScikitLearn:
    def test_clone_copies_parameters_only(self, concepts):
        aligner = small(depth=3).fit(concepts.image, concepts.text)
        cloned = clone(aligner)
        assert cloned.get_params() == aligner.get_params()
        assert not hasattr(cloned, "module_")

    def test_subclass_with_fewer_parameters_can_be_fitted(self, concepts):
        class TwoLayers(APEAligner):
            def __init__(self, width=16):
                super().__init__(init=None, depth=2, width=width, max_epochs=2, random_state=0)

        aligner = clone(TwoLayers(width=8)).fit(concepts.image, concepts.text)
        base = APEAligner(init=None, depth=2, width=8, max_epochs=2, random_state=0)
        assert aligner.fingerprint_ == base.fit(concepts.image, concepts.text).fingerprint_

    def test_transform_with_another_number_of_features_raises(self, concepts):
        aligner = small().fit(concepts.image, concepts.text)
        with pytest.raises(ValueError, match="5 features, but APEAligner is expecting 32"):
            aligner.transform(concepts.image[:, :5])
        with pytest.raises(ValueError, match="5 features, but APEAligner was fitted with 16"):
            aligner.transform_text(concepts.text[:, :5])


class TestFit:
    @pytest.mark.sampled(6)
    @pytest.mark.parametrize("head", ["mlp", "residual", "glu", "linear"])
    @pytest.mark.parametrize("side", ["text", "image", "both"])
    def test_heads_learn_common_concepts(self, concepts, head, side):
        aligner = small(head=head, side=side, depth=3, max_epochs=40, batch_size=32)
        aligner.fit(concepts.image[:200], concepts.text[:200])
        assert aligner.score(concepts.image[200:], concepts.text[200:]) > 0.3  # chance is 0.01
        width = {"text": 32, "image": 16, "both": 512}[side]
        assert aligner.transform(concepts.image).shape == (300, width)
        norms = np.linalg.norm(aligner.transform_text(concepts.text), axis=1)
        np.testing.assert_allclose(norms, 1, rtol=1e-5)

    @pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
    def test_loss_falls_and_scale_changes(self, concepts, loss):
        aligner = small(loss=loss).fit(concepts.image, concepts.text)
        assert aligner.history_[-1]["train_loss"] < aligner.history_[0]["train_loss"]
        assert aligner.logit_scale_ != pytest.approx(1 / 0.07)
        fixed = small(loss=loss, loss_params={"learn_logit_scale": False}).fit(
            concepts.image, concepts.text
        )
        assert fixed.logit_scale_ == pytest.approx(1 / 0.07)

    def test_side_text_only_standardizes_images(self, concepts):
        """Neighbours among images stay those of the frozen encoder."""
        aligner = small().fit(concepts.image, concepts.text)
        head = aligner.module_.image_head
        assert list(head.parameters()) == []
        standardized = (
            concepts.image - head.standardize.mean.numpy()
        ) / head.standardize.scale.numpy()
        expected = standardized / np.linalg.norm(standardized, axis=1, keepdims=True)
        np.testing.assert_allclose(aligner.transform(concepts.image), expected, atol=1e-5)

    def test_fewer_components_are_principal_components_of_images(self, concepts):
        """The features are linear in 8 concepts, so 8 components preserve inner products."""
        full = small().fit(concepts.image, concepts.text).transform(concepts.image)
        few = small(n_components=8).fit(concepts.image, concepts.text).transform(concepts.image)
        assert few.shape == (300, 8)
        np.testing.assert_allclose(few @ few.T, full @ full.T, atol=1e-3)

    def test_same_seed_gives_bitwise_identical_fits(self, concepts):
        first, second = (small(dropout=0.5).fit(concepts.image, concepts.text) for _ in range(2))
        assert first.fingerprint_ == second.fingerprint_
        assert first.logit_scale_ == second.logit_scale_
        other = small(dropout=0.5, random_state=1).fit(concepts.image, concepts.text)
        assert other.fingerprint_ != first.fingerprint_

    def test_fit_does_not_change_global_generators(self, concepts):
        before = torch.get_rng_state(), copy.deepcopy(np.random.get_state())  # noqa: NPY002
        small().fit(concepts.image, concepts.text)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1][1].tolist() == np.random.get_state()[1].tolist()  # noqa: NPY002

    def test_small_sets_train_with_any_batch_size(self):
        """A batch size above the number of pairs must not leave the heads untrained."""
        rng = np.random.default_rng(0)
        image, text = rng.standard_normal((6, 5)), rng.standard_normal((6, 4))
        aligner = small(batch_size=4096, max_epochs=60, dropout=0.0).fit(image, text)
        assert aligner.score(image, text) == 1.0
        assert aligner.n_epochs_ == 60

    def test_best_epoch_is_kept_with_its_scale(self, concepts):
        rng = np.random.default_rng(0)
        noisy = concepts.text + 2 * rng.standard_normal(concepts.text.shape).astype(np.float32)
        aligner = small(max_epochs=200, n_iter_no_change=5, refit=False).fit(concepts.image, noisy)
        recalls = [row["valid_recall"] for row in aligner.history_]
        assert aligner.best_epoch_ == int(np.argmax(recalls)) + 1
        assert aligner.n_epochs_ == aligner.best_epoch_ + 5 < 200
        best = aligner.history_[aligner.best_epoch_ - 1]
        assert aligner.logit_scale_ == pytest.approx(best["logit_scale"], rel=1e-5)

    def test_refit_trains_on_the_held_out_pairs(self, concepts):
        """The refit uses all pairs and runs for the best number of epochs."""
        refitted = small(max_epochs=12, batch_size=32).fit(concepts.image, concepts.text)
        assert len(refitted.history_) == refitted.n_epochs_
        mean = refitted.module_.text_head.standardize.mean.numpy()
        np.testing.assert_allclose(mean, concepts.text.mean(axis=0), atol=1e-5)
        without = small(max_epochs=12, batch_size=32, refit=False)
        without.fit(concepts.image, concepts.text)
        assert without.history_[0]["train_loss"] == refitted.history_[0]["train_loss"]
        assert without.fingerprint_ != refitted.fingerprint_

    @pytest.mark.exhaustive
    def test_interrupted_refit_warns_and_keeps_the_heads_of_the_search(
        self, concepts, monkeypatch
    ):
        """The heads of the refit are untrained after a few steps."""
        options = {"max_epochs": 40, "batch_size": 32}
        search = small(**options, refit=False).fit(concepts.image, concepts.text)
        refit_heads = _ape_trainer._refit_heads

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        def refit_interrupted(*args):
            monkeypatch.setattr(AlignmentNet, "train_step", interrupt)
            return refit_heads(*args)

        monkeypatch.setattr(_ape_trainer, "_refit_heads", refit_interrupted)
        message = f"on all pairs was stopped after 0 of {search.best_epoch_} epochs"
        with pytest.warns(ConvergenceWarning, match=message):
            aligner = small(**options).fit(concepts.image, concepts.text)
        assert aligner.fingerprint_ == search.fingerprint_
        assert aligner.logit_scale_ == search.logit_scale_

    def test_early_stopping_false_trains_all_epochs_on_all_pairs(self, concepts):
        aligner = small(early_stopping=False).fit(concepts.image, concepts.text)
        assert aligner.n_epochs_ == aligner.best_epoch_ == 15
        assert "valid_recall" not in aligner.history_[0]

    def test_n_parameters_counts_the_heads(self, concepts):
        aligner = small(depth=2).fit(concepts.image, concepts.text)
        assert aligner.n_parameters_ == (16 * 64 + 64) + (64 * 32 + 32)

    def test_divergence_raises_with_the_parameter_to_lower(self, concepts):
        with pytest.raises(FloatingPointError, match="Lower learning_rate"):
            small(learning_rate=1e30).fit(concepts.image, concepts.text)

    def test_interruption_at_the_end_of_an_epoch_counts_the_epoch(self, concepts):
        class Interrupt(Callback):
            def on_epoch_end(self, net, **kwargs):
                if len(net.history) == 3:
                    raise KeyboardInterrupt

        aligner = small(callbacks=[Interrupt()])
        with pytest.warns(UserWarning, match="stopped after 3 of 15 epochs"):
            aligner.fit(concepts.image, concepts.text)
        assert aligner.n_epochs_ == len(aligner.history_) == 3
        recalls = [row["valid_recall"] for row in aligner.history_]
        assert aligner.best_epoch_ == np.argmax(recalls) + 1
        assert aligner.transform(concepts.image).shape == (300, 32)

    def test_interruption_while_the_best_weights_are_copied_stops_training(
        self, concepts, monkeypatch
    ):
        """Training continued, and the epoch was called the best one with weights of another."""
        copies = []

        def interrupt_third(weights):
            copies.append(weights)
            if len(copies) == 3:
                raise KeyboardInterrupt
            return copy.deepcopy(weights)

        monkeypatch.setattr("skorch.callbacks.training.deepcopy", interrupt_third)
        with pytest.warns(ConvergenceWarning, match="stopped after"):
            aligner = small(refit=False).fit(concepts.image, concepts.text)
        assert len(copies) == 3
        assert aligner.best_epoch_ == aligner.n_epochs_
        assert aligner.logit_scale_ == aligner.history_[-1]["logit_scale"]

    def test_skorch_callbacks_are_called_each_epoch(self, concepts):
        epochs = []

        class Count(Callback):
            def on_epoch_end(self, net, **kwargs):
                epochs.append(net.history[-1, "epoch"])

        small(callbacks=[("count", Count())], max_epochs=4).fit(concepts.image, concepts.text)
        assert epochs == [1, 2, 3, 4]

    def test_callback_of_the_user_may_be_named_best(self, concepts, tmp_path):
        """Without held-out pairs, no callback of the package has this name."""
        options = {"early_stopping": False, "max_epochs": 2, "checkpoint": tmp_path}
        aligner = small(callbacks=[("best", Callback())], **options)
        assert aligner.fit(concepts.image, concepts.text).best_epoch_ == 2

    def test_scikit_learn_callbacks_are_called_each_epoch(self, concepts):
        pytest.importorskip("sklearn.callback")
        tasks = []

        class Count:
            def setup(self, estimator, context):
                pass

            def on_fit_task_begin(self, estimator, context, **kwargs):
                pass

            def on_fit_task_end(self, estimator, context, **kwargs):
                tasks.append(context.task_name)

            def teardown(self, estimator, context):
                pass

        aligner = small(max_epochs=4).set_callbacks(Count())
        pickle.dumps(aligner.set_callbacks().fit(concepts.image, concepts.text))
        aligner.set_callbacks(Count()).fit(concepts.image, concepts.text)
        assert tasks == ["epoch"] * 4 + ["fit"]

    def test_progress_is_written_to_stderr_if_verbose(self, concepts, capfd):
        small(max_epochs=2).fit(concepts.image, concepts.text)
        assert capfd.readouterr() == ("", "")
        small(max_epochs=2, verbose=1).fit(concepts.image, concepts.text)
        out, err = capfd.readouterr()
        assert "2/2" in err
        assert out == ""


@pytest.mark.exhaustive
def test_fit_is_bitwise_identical_in_another_process():
    """Results must not depend on the state of the process, such as hash seeds."""
    code = (
        "import numpy as np; from sklearn_ape import APEAligner;"
        "rng = np.random.default_rng(0); X, Y = rng.standard_normal((2, 80, 9));"
        "fitted = APEAligner(width=32, max_epochs=5, random_state=3).fit(X, Y)"
    )
    here = {}
    exec(code, here)
    other = subprocess.run(
        [sys.executable, "-c", f"{code}; print(fitted.fingerprint_)"],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == here["fitted"].fingerprint_


class TestPrecision:
    """``optimizer_params={"dtype": ...}``."""

    def fit(self, concepts, dtype, **params):
        aligner = small(optimizer_params={"dtype": dtype}, max_epochs=8, **params)
        return aligner.fit(concepts.image, concepts.text)

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("init", ["auto", None])
    def test_bfloat16_is_nearly_as_accurate_as_float32(self, concepts, init):
        exact = self.fit(concepts, "float32", init=init)
        rounded = self.fit(concepts, "bfloat16", init=init)
        assert {weights.dtype for weights in rounded.module_.parameters()} <= {torch.float32}
        losses = [
            [row["train_loss"] for row in aligner.history_ if "train_loss" in row]
            for aligner in (exact, rounded)
        ]
        assert losses[0] != losses[1]  # otherwise the parameter has no effect
        np.testing.assert_allclose(*losses, rtol=0.03)
        scores = [aligner.score(concepts.image, concepts.text) for aligner in (exact, rounded)]
        assert scores[1] > scores[0] - 0.03

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("init", ["auto", None])
    def test_autocast_of_the_caller_does_not_change_the_fit(self, concepts, init):
        expected = self.fit(concepts, "bfloat16", init=init)
        with torch.autocast("cpu", torch.bfloat16):
            aligner = self.fit(concepts, "bfloat16", init=init)
        losses = [
            [row["train_loss"] for row in fitted.history_ if "train_loss" in row]
            for fitted in (aligner, expected)
        ]
        assert losses[0] == losses[1]

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize(
        ("is_fast", "min_pairs", "expected"),
        [(True, 10, "bfloat16"), (True, 10**6, "float32"), (False, 10, "float32")],
    )
    def test_auto_depends_on_the_processor_and_the_number_of_pairs(
        self, concepts, monkeypatch, is_fast, min_pairs, expected
    ):
        module = "sklearn_ape.aligners._head_training"
        monkeypatch.setattr(f"{module}.has_fast_bfloat16", lambda: is_fast)
        monkeypatch.setattr(f"{module}._MIN_PAIRS_IN_BFLOAT16", min_pairs)
        automatic, explicit = self.fit(concepts, "auto"), self.fit(concepts, expected)
        assert automatic.history_[1]["train_loss"] == explicit.history_[1]["train_loss"]
        assert automatic.fingerprint_ == explicit.fingerprint_


@pytest.mark.sampled(3)
@pytest.mark.parametrize("init", ["auto", "kernel", "extension"])
def test_fitted_logit_scales_have_the_bound_of_the_parameter(concepts, init):
    """Most scales are fitted on held-out pairs after training; the loss has the bound before."""
    if init == "extension":
        init = KernelAligner().fit(concepts.image[:100], concepts.text[:100])
    aligner = APEAligner(
        init=init, max_epochs=2, loss_params={"logit_scale": 4.0, "max_logit_scale": 5.0}
    )
    aligner.fit(concepts.image, concepts.text)
    assert 4 < aligner.logit_scale_ <= 5.0001
