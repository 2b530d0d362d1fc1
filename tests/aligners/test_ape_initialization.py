"""APEAligner with closed-form initialization, and training options."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sklearn_ape import APEAligner, KernelAligner
from sklearn_ape.aligners._ape_trainer import HeadTraining, _add_closed_form, _compute_min_recall
from sklearn_ape.encoders import HeadPairs
from sklearn_ape.heads import ClosedFormHead, KernelMap, LinearMap, TwoTower, make_head
from sklearn_ape.losses import StructureLoss
from sklearn_ape.training import embed
from sklearn_ape.training import net as _net
from sklearn_ape.training.callbacks import TrainingResult


def small(**parameters):
    defaults = {"init": "linear", "width": 64, "max_epochs": 8, "batch_size": 64,
                "dropout": 0.0, "random_state": 0}  # fmt: skip
    return APEAligner(**(defaults | parameters))


@pytest.fixture
def nonlinear():
    """Images that depend nonlinearly on the concepts, so that training improves a linear map."""
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((500, 8))
    to_image = rng.standard_normal((8, 32))
    image = np.tanh(concepts @ to_image) + concepts**2 @ to_image
    text = concepts @ rng.standard_normal((8, 16))
    return SimpleNamespace(image=image.astype(np.float32), text=text.astype(np.float32))


def count_anchors(aligner):
    return len(aligner.module_.text_head.base.anchors)


class TestInitializationKept:
    def test_kept_initialization_equals_kernel_aligner(self, concepts):
        """The trained heads are discarded, and the initialization is solved on all pairs."""
        aligner = small(init="auto", max_epochs=2).fit(concepts.image, concepts.text)
        kernel = KernelAligner().fit(concepts.image, concepts.text)
        assert aligner.best_epoch_ == 0
        for items, method in ((concepts.image, "transform"), (concepts.text, "transform_text")):
            # Equal up to rounding: KernelAligner solves for its held-out texts at the end.
            expected = getattr(kernel, method)(items)
            np.testing.assert_allclose(getattr(aligner, method)(items), expected, atol=1e-5)
        assert aligner.n_parameters_ == kernel.n_parameters_
        assert aligner.n_components_ == 8
        assert list(aligner.module_.parameters()) == []
        assert 1 <= aligner.logit_scale_ <= 100

    def test_refit_false_solves_without_held_out_pairs(self, concepts):
        aligner = small(init="kernel", max_epochs=2, refit=False)
        assert count_anchors(aligner.fit(concepts.image, concepts.text)) == 270

    def test_init_auto_with_few_pairs_does_not_train(self, concepts):
        image, text = concepts.image[:40], concepts.text[:40]
        aligner = small(init="auto").fit(image, text)
        kernel = KernelAligner().fit(image, text)
        assert (aligner.best_epoch_, aligner.n_epochs_, aligner.history_) == (0, 0, [])
        assert aligner.fingerprint_ == kernel.fingerprint_
        assert aligner.logit_scale_ == pytest.approx(kernel.logit_scale_, rel=1e-4)

    @pytest.mark.parametrize(
        ("recalls", "best_epoch"),
        [([0.2, 0.59], 0), ([0.61, 0.4], 1), ([0.3, 0.3], 0)],
    )
    def test_training_must_improve_by_one_standard_error(self, recalls, best_epoch):
        """The standard error of a recall of 0.5 on 25 pairs is 0.1."""
        history = [{"epoch": i + 1, "valid_recall": r} for i, r in enumerate(recalls)]
        result = TrainingResult(
            history, n_epochs=len(recalls), best_epoch=int(np.argmax(recalls)) + 1
        )
        result = _add_closed_form(result, {"valid_recall": 0.5}, _compute_min_recall(0.5, 25))
        assert result.best_epoch == best_epoch
        assert result.history[0] == {"epoch": 0, "valid_recall": 0.5}
        assert len(result.history) == 3


class TestTraining:
    def test_training_is_kept_if_it_improves(self, nonlinear):
        image, text = nonlinear.image[:300], nonlinear.text[:300]
        trained = small(max_epochs=40).fit(image, text)
        initial = small(max_epochs=1, learning_rate=1e-9).fit(image, text)
        assert trained.best_epoch_ > 0 == initial.best_epoch_
        assert trained.history_[0] == {"epoch": 0, "valid_recall": pytest.approx(0.3, abs=0.2)}
        assert [row["epoch"] for row in trained.history_] == list(range(trained.n_epochs_ + 1))
        test = nonlinear.image[300:], nonlinear.text[300:]
        assert trained.score(*test) > 1.5 * initial.score(*test)

    def test_early_stopping_false_trains_all_epochs_from_the_initialization(self, concepts):
        aligner = small(early_stopping=False, max_epochs=3, learning_rate=1e-9)
        aligner.fit(concepts.image, concepts.text)
        assert aligner.best_epoch_ == aligner.n_epochs_ == len(aligner.history_) == 3
        initial = small(max_epochs=1, learning_rate=1e-9).fit(concepts.image, concepts.text)
        np.testing.assert_allclose(
            aligner.transform_text(concepts.text), initial.transform_text(concepts.text), atol=1e-5
        )

    def test_named_initialization_is_trained_with_few_pairs(self, concepts):
        aligner = small(init="kernel").fit(concepts.image[:40], concepts.text[:40])
        assert aligner.best_epoch_ == aligner.n_epochs_ == 8

    @pytest.mark.parametrize("side", ["text", "image", "both"])
    @pytest.mark.parametrize("init", ["kernel", "linear"])
    def test_only_sides_with_a_head_are_trained(self, concepts, side, init):
        aligner = small(init=init, side=side, early_stopping=False, max_epochs=2)
        aligner.fit(concepts.image, concepts.text)
        assert aligner.transform(concepts.image).shape == (300, 8)
        heads = {"image": aligner.module_.image_head, "text": aligner.module_.text_head}
        trained = {name for name, head in heads.items() if list(head.parameters())}
        assert trained == ({"image", "text"} if side == "both" else {side})
        kind = {"kernel": KernelMap, "linear": LinearMap}[init]
        assert isinstance(heads["text"].base, kind)

    def test_precomputed_base_gives_the_embeddings_of_the_module(self, concepts):
        """Training computes the output of the base once, the fitted module for each text."""
        aligner = small(init="kernel", side="both")
        aligner.device_ = torch.device("cpu")
        data = aligner._fit_pairs(concepts.image, concepts.text)
        closed_form = KernelAligner().fit(concepts.image, concepts.text).module_
        module = TwoTower(
            *(
                ClosedFormHead(
                    head.base,
                    make_head("mlp", head.n_in, head.n_out, depth=2, width=64, dropout=0.0),
                )
                for head in (closed_form.image_head, closed_form.text_head)
            )
        )
        run = SimpleNamespace(config=aligner._make_training_config(300), seed=0, ranks=None)
        training = HeadTraining(module, data, run)
        net, inputs = training.train([], 2), training.make_inputs(data)
        for side in ("image", "text"):
            trained = embed(net.module_, side, getattr(inputs, side), "cpu")
            features = torch.from_numpy(getattr(data, side))
            fitted = embed(training.module, side, features, "cpu")
            np.testing.assert_allclose(trained, fitted, atol=1e-6)

    @pytest.mark.exhaustive
    def test_best_epoch_has_the_recall_in_the_history(self, nonlinear):
        aligner = small(max_epochs=30, refit=False)
        recalls = []

        class Recorder(HeadTraining):
            def recall(self, data):
                recalls.append((self, data))
                return super().recall(data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sklearn_ape.aligners._ape_trainer.HeadTraining", Recorder)
            aligner.fit(nonlinear.image, nonlinear.text)
        assert aligner.best_epoch_ > 0
        training, valid = recalls[0]
        best = aligner.history_[aligner.best_epoch_]["valid_recall"]
        assert HeadTraining.recall(training, valid) == pytest.approx(best)


class TestHeadPairs:
    @pytest.fixture
    def head(self):
        rng = np.random.default_rng(1)
        texts = rng.standard_normal((200, 16)).astype(np.float32)
        return HeadPairs(rng.standard_normal((200, 32)), texts)

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("init", ["auto", "linear", None])
    def test_head_pairs_change_the_fit(self, concepts, head, init):
        without = small(init=init, early_stopping=False).fit(concepts.image, concepts.text)
        aligner = clone(without).set_params(head_pairs=head).fit(concepts.image, concepts.text)
        assert aligner.fingerprint_ != without.fingerprint_
        if init == "auto":
            assert len(aligner.module_.text_head.first.base.anchors) == 500

    def test_validation_excludes_prototypes(self, concepts, head, monkeypatch):
        """Recall is measured on images, because users do not search for class prototypes."""
        calls = []

        def recall(self, data):
            calls.append(data)
            return 0.0

        monkeypatch.setattr(HeadTraining, "recall", recall)
        small(head_pairs=head, max_epochs=1).fit(concepts.image, concepts.text)
        (valid,) = calls
        assert valid.n_prototypes == 0
        real = {row.tobytes() for row in concepts.image}
        assert {row.tobytes() for row in valid.image} <= real
        assert 10 <= len(valid.pairs) < 50


class TestOptions:
    """Each option reaches the training; the modules that implement options test their effects."""

    @pytest.fixture
    def fitted(self, concepts):
        def fit(**parameters):
            aligner = small(early_stopping=False, max_epochs=3, side="both", **parameters)
            return aligner.fit(concepts.image, concepts.text)

        return fit

    @pytest.mark.sampled(3)
    @pytest.mark.parametrize("init", ["linear", None])
    @pytest.mark.parametrize(
        "option",
        [{"mixup": 1.0}, {"loss_params": {"structure_weight": 1.0}}, {"optimizer": "lion"},
         {"optimizer": "adam"},
         {"optimizer_params": {"clip_norm": 0.01}}, {"optimizer_params": {"warmup": 0.5}},
         {"optimizer_params": {"warmup": 5}}],
        ids=str,
    )  # fmt: skip
    def test_option_changes_the_fit(self, fitted, option, init):
        changed, plain = fitted(init=init, **option), fitted(init=init)
        assert changed.fingerprint_ != plain.fingerprint_
        assert all(torch.isfinite(p).all() for p in changed.module_.parameters())

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
    def test_tile_size_does_not_change_the_fit(self, fitted, concepts, loss):
        tiled, dense = (fitted(loss=loss, loss_params={"tile_size": size}) for size in (7, None))
        np.testing.assert_allclose(
            tiled.transform_text(concepts.text), dense.transform_text(concepts.text), atol=1e-4
        )

    @pytest.mark.parametrize("init", ["linear", None])
    def test_structure_loss_uses_the_features(self, fitted, monkeypatch, init):
        """It does not use the precomputed output of the initialization."""
        widths = set()

        class Recorder(StructureLoss):
            def forward(self, features, embeddings):
                widths.add(features.shape[1])
                return super().forward(features, embeddings)

        monkeypatch.setattr(_net, "StructureLoss", Recorder)
        fitted(init=init, loss_params={"structure_weight": 1.0})
        assert widths == {32, 16}

    @pytest.mark.parametrize("init", ["kernel", "linear"])
    def test_fewer_components_equal_those_of_kernel_aligner(self, concepts, init):
        aligner = small(init=init, n_components=5).fit(concepts.image, concepts.text)
        kernel = KernelAligner(n_components=5).fit(concepts.image, concepts.text)
        np.testing.assert_array_equal(
            aligner.transform(concepts.image), kernel.transform(concepts.image)
        )
