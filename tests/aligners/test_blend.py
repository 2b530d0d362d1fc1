"""The blend of closed form and trained head, which APEAligner keeps by default."""

import re
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import normalize

from sklearn_ape import APEAligner, KernelAligner
from sklearn_ape.aligners._ape_trainer import _make_blend
from sklearn_ape.heads import BlendedHead, ClosedFormHead, TwoTower, make_head
from sklearn_ape.training.callbacks import BlendRecall
from sklearn_ape.training.data import PairDataset


def small(**parameters):
    defaults = {
        "learning_rate": 1e-3,
        "depth": 2,
        "width": 128,
        "max_epochs": 20,
        "batch_size": 128,
        "random_state": 0,
    }
    return APEAligner(**(defaults | parameters))


@pytest.fixture(scope="module")
def pairs():
    """Images that depend on the texts by a function that neither part learns completely."""
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((900, 12))
    to_image = rng.standard_normal((12, 40))
    image = np.sign(concepts @ rng.standard_normal((12, 12))) @ to_image + concepts @ to_image
    image += 3 * rng.standard_normal(image.shape)
    text = concepts @ rng.standard_normal((12, 24)) + rng.standard_normal((900, 24))
    return SimpleNamespace(image=image.astype(np.float32), text=text.astype(np.float32))


@pytest.fixture(scope="module")
def blend(pairs):
    return small().fit(pairs.image[:600], pairs.text[:600])


class TestHead:
    @pytest.fixture
    def closed_form(self, concepts):
        return KernelAligner().fit(concepts.image, concepts.text).module_

    @pytest.fixture
    def head(self, closed_form):
        text_head = closed_form.text_head
        shape = {"depth": 2, "width": 16, "dropout": 0.0}
        return make_head("mlp", text_head.n_in, text_head.n_out, **shape).eval()

    def test_weights_0_and_1_are_the_parts(self, closed_form, head, concepts):
        assert _make_blend(closed_form, head, 0.0) is closed_form
        assert _make_blend(closed_form, head, 1.0).text_head is head

    @pytest.mark.parametrize("weight", [0.25, 0.5])
    def test_embeddings_are_the_weighted_sum_of_the_parts(
        self, closed_form, head, concepts, weight
    ):
        text = torch.from_numpy(concepts.text)
        blended = _make_blend(closed_form, head, weight).embed_text(text)
        second = TwoTower(closed_form.image_head, head).embed_text(text)
        expected = (1 - weight) * closed_form.embed_text(text) + weight * second
        np.testing.assert_allclose(
            blended.detach(), normalize(expected.detach().numpy()), atol=1e-6
        )

    def test_sizes_and_weight_are_checked(self, closed_form, head):
        first = closed_form.text_head
        with pytest.raises(ValueError, match=r"weight must be from 0 to 1, not 1\.5"):
            BlendedHead(first, head, 1.5)
        other = make_head("linear", first.n_in, first.n_out + 1, depth=1, width=1, dropout=0)
        with pytest.raises(ValueError, match="first and second have different sizes"):
            BlendedHead(first, other, 0.5)


class TestFit:
    def test_blend_is_better_than_its_parts_on_held_out_pairs(self, blend):
        """The history has the recalls of the closed form, the head and the blend."""
        closed_form, *epochs = blend.history_
        best = blend.history_[blend.best_epoch_]
        assert blend.best_epoch_ > 0
        assert closed_form["epoch"] == 0
        assert closed_form["blend_weight"] == 0
        assert best["valid_recall"] > closed_form["valid_recall"]
        assert best["valid_recall"] >= max(row["head_recall"] for row in epochs)
        assert isinstance(blend.module_.text_head, BlendedHead)
        assert float(blend.module_.text_head.weight) == pytest.approx(best["blend_weight"])

    def test_blend_is_better_than_the_closed_form_on_test_pairs(self, blend, pairs):
        kernel = KernelAligner().fit(pairs.image[:600], pairs.text[:600])
        test = pairs.image[600:], pairs.text[600:]
        assert blend.score(*test) > kernel.score(*test)

    def test_images_have_the_space_of_the_closed_form(self, blend, pairs):
        kernel = KernelAligner().fit(pairs.image[:600], pairs.text[:600])
        np.testing.assert_array_equal(blend.transform(pairs.image), kernel.transform(pairs.image))

    @pytest.mark.exhaustive
    def test_closed_form_is_solved_on_all_pairs_unless_refit_is_false(self, blend, pairs):
        def count_anchors(aligner):
            return len(aligner.module_.text_head.first.base.anchors)

        assert count_anchors(blend) == 600
        other = clone(blend).set_params(refit=False).fit(pairs.image[:600], pairs.text[:600])
        assert count_anchors(other) == 540

    def test_early_stopping_false_blends_both_equally(self, pairs):
        aligner = small(early_stopping=False, max_epochs=3).fit(pairs.image, pairs.text)
        assert float(aligner.module_.text_head.weight) == 0.5
        assert aligner.best_epoch_ == aligner.n_epochs_ == 3
        # The scale that the head learned suits its training pairs.
        kernel = KernelAligner().fit(pairs.image, pairs.text)
        assert aligner.logit_scale_ == pytest.approx(kernel.logit_scale_, rel=0.05)

    def test_training_stops_when_it_cannot_catch_up(self, pairs):
        """No epoch improves the closed form, so that training ends after the patience."""
        aligner = small(learning_rate=1e-9, n_iter_no_change=4, max_epochs=50)
        aligner.fit(pairs.image, pairs.text)
        kernel = KernelAligner().fit(pairs.image, pairs.text)
        assert aligner.best_epoch_ == 0
        assert aligner.n_epochs_ < 20
        # Equal up to rounding: KernelAligner solves for its held-out texts at the end.
        np.testing.assert_allclose(
            aligner.transform_text(pairs.text), kernel.transform_text(pairs.text), atol=1e-5
        )

    def test_summary_describes_the_fit_although_init_was_changed(self, blend, pairs):
        plain = small(init=None, max_epochs=1).fit(pairs.image[:200], pairs.text[:200])
        with pytest.raises(AttributeError, match="available only with init='auto'"):
            _ = plain.set_params(init="auto").training_summary_
        changed = deepcopy(blend).set_params(init=None)
        assert changed.training_summary_ == blend.training_summary_

    def test_head_on_the_image_side_starts_from_the_kernel(self, pairs):
        aligner = small(side="both", max_epochs=2).fit(pairs.image, pairs.text)
        assert isinstance(aligner.module_.text_head, ClosedFormHead)

    @pytest.mark.parametrize("head", ["linear", "glu", "star"])
    def test_every_kind_of_head_can_be_blended(self, pairs, head):
        aligner = small(head=head, max_epochs=2, early_stopping=False)
        aligner.fit(pairs.image[:200], pairs.text[:200])
        assert np.isfinite(aligner.transform_text(pairs.text)).all()

    def test_same_seed_gives_bitwise_identical_fits_and_a_summary_if_verbose(
        self, blend, pairs, capsys
    ):
        """The summary says what training improved."""
        fitted = clone(blend).set_params(verbose=1).fit(pairs.image[:600], pairs.text[:600])
        assert fitted.fingerprint_ == blend.fingerprint_
        assert fitted.logit_scale_ == blend.logit_scale_
        output = capsys.readouterr().err
        best = fitted.history_[fitted.best_epoch_]
        pattern = (
            rf"blend {best['blend_weight']:g}: recall {best['valid_recall']:.3f}; "
            rf"closed form {fitted.history_[0]['valid_recall']:.3f}, "
            rf"head {best['head_recall']:.3f}"
        )
        assert re.search(pattern, output)

    @pytest.mark.exhaustive
    def test_small_gain_keeps_the_closed_form(self, blend, pairs, monkeypatch):
        """A blend that is better by less than is necessary is not used."""
        monkeypatch.setattr(
            "sklearn_ape.aligners._ape_trainer._compute_min_recall", lambda baseline, n_valid: 1.0
        )
        fitted = clone(blend).fit(pairs.image[:600], pairs.text[:600])
        assert blend.best_epoch_ > 0  # there is a gain
        assert fitted.best_epoch_ == 0
        rows = {(row["valid_recall"], row["blend_weight"]) for row in fitted.history_}
        assert rows == {(fitted.history_[0]["valid_recall"], 0.0)}
        assert "no blend was better by a standard error" in fitted.training_summary_
        kernel = KernelAligner().fit(pairs.image[:600], pairs.text[:600])
        np.testing.assert_allclose(
            fitted.transform_text(pairs.text), kernel.transform_text(pairs.text), atol=1e-5
        )

    def test_interrupt_while_the_recall_is_computed_keeps_complete_epochs(
        self, blend, pairs, monkeypatch
    ):
        """The interrupted epoch has a loss, but no recall."""
        n_calls = 0

        def interrupt(self, image, text):
            nonlocal n_calls
            n_calls += 1
            if n_calls == 3:
                raise KeyboardInterrupt
            return score(self, image, text)

        score = BlendRecall.score
        monkeypatch.setattr(BlendRecall, "score", interrupt)
        with pytest.warns(ConvergenceWarning, match="stopped after 2 of 20 epochs"):
            fitted = clone(blend).fit(pairs.image[:600], pairs.text[:600])
        recalls, expected = (
            [row["valid_recall"] for row in aligner.history_] for aligner in (fitted, blend)
        )
        assert recalls == expected[:3]


class TestChoice:
    @pytest.mark.parametrize(
        ("recalls", "weight"),
        [
            ((0.42, 0.445, 0.45, 0.43, 0.42), 0.4),  # better than both parts
            ((0.42, 0.43, 0.435, 0.437, 0.43), 0.6),  # 0.4 is as good as the head alone
            ((0.412, 0.408, 0.40, 0.35, 0.30), 0.4),  # only 0.2 is better by a standard error
            ((0.412, 0.404, 0.40, 0.35, 0.30), 0.2),  # 0.4 is worse than the closed form
            ((0.43, 0.42, 0.41, 0.35, 0.30), 0.2),  # 0.4 is much worse than 0.2
            ((0.41, 0.42, 0.44, 0.48, 0.50), 1.0),  # the head alone is best
            ((0.38, 0.39, 0.38, 0.37, 0.36), 0.0),  # the closed form alone is best
            ((0.408, 0.41, 0.40, 0.37, 0.36), 0.0),  # no blend is better by a standard error
        ],
    )
    def test_usual_weight_is_chosen_if_it_is_better_than_both_parts(self, recalls, weight):
        recall = BlendRecall(None, text=np.eye(2), baseline=0.405, min_recall=0.41)
        assert recall.choose_weight(dict(zip(recall.weights, recalls, strict=True))) == weight

    def test_recall_of_the_closed_form_is_recorded_where_no_blend_is_better(self):
        data = PairDataset(np.eye(4), np.eye(4), np.column_stack([np.arange(4)] * 2))
        recall = BlendRecall(data, text=np.eye(4), baseline=0.9, min_recall=1.0)
        scores = recall.score(np.eye(4), np.eye(4))
        assert scores == {"valid_recall": 0.9, "head_recall": 1.0, "blend_weight": 0.0}
