"""APEAligner from a start in closed form: when it trains, what it keeps, what it is shown."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sklearn_ape import APEAligner, KernelAligner
from sklearn_ape.aligners import _ape_trainer as _head_training
from sklearn_ape.aligners._ape_trainer import (
    HeadConfig,
    HeadTraining,
    _compare_with_initialization,
)
from sklearn_ape.encoders import HeadPairs
from sklearn_ape.heads import KernelMap, LinearMap
from sklearn_ape.losses import StructureLoss
from sklearn_ape.training import embed
from sklearn_ape.training import net as _net
from sklearn_ape.training.callbacks import TrainingResult


def small(**parameters):
    defaults = {"init": "linear", "width": 64, "max_epochs": 8, "batch_size": 64,
                "dropout": 0.0, "random_state": 0}  # fmt: skip
    return APEAligner(**(defaults | parameters))


@pytest.fixture
def bent():
    """Images that bend with the concepts: a linear start misses half of that."""
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((500, 8))
    to_image = rng.standard_normal((8, 32))
    image = np.tanh(concepts @ to_image) + concepts**2 @ to_image
    text = concepts @ rng.standard_normal((8, 16))
    return SimpleNamespace(image=image.astype(np.float32), text=text.astype(np.float32))


def anchors_of(aligner):
    return len(aligner.module_.text_head.base.anchors)


class TestStartIsKept:
    def test_it_is_that_of_kernel_aligner(self, concepts):
        """Nothing is left of the heads that did not help, and no pair is lost."""
        aligner = small(init="auto", max_epochs=2).fit(concepts.image, concepts.text)
        kernel = KernelAligner().fit(concepts.image, concepts.text)
        assert aligner.best_epoch_ == 0
        assert aligner.fingerprint_ == kernel.fingerprint_
        assert aligner.n_parameters_ == kernel.n_parameters_
        assert aligner.n_components_ == 8
        assert list(aligner.module_.parameters()) == []
        assert 1 <= aligner.logit_scale_ <= 100

    def test_without_refit_it_is_solved_on_the_pairs_not_held_out(self, concepts):
        aligner = small(init="kernel", max_epochs=2, refit=False)
        assert anchors_of(aligner.fit(concepts.image, concepts.text)) == 270

    def test_with_too_few_pairs_to_tell_auto_does_not_train(self, concepts):
        image, text = concepts.image[:40], concepts.text[:40]
        aligner = small(init="auto").fit(image, text)
        kernel = KernelAligner().fit(image, text)
        assert (aligner.best_epoch_, aligner.n_epochs_, aligner.history_) == (0, 0, [])
        assert aligner.fingerprint_ == kernel.fingerprint_
        assert aligner.logit_scale_ == pytest.approx(kernel.logit_scale_, rel=1e-4)

    @pytest.mark.parametrize(
        ("recalls", "kept"),
        [([0.2, 0.59], 0), ([0.61, 0.4], 1), ([0.3, 0.3], 0)],
    )
    def test_one_standard_error_decides(self, recalls, kept):
        """Of a recall of 0.5 on 25 pairs it is 0.1."""
        history = [{"epoch": i + 1, "valid_recall": r} for i, r in enumerate(recalls)]
        course = TrainingResult(
            history, n_epochs=len(recalls), best_epoch=int(np.argmax(recalls)) + 1
        )
        course = _compare_with_initialization(course, 0.5, 25)
        assert course.best_epoch == kept
        assert course.history[0] == {"epoch": 0, "valid_recall": 0.5}
        assert len(course.history) == 3

    def test_many_captions_start_linear_in_all_runs(self, concepts, monkeypatch):
        """The pairs held out must not make the start another one than that of the last run."""
        monkeypatch.setattr(_head_training, "MAX_ANCHORS", 280)
        monkeypatch.delattr(_head_training, "kernel_maps")
        aligner = small(init="auto", max_epochs=1).fit(concepts.image, concepts.text)
        assert isinstance(aligner.module_.text_head.base, LinearMap)

    def test_no_captions_to_tell_apart(self, concepts):
        for init in ("kernel", "linear"):
            with pytest.warns(UserWarning, match="All captions are the same"):
                aligner = small(init=init).fit(concepts.image, np.zeros((300, 4)))
            assert np.isfinite(aligner.transform_text(np.zeros((2, 4)))).all()


class TestTraining:
    def test_it_is_kept_where_it_helps(self, bent):
        image, text = bent.image[:300], bent.text[:300]
        trained = small(max_epochs=40).fit(image, text)
        start = small(max_epochs=1, learning_rate=1e-9).fit(image, text)
        assert trained.best_epoch_ > 0 == start.best_epoch_
        assert trained.history_[0] == {"epoch": 0, "valid_recall": pytest.approx(0.3, abs=0.2)}
        assert [row["epoch"] for row in trained.history_] == list(range(trained.n_epochs_ + 1))
        test = bent.image[300:], bent.text[300:]
        assert trained.score(*test) > 1.5 * start.score(*test)

    def test_without_early_stopping_all_epochs_run_from_the_start(self, concepts):
        aligner = small(early_stopping=False, max_epochs=3, learning_rate=1e-9)
        aligner.fit(concepts.image, concepts.text)
        assert aligner.best_epoch_ == aligner.n_epochs_ == len(aligner.history_) == 3
        start = small(max_epochs=1, learning_rate=1e-9).fit(concepts.image, concepts.text)
        np.testing.assert_allclose(
            aligner.transform_text(concepts.text), start.transform_text(concepts.text), atol=1e-5
        )

    def test_a_start_asked_for_by_name_is_trained_however_few_pairs(self, concepts):
        aligner = small(init="kernel").fit(concepts.image[:40], concepts.text[:40])
        assert aligner.best_epoch_ == aligner.n_epochs_ == 8

    @pytest.mark.parametrize("side", ["text", "image", "both"])
    @pytest.mark.parametrize("init", ["kernel", "linear"])
    def test_sides_with_a_head_are_trained(self, concepts, side, init):
        aligner = small(init=init, side=side, early_stopping=False, max_epochs=2)
        aligner.fit(concepts.image, concepts.text)
        assert aligner.transform(concepts.image).shape == (300, 8)
        heads = {"image": aligner.module_.image_head, "text": aligner.module_.text_head}
        trained = {name for name, head in heads.items() if list(head.parameters())}
        assert trained == ({"image", "text"} if side == "both" else {side})
        kind = {"kernel": KernelMap, "linear": LinearMap}[init]
        assert isinstance(heads["text"].base, kind)

    def test_what_is_trained_is_what_embeds(self, concepts):
        """The base is computed once for training, and anew for every text after that."""
        aligner = small(init="kernel", side="both")
        aligner.device_ = torch.device("cpu")
        data = aligner._fit_pairs(concepts.image, concepts.text)
        heads = HeadConfig(*(getattr(aligner, name) for name in HeadConfig._fields))
        training = HeadTraining(heads, aligner._training_config(), "kernel", 0, data)
        net, inputs = training.run([], 2), training.make_inputs(data)
        for side in ("image", "text"):
            seen = embed(net.module_, side, getattr(inputs, side), "cpu")
            known = torch.from_numpy(getattr(data, side))
            np.testing.assert_allclose(seen, embed(training.module, side, known, "cpu"), atol=1e-6)

    def test_best_epoch_is_the_one_whose_recall_is_in_the_history(self, bent):
        aligner = small(max_epochs=30, refit=False)
        recalls = []

        class Remembering(HeadTraining):
            def recall(self, data):
                recalls.append((self, data))
                return super().recall(data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sklearn_ape.aligners._ape_trainer.HeadTraining", Remembering)
            aligner.fit(bent.image, bent.text)
        assert aligner.best_epoch_ > 0
        training, valid = recalls[0]
        best = aligner.history_[aligner.best_epoch_]["valid_recall"]
        assert HeadTraining.recall(training, valid) == pytest.approx(best)

    @pytest.mark.exhaustive
    def test_fits_are_equal_to_the_bit(self, bent):
        one, two = (small(max_epochs=20).fit(bent.image, bent.text) for _ in range(2))
        assert one.best_epoch_ > 0
        assert one.fingerprint_ == two.fingerprint_
        assert one.logit_scale_ == two.logit_scale_
        other = small(max_epochs=20, random_state=1).fit(bent.image, bent.text)
        assert other.fingerprint_ != one.fingerprint_

    @pytest.mark.parametrize("init", ["kernel", "linear"])
    def test_pickle_gives_the_same_embeddings(self, concepts, init):
        aligner = small(init=init, early_stopping=False).fit(concepts.image, concepts.text)
        back = pickle.loads(pickle.dumps(aligner))
        np.testing.assert_array_equal(
            back.transform_text(concepts.text), aligner.transform_text(concepts.text)
        )


class TestHeadPairs:
    @pytest.fixture
    def head(self):
        rng = np.random.default_rng(1)
        texts = rng.standard_normal((200, 16)).astype(np.float32)
        return HeadPairs(rng.standard_normal((200, 32)), texts)

    @pytest.mark.parametrize("init", ["auto", "linear", None])
    def test_they_are_trained_on(self, concepts, head, init):
        without = small(init=init, early_stopping=False).fit(concepts.image, concepts.text)
        aligner = clone(without).set_params(head_pairs=head).fit(concepts.image, concepts.text)
        assert aligner.fingerprint_ != without.fingerprint_
        if init == "auto":
            assert anchors_of(aligner) == 500

    def test_validation_is_of_images_alone(self, concepts, head, monkeypatch):
        """To find a prototype's name is not what users ask for."""
        seen = []

        def recall(self, data):
            seen.append(data)
            return 0.0

        monkeypatch.setattr(HeadTraining, "recall", recall)
        small(head_pairs=head, max_epochs=1).fit(concepts.image, concepts.text)
        (valid,) = seen
        assert valid.n_prototypes == 0
        real = {row.tobytes() for row in concepts.image}
        assert {row.tobytes() for row in valid.image} <= real
        assert 10 <= len(valid.pairs) < 50


class TestOptions:
    """Each is seen to reach the training; what it does is tested where it is written."""

    @pytest.fixture
    def fitted(self, concepts):
        def fit(**parameters):
            aligner = small(early_stopping=False, max_epochs=3, side="both", **parameters)
            return aligner.fit(concepts.image, concepts.text)

        return fit

    @pytest.mark.parametrize("init", ["linear", None])
    @pytest.mark.parametrize(
        "option",
        [{"mixup": 1.0}, {"loss_params": {"structure_weight": 1.0}}, {"optimizer": "lion"},
         {"optimizer": "adam"},
         {"optimizer_params": {"clip_norm": 0.01}}, {"optimizer_params": {"warmup": 0.5}},
         {"optimizer_params": {"warmup": 5}}],
        ids=str,
    )  # fmt: skip
    def test_changes_what_is_learned(self, fitted, option, init):
        changed, plain = fitted(init=init, **option), fitted(init=init)
        assert changed.fingerprint_ != plain.fingerprint_
        assert all(torch.isfinite(p).all() for p in changed.module_.parameters())

    @pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
    def test_tiles_change_memory_alone(self, fitted, concepts, loss):
        tiled, whole = (fitted(loss=loss, loss_params={"tile_size": size}) for size in (7, None))
        np.testing.assert_allclose(
            tiled.transform_text(concepts.text), whole.transform_text(concepts.text), atol=1e-4
        )

    @pytest.mark.parametrize("init", ["linear", None])
    def test_structure_is_that_of_the_features(self, fitted, monkeypatch, init):
        """And not of the start's output, which training is given beside them."""
        widths = set()

        class Watched(StructureLoss):
            def forward(self, features, embeddings):
                widths.add(features.shape[1])
                return super().forward(features, embeddings)

        monkeypatch.setattr(_net, "StructureLoss", Watched)
        fitted(init=init, loss_params={"structure_weight": 1.0})
        assert widths == {32, 16}

    @pytest.mark.parametrize("init", ["kernel", "linear"])
    def test_fewer_components_are_directions_of_largest_variance(self, concepts, init):
        aligner = small(init=init, n_components=5).fit(concepts.image, concepts.text)
        kernel = KernelAligner(n_components=5).fit(concepts.image, concepts.text)
        np.testing.assert_array_equal(
            aligner.transform(concepts.image), kernel.transform(concepts.image)
        )
