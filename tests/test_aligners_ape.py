"""APEAligner: scikit-learn's rules, reproducibility, forms of y, bad input."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.utils.estimator_checks import check_estimator
from skorch.callbacks import Callback

from sklearn_ape import APEAligner


def small(**parameters):
    defaults = {"width": 64, "max_epochs": 15, "random_state": 0}
    return APEAligner(**(defaults | parameters))


class TestScikitLearn:
    def test_passes_all_estimator_checks(self):
        """The number is asserted, since a tag could switch most of the checks off."""
        results = check_estimator(
            APEAligner(width=32, max_epochs=5), on_skip=None, on_fail="raise"
        )
        statuses = [result["status"] for result in results]
        assert statuses.count("passed") >= 47
        assert len(statuses) - statuses.count("passed") <= 1  # array API, unless it is set up

    def test_clone_copies_parameters_only(self, concepts):
        aligner = small(depth=3).fit(concepts.image, concepts.text)
        copied = clone(aligner)
        assert copied.get_params() == aligner.get_params()
        assert not hasattr(copied, "module_")

    def test_pickle_gives_the_same_embeddings(self, concepts):
        aligner = small().fit(concepts.image, concepts.text)
        back = pickle.loads(pickle.dumps(aligner))
        np.testing.assert_array_equal(
            back.transform(concepts.image), aligner.transform(concepts.image)
        )

    def test_set_output(self, concepts):
        frame = pd.DataFrame(concepts.image, index=np.arange(300) + 7)
        frame.columns = [f"f{i}" for i in range(32)]
        aligner = small().set_output(transform="pandas").fit(frame, concepts.text)
        out = aligner.transform(frame)
        assert list(out.columns[:2]) == ["apealigner0", "apealigner1"]
        assert out.index.equals(frame.index)

    def test_text_side_of_width_other_than_fitted_is_refused(self, concepts):
        aligner = small().fit(concepts.image, concepts.text)
        with pytest.raises(ValueError, match="5 features, but APEAligner is expecting 32"):
            aligner.transform(concepts.image[:, :5])
        with pytest.raises(ValueError, match="5 features, but APEAligner was fitted with 16"):
            aligner.transform_text(concepts.text[:, :5])


class TestFit:
    @pytest.mark.parametrize("head", ["mlp", "residual", "glu", "linear"])
    @pytest.mark.parametrize("side", ["text", "image", "both"])
    def test_learns_common_concepts(self, concepts, head, side):
        aligner = small(head=head, side=side, depth=3, max_epochs=40, batch_size=32)
        aligner.fit(concepts.image[:200], concepts.text[:200])
        assert aligner.score(concepts.image[200:], concepts.text[200:]) > 0.3  # chance is 0.01
        width = {"text": 32, "image": 16, "both": 512}[side]
        assert aligner.transform(concepts.image).shape == (300, width)
        norms = np.linalg.norm(aligner.transform_text(concepts.text), axis=1)
        np.testing.assert_allclose(norms, 1, rtol=1e-5)

    @pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
    def test_loss_falls_and_scale_moves(self, concepts, loss):
        aligner = small(loss=loss).fit(concepts.image, concepts.text)
        assert aligner.history_[-1]["train_loss"] < aligner.history_[0]["train_loss"]
        assert aligner.logit_scale_ != pytest.approx(1 / 0.07)
        fixed = small(loss=loss, learn_logit_scale=False).fit(concepts.image, concepts.text)
        assert fixed.logit_scale_ == pytest.approx(1 / 0.07)

    def test_side_text_leaves_the_image_space_alone(self, concepts):
        """Neighbours among pictures stay what the frozen encoder says."""
        aligner = small().fit(concepts.image, concepts.text)
        head = aligner.module_.image_head
        assert list(head.parameters()) == []
        standard = (
            concepts.image - head.standardize.mean.numpy()
        ) / head.standardize.scale.numpy()
        expected = standard / np.linalg.norm(standard, axis=1, keepdims=True)
        np.testing.assert_allclose(aligner.transform(concepts.image), expected, atol=1e-5)

    def test_fewer_components_keep_the_principal_directions_of_the_frozen_side(self, concepts):
        """8 concepts made the 32 features, so 8 directions hold all of them."""
        full = small().fit(concepts.image, concepts.text).transform(concepts.image)
        few = small(n_components=8).fit(concepts.image, concepts.text).transform(concepts.image)
        assert few.shape == (300, 8)
        np.testing.assert_allclose(few @ few.T, full @ full.T, atol=1e-3)

    def test_same_seed_is_the_same_to_the_bit(self, concepts):
        one, two = (small(dropout=0.5).fit(concepts.image, concepts.text) for _ in range(2))
        assert one.fingerprint_ == two.fingerprint_
        assert one.logit_scale_ == two.logit_scale_
        other = small(dropout=0.5, random_state=1).fit(concepts.image, concepts.text)
        assert other.fingerprint_ != one.fingerprint_

    def test_global_generators_are_left_alone(self, concepts):
        before = torch.get_rng_state(), copy.deepcopy(np.random.get_state())  # noqa: NPY002
        small().fit(concepts.image, concepts.text)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1][1].tolist() == np.random.get_state()[1].tolist()  # noqa: NPY002

    def test_small_sets_train_whatever_the_batch_size(self):
        """A batch size above the number of pairs must not mean that nothing is trained."""
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
        kept = aligner.history_[aligner.best_epoch_ - 1]
        assert aligner.logit_scale_ == pytest.approx(kept["logit_scale"], rel=1e-5)

    def test_refit_learns_the_pairs_that_were_held_out(self, concepts):
        """No pair is lost to validation, and the heads are those of a run of that length."""
        refitted = small(max_epochs=40, batch_size=32).fit(concepts.image, concepts.text)
        assert len(refitted.history_) == refitted.n_epochs_
        mean = refitted.module_.text_head.standardize.mean.numpy()
        np.testing.assert_allclose(mean, concepts.text.mean(axis=0), atol=1e-5)
        without = small(max_epochs=40, batch_size=32, refit=False)
        without.fit(concepts.image, concepts.text)
        assert without.history_[0]["train_loss"] == refitted.history_[0]["train_loss"]
        assert without.fingerprint_ != refitted.fingerprint_

    def test_a_stop_at_the_end_of_an_epoch_counts_that_epoch(self, concepts):
        class Interrupt(Callback):
            def on_epoch_end(self, net, **kwargs):
                raise KeyboardInterrupt

        aligner = small(callbacks=[Interrupt()])
        with pytest.warns(UserWarning, match="stopped after 1 of 15"):
            aligner.fit(concepts.image, concepts.text)
        assert aligner.best_epoch_ == 1

    def test_without_early_stopping_all_epochs_run_on_all_pairs(self, concepts):
        aligner = small(early_stopping=False).fit(concepts.image, concepts.text)
        assert aligner.n_epochs_ == aligner.best_epoch_ == 15
        assert "valid_recall" not in aligner.history_[0]

    def test_number_of_parameters_is_that_of_the_heads(self, concepts):
        aligner = small(depth=2).fit(concepts.image, concepts.text)
        assert aligner.n_parameters_ == (16 * 64 + 64) + (64 * 32 + 32)

    def test_divergence_names_the_parameter_to_lower(self, concepts):
        with pytest.raises(FloatingPointError, match="Lower learning_rate"):
            small(learning_rate=1e30).fit(concepts.image, concepts.text)

    def test_interrupting_keeps_the_best_epoch_and_says_so(self, concepts):
        class Interrupt(Callback):
            def on_epoch_end(self, net, **kwargs):
                if len(net.history) == 3:
                    raise KeyboardInterrupt

        aligner = small(callbacks=[Interrupt()])
        with pytest.warns(UserWarning, match="stopped after 3 of 15 epochs"):
            aligner.fit(concepts.image, concepts.text)
        assert aligner.transform(concepts.image).shape == (300, 32)

    def test_skorch_callbacks_are_told_of_every_epoch(self, concepts):
        seen = []

        class Count(Callback):
            def on_epoch_end(self, net, **kwargs):
                seen.append(net.history[-1, "epoch"])

        small(callbacks=[("count", Count())], max_epochs=4).fit(concepts.image, concepts.text)
        assert seen == [1, 2, 3, 4]

    def test_scikit_learn_callbacks_are_told_of_every_epoch(self, concepts):
        pytest.importorskip("sklearn.callback")
        seen = []

        class Count:
            def setup(self, estimator, context):
                pass

            def on_fit_task_begin(self, estimator, context, **kwargs):
                pass

            def on_fit_task_end(self, estimator, context, **kwargs):
                seen.append(context.task_name)

            def teardown(self, estimator, context):
                pass

        aligner = small(max_epochs=4).set_callbacks(Count())
        pickle.dumps(aligner.set_callbacks().fit(concepts.image, concepts.text))
        aligner.set_callbacks(Count()).fit(concepts.image, concepts.text)
        assert seen == ["epoch"] * 4 + ["fit"]

    def test_progress_is_written_to_stderr_only_when_asked(self, concepts, capfd):
        small(max_epochs=2).fit(concepts.image, concepts.text)
        assert capfd.readouterr() == ("", "")
        small(max_epochs=2, verbose=1).fit(concepts.image, concepts.text)
        out, err = capfd.readouterr()
        assert "2/2" in err
        assert out == ""


class TestFormsOfY:
    def captions(self, pictures):
        return {
            "list": pictures.captions,
            "tuple": tuple(pictures.captions),
            "array": np.array(pictures.captions),
            "objects": np.array(pictures.captions, dtype=object),
            "pandas": pd.Series(pictures.captions, index=np.arange(len(pictures.captions)) + 9),
            "polars": pl.Series(pictures.captions),
            "pyarrow": pa.array(pictures.captions),
            "ragged": [[caption] for caption in pictures.captions],
            "ragged polars": pl.Series([[caption] for caption in pictures.captions]),
            "2-D array": np.array(pictures.captions)[:, None],
        }

    def test_all_forms_of_captions_are_the_same(self, pictures, features, text_encoder):
        prints = {
            form: small(text_encoder=text_encoder, max_epochs=2)
            .fit(features.image, captions)
            .fingerprint_
            for form, captions in self.captions(pictures).items()
        }
        assert len(set(prints.values())) == 1, prints

    def test_features_of_captions_are_the_same_as_captions(self, pictures, features, text_encoder):
        by_caption = small(text_encoder=text_encoder).fit(features.image, pictures.captions)
        by_feature = small().fit(features.image, features.text)
        assert by_caption.fingerprint_ == by_feature.fingerprint_
        for table in (pd.DataFrame(features.text), pl.DataFrame(features.text)):
            assert small().fit(features.image, table).fingerprint_ == by_feature.fingerprint_

    def test_several_captions_a_picture(self, pictures, features, text_encoder):
        """A hit on any caption of a picture counts, and more captions teach more words."""
        several = [[caption, f"a picture of {caption}"] for caption in pictures.captions]
        aligner = small(text_encoder=text_encoder, max_epochs=30).fit(features.image, several)
        single = aligner.retrieval_report(features.image, pictures.captions)
        double = aligner.retrieval_report(features.image, several)
        assert double["image_to_text"][10] > 0.5
        assert double["image_to_text"][1] >= single["image_to_text"][1] - 0.1

    def test_pictures_in_with_encoders_as_parameters(self, pictures, image_encoder, text_encoder):
        aligner = small(image_encoder=image_encoder, text_encoder=text_encoder)
        aligner.fit(pictures.images[:60], pictures.captions[:60])
        assert aligner.transform(pictures.images[:3]).shape == (3, 1280)
        assert aligner.similarity(pictures.images[:3], ["a cat", "a bus"]).shape == (3, 2)

    def test_any_scikit_learn_transformer_may_encode_texts(self, pictures, features):
        aligner = small(text_encoder=TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)))
        aligner.fit(features.image, pictures.captions)
        assert aligner.transform_text(["a cat"]).shape == (1, 1280)

    def test_frozen_encoder_is_taken_as_it_is(self, pictures, features, text_encoder):
        aligner = small(text_encoder=FrozenEstimator(text_encoder))
        aligner.fit(features.image, pictures.captions)
        assert aligner.text_encoder_.estimator is text_encoder


class TestBadInput:
    def test_unequal_lengths(self, features, pictures, text_encoder):
        with pytest.raises(ValueError, match="300 pictures and 299 rows of captions"):
            small(text_encoder=text_encoder).fit(features.image, pictures.captions[:-1])

    @pytest.mark.parametrize(
        ("bad", "said"),
        [(None, "None is not a text"), ("  ", "empty caption"), (np.nan, "nan is not a text"),
         ([], "empty list of captions"), (["a", None], "None is not a text"),
         (3, "3 is not a text")],
    )  # fmt: skip
    def test_bad_caption_is_named_before_pictures_are_encoded(
        self, pictures, text_encoder, bad, said
    ):
        class MustNotRun:
            def fit(self, X, y=None):
                raise AssertionError("pictures were encoded before the captions were looked at")

        captions = [*pictures.captions[:5], bad]
        aligner = small(image_encoder=MustNotRun(), text_encoder=text_encoder)
        with pytest.raises(ValueError, match=f"row 5: .*{said}"):
            aligner.fit(pictures.images[:6], captions)

    def test_captions_without_a_text_encoder(self, features, pictures):
        with pytest.raises(ValueError, match="text_encoder is None: pass text_encoder="):
            small().fit(features.image, pictures.captions)

    def test_pictures_without_an_image_encoder(self, pictures, text_encoder):
        with pytest.raises(ValueError, match="X holds pictures, and image_encoder is None"):
            small(text_encoder=text_encoder).fit(pictures.images, pictures.captions)

    def test_class_numbers_as_captions(self, features, text_encoder):
        for numbers in (np.zeros(300, dtype=int), [0] * 300):
            with pytest.raises(ValueError, match="y holds numbers, and text_encoder is set"):
                small(text_encoder=text_encoder).fit(features.image, numbers)

    def test_a_table_or_a_mapping_of_captions(self, features, pictures, text_encoder):
        aligner = small(text_encoder=text_encoder)
        with pytest.raises(ValueError, match=r"columns \['caption'\]: pass the one"):
            aligner.fit(features.image, pd.DataFrame({"caption": pictures.captions}))
        with pytest.raises(ValueError, match="must be a sequence of captions or features"):
            aligner.fit(features.image, dict(enumerate(pictures.captions)))

    def test_an_encoder_of_an_earlier_fit_does_not_answer(self, features, pictures, text_encoder):
        aligner = small(text_encoder=text_encoder, max_epochs=1)
        aligner.fit(features.image, pictures.captions).fit(features.image, features.text)
        with pytest.raises(ValueError, match="was fitted on features of texts"):
            aligner.transform_text(["a cat"])

    def test_an_encoder_that_tells_nothing_apart_scores_nothing(self, features, pictures):
        """Equal features are no sign of equal captions: a collapsed encoder is no good one."""
        fitted_on = [f"word{i}" for i in range(200)]
        aligner = small(text_encoder=CountVectorizer(), max_epochs=2)
        aligner.fit(features.image[:200], fitted_on)
        assert aligner.score(features.image[200:], pictures.captions[200:]) < 0.05
        with pytest.warns(UserWarning, match="All pictures have the same features"):
            aligner.score(np.ones_like(features.image[:9]), pictures.captions[:9])

    def test_captions_given_as_pictures(self, pictures, image_encoder, text_encoder):
        aligner = small(image_encoder=image_encoder, text_encoder=text_encoder)
        with pytest.raises(ValueError, match=r"row 0: .*looks like a caption"):
            aligner.fit(pictures.captions, pictures.captions)

    def test_one_pair(self, concepts, pictures, features, text_encoder):
        with pytest.raises(ValueError, match="minimum of 2 is required"):
            small().fit(concepts.image[:1], concepts.text[:1])
        with pytest.raises(ValueError, match="at least 2 pairs"):
            small(text_encoder=text_encoder).fit(features.image[:1], pictures.captions[:1])

    def test_nan_in_a_row_is_named(self, concepts):
        image = concepts.image.copy()
        image[[3, 5], 2] = np.nan
        with pytest.raises(ValueError, match=r"Input X contains NaN: 2 rows.* 3, 5\."):
            small().fit(image, concepts.text)
        aligner = small(max_epochs=1).fit(concepts.image, concepts.text)
        with pytest.raises(ValueError, match="Input X contains NaN"):
            aligner.transform(image)

    def test_rows_that_an_encoder_gave_up_are_left_out_and_stay_nan(self, concepts):
        image = concepts.image.copy()
        image[7] = np.nan
        with pytest.warns(UserWarning, match=r"1 rows are left out.*: 7\."):
            aligner = small(max_epochs=2).fit(image, concepts.text)
        embeddings = aligner.transform(image)
        assert np.isnan(embeddings[7]).all()
        assert np.isfinite(np.delete(embeddings, 7, axis=0)).all()

    def test_all_captions_equal_warns_and_stays_finite(self, concepts):
        with pytest.warns(UserWarning, match="All captions are the same"):
            aligner = small().fit(concepts.image, np.ones((300, 4)))
        assert np.isfinite(aligner.transform(concepts.image)).all()
        assert all(torch.isfinite(p).all() for p in aligner.module_.parameters())

    @pytest.mark.parametrize(
        ("parameter", "value", "said"),
        [("depth", 0, "depth must be an integer >= 1, not 0"),
         ("depth", 2.0, "depth must be an integer"),
         ("width", -1, "width must be an integer >= 1"),
         ("batch_size", 1, "batch_size must be an integer >= 2"),
         ("max_epochs", 0, "max_epochs must be"),
         ("dropout", 1.0, r"dropout must be a number in \[0, 1\), not 1.0"),
         ("learning_rate", 0, r"learning_rate must be a number in \(0, inf\)"),
         ("logit_scale", "big", "logit_scale must be a number"),
         ("max_logit_scale", 1.0, "max_logit_scale must be a number in"),
         ("head", "mpl", "head must be one of mlp, residual, glu, linear, not 'mpl'"),
         ("side", "left", "side must be one of"),
         ("loss", "mse", "loss must be one of infonce, sigmoid"),
         ("n_components", 33, "n_components must be None or at most 32, not 33"),
         ("validation_fraction", 1.0, "validation_fraction must be"),
         ("device", "gpu", "device must be 'auto'")],
    )  # fmt: skip
    def test_bad_parameter(self, concepts, parameter, value, said):
        with pytest.raises(ValueError, match=said):
            small(**{parameter: value}).fit(concepts.image, concepts.text)

    def test_no_captions_at_all(self, concepts):
        with pytest.raises(ValueError, match="requires y to be passed"):
            small().fit(concepts.image, None)

    def test_transform_text_takes_one_text_a_row(self, pictures, features, text_encoder):
        aligner = small(text_encoder=text_encoder, max_epochs=1)
        aligner.fit(features.image, pictures.captions)
        with pytest.raises(ValueError, match="one text a row"):
            aligner.transform_text([["a", "b"], ["c"]])


def test_same_bits_in_another_process():
    """Reproducibility must not hang on the state of this process."""
    code = (
        "import numpy as np; from sklearn_ape import APEAligner;"
        "rng = np.random.default_rng(0); X, Y = rng.standard_normal((2, 80, 9));"
        "print(APEAligner(width=32, max_epochs=5, random_state=3).fit(X, Y).fingerprint_)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout != ""
