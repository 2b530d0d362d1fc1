"""APEAligner: forms of captions, and errors for invalid input."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer
from skorch.callbacks import Callback, PrintLog

from sklearn_ape import APEAligner, KernelAligner


def small(**parameters):
    defaults = {"init": None, "width": 64, "max_epochs": 15, "random_state": 0}
    return APEAligner(**(defaults | parameters))


class Member(str):
    """A text whose str() is another text, as for members of `class Kind(str, Enum)`."""

    def __str__(self):
        return "Kind.MEMBER"


class TestCaptions:
    def captions(self, captioned_images):
        return {
            "list": captioned_images.captions,
            "tuple": tuple(captioned_images.captions),
            "array": np.array(captioned_images.captions),
            "objects": np.array(captioned_images.captions, dtype=object),
            "pandas": pd.Series(
                captioned_images.captions, index=np.arange(len(captioned_images.captions)) + 9
            ),
            "polars": pl.Series(captioned_images.captions),
            "pyarrow": pa.array(captioned_images.captions),
            "ragged": [[caption] for caption in captioned_images.captions],
            "ragged polars": pl.Series([[caption] for caption in captioned_images.captions]),
            "members of an Enum": [Member(caption) for caption in captioned_images.captions],
            "2-D array": np.array(captioned_images.captions)[:, None],
        }

    def test_all_forms_of_captions_give_equal_fits(self, captioned_images, features, text_encoder):
        fingerprints = {
            form: small(text_encoder=text_encoder, max_epochs=2)
            .fit(features.image[:, :64], captions)
            .fingerprint_
            for form, captions in self.captions(captioned_images).items()
        }
        assert len(set(fingerprints.values())) == 1, fingerprints

    def test_captions_and_their_features_give_equal_fits(
        self, captioned_images, features, text_encoder
    ):
        X = features.image[:, :64]
        by_caption = small(text_encoder=text_encoder, max_epochs=4).fit(
            X, captioned_images.captions
        )
        by_feature = small(max_epochs=4).fit(X, features.text)
        assert by_caption.fingerprint_ == by_feature.fingerprint_
        for table in (pd.DataFrame(features.text), pl.DataFrame(features.text)):
            assert small(max_epochs=4).fit(X, table).fingerprint_ == by_feature.fingerprint_

    @pytest.mark.exhaustive
    def test_several_captions_per_image_are_positives(
        self, captioned_images, features, text_encoder
    ):
        """A hit on any caption of an image counts, and more captions do not lower the recall."""
        several = [[caption, f"an image of {caption}"] for caption in captioned_images.captions]
        aligner = small(text_encoder=text_encoder).fit(features.image, several)
        single = aligner.retrieval_report(features.image, captioned_images.captions)
        double = aligner.retrieval_report(features.image, several)
        assert double["image_to_text"][10] > 0.5
        assert double["image_to_text"][1] >= single["image_to_text"][1] - 0.1

    def test_scikit_learn_vectorizer_encodes_texts(self, captioned_images, features):
        aligner = small(text_encoder=TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)))
        aligner.fit(features.image, captioned_images.captions)
        assert aligner.transform_text(["a cat"]).shape == (1, 1280)

    def test_text_without_a_known_term_warns(self, captioned_images, features):
        """Its features are zero, so that a class of this name would be predicted at random."""
        aligner = small(text_encoder=TfidfVectorizer())
        aligner.fit(features.image, captioned_images.captions)
        known = captioned_images.captions[0]
        with pytest.warns(UserWarning, match=r"no term of 1 text \('zzyzx'\).* are arbitrary"):
            aligner.transform_text([known, "zzyzx"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            aligner.transform_text([known])

    @pytest.mark.parametrize(("side", "n_more"), [("text", 5), ("text", -1), ("image", -1)])
    def test_encoder_with_another_number_of_rows_raises(self, concepts, side, n_more):
        """Additional rows were ignored, so that the pairs were shifted without an error."""
        rng = np.random.default_rng(0)
        encoder = FunctionTransformer(lambda items: rng.standard_normal((len(items) + n_more, 8)))
        values = [f"text {i}" for i in range(40)]
        if side == "image":
            values = list(rng.integers(0, 256, (40, 4, 4), dtype=np.uint8))
        sides = {"image": concepts.image[:40], "text": concepts.text[:40], side: values}
        aligner = KernelAligner(**{f"{side}_encoder": encoder})
        with pytest.raises(ValueError, match=f"{side}_encoder returned {40 + n_more} rows of fea"):
            aligner.fit(sides["image"], sides["text"])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_encoders_may_return_tensors(self, concepts, dtype):
        image, text = (
            torch.from_numpy(rows[:60]).to(dtype) for rows in (concepts.image, concepts.text)
        )
        items = [str(row) for row in range(60)]
        encoders = {
            f"{side}_encoder": FunctionTransformer(
                lambda items, rows=rows: rows[[int(item) for item in items]].requires_grad_()
            )
            for side, rows in (("image", image), ("text", text))
        }
        aligner = KernelAligner(**encoders).fit(items, items)
        expected = KernelAligner().fit(image.float(), text.float())
        assert aligner.fingerprint_ == expected.fingerprint_
        assert aligner.score(items, items) == expected.score(image.float(), text.float())

    def test_image_encoder_takes_a_sparse_matrix(self, features):
        """`len` of a sparse matrix raises an error, so its rows are counted otherwise."""
        X = scipy.sparse.csr_array(np.maximum(features.image, 0))
        aligner = KernelAligner(image_encoder=TruncatedSVD(4)).fit(X, features.text)
        assert aligner.transform(X[:5]).shape == (5, 4)

    def test_frozen_encoder_is_not_cloned(self, captioned_images, features, text_encoder):
        aligner = small(text_encoder=FrozenEstimator(text_encoder))
        aligner.fit(features.image, captioned_images.captions)
        assert aligner.text_encoder_.estimator is text_encoder


class MustNotRun:
    """An encoder that must not be called, because an input or a parameter is invalid."""

    def fit(self, X, y=None):
        raise AssertionError("images were encoded before the inputs were checked")


class TestInvalidInput:
    def test_unequal_lengths_raise(self, features, captioned_images, text_encoder):
        with pytest.raises(ValueError, match="300 images and 299 rows of captions"):
            small(text_encoder=text_encoder).fit(features.image, captioned_images.captions[:-1])

    @pytest.mark.parametrize(
        ("caption", "message"),
        [(None, "None is not a text"), ("  ", "empty caption"), (np.nan, "nan is not a text"),
         ([], "empty list of captions"), (["a", None], "None is not a text"),
         (3, "3 is not a text")],
    )  # fmt: skip
    def test_invalid_caption_raises_before_images_are_encoded(
        self, captioned_images, text_encoder, caption, message
    ):
        captions = [*captioned_images.captions[:5], caption]
        aligner = small(image_encoder=MustNotRun(), text_encoder=text_encoder)
        with pytest.raises(ValueError, match=f"row 5: .*{message}"):
            aligner.fit(captioned_images.images[:6], captions)

    @pytest.mark.parametrize("cls", [APEAligner, KernelAligner])
    @pytest.mark.parametrize(
        ("parameter", "value", "message"),
        [("random_state", -1, "random_state must be None, an integer from 0 .*, not -1"),
         ("random_state", np.random.default_rng(0), "random_state must be .*, not Generator"),
         ("verbose", "yes", "verbose must be None or an integer >= 0, not 'yes'")],
    )  # fmt: skip
    def test_invalid_parameter_raises_before_images_are_encoded(
        self, captioned_images, text_encoder, cls, parameter, value, message
    ):
        aligner = cls(image_encoder=MustNotRun(), text_encoder=text_encoder, **{parameter: value})
        with pytest.raises(ValueError, match=message):
            aligner.fit(captioned_images.images[:6], captioned_images.captions[:6])

    @pytest.mark.parametrize("callbacks", [[1], [("name", "callback")], "all"])
    def test_invalid_callbacks_raise_before_images_are_encoded(
        self, captioned_images, text_encoder, callbacks
    ):
        aligner = small(image_encoder=MustNotRun(), text_encoder=text_encoder, callbacks=callbacks)
        with pytest.raises(TypeError, match="callbacks "):
            aligner.fit(captioned_images.images[:6], captioned_images.captions[:6])

    def test_callback_that_cannot_be_copied_raises_before_images_are_encoded(
        self, captioned_images, text_encoder, tmp_path
    ):
        """skorch's callbacks for loggers have files and connections as parameters."""
        with open(tmp_path / "log.txt", "w") as file:
            aligner = small(
                image_encoder=MustNotRun(),
                text_encoder=text_encoder,
                callbacks=[PrintLog(sink=file)],
            )
            with pytest.raises(
                TypeError, match=r"cannot be copied .*TextIOWrapper.*on_train_begin"
            ):
                aligner.fit(captioned_images.images[:6], captioned_images.captions[:6])

    @pytest.mark.parametrize(
        "callback",
        [Callback, ["name", Callback()], ("name", None), None],
        ids=["class", "list", "name without callback", "None"],
    )
    def test_callbacks_of_all_forms_of_skorch_are_accepted(self, features, tmp_path, callback):
        aligner = small(max_epochs=1, callbacks=[callback], checkpoint=tmp_path)
        assert aligner.fit(features.image, features.text).best_epoch_ <= 1

    def test_numpy_bool_as_verbose_is_accepted(self, features, capsys):
        KernelAligner(verbose=np.False_).fit(features.image, features.text)
        assert capsys.readouterr().err == ""

    def test_captions_without_text_encoder_raise(self, features, captioned_images):
        with pytest.raises(ValueError, match=r"text_encoder is None\. Pass text_encoder="):
            small().fit(features.image, captioned_images.captions)

    def test_images_without_image_encoder_raise(self, captioned_images, text_encoder):
        with pytest.raises(ValueError, match="X holds images, and image_encoder is None"):
            small(text_encoder=text_encoder).fit(
                captioned_images.images, captioned_images.captions
            )

    @pytest.mark.parametrize("has_encoder", [False, True])
    def test_table_of_paths_raises(self, text_encoder, has_encoder):
        """With `init="starter"`, the encoders are those of the starter model."""
        aligner = APEAligner(init="starter") if has_encoder else small(text_encoder=text_encoder)
        table = pd.DataFrame({"file": ["cat.png", "dog.png"], "year": [1, 2]})
        for X in (table, table[["file"]].to_numpy(), table[["file"]].values.tolist()):
            with pytest.raises(ValueError, match=r"'cat\.png'\. If the texts are paths of images"):
                aligner.fit(X, ["a cat", "a dog"])

    @pytest.mark.parametrize("aligner_class", [APEAligner, KernelAligner])
    def test_images_and_captions_without_encoders_raise_one_error(
        self, captioned_images, aligner_class
    ):
        names = "image_encoder='efficientnet_lite0' and text_encoder='all-MiniLM-L6-v2'"
        with pytest.raises(
            ValueError, match=f"image_encoder and text_encoder are None.*{names}"
        ) as error:
            aligner_class().fit(captioned_images.images, captioned_images.captions)
        assert ("init='starter'" in str(error.value)) == (aligner_class is APEAligner)

    def test_image_encoder_set_after_fit_on_features_is_not_used(self, captioned_images, features):
        """It is not fitted, and its features may be others."""
        aligner = small(max_epochs=1).fit(features.image, features.text)
        before = aligner.transform(features.image)
        aligner.set_params(image_encoder=MustNotRun())
        np.testing.assert_array_equal(aligner.transform(features.image), before)
        with pytest.raises(ValueError, match="X holds images, and this aligner was fitted on fea"):
            aligner.transform(captioned_images.images[:2])

    def test_class_numbers_as_captions_raise(self, features, text_encoder):
        for labels in (np.zeros(300, dtype=int), [0] * 300, [{"raw": "a cat"}] * 300):
            with pytest.raises(ValueError, match="y holds values that are not texts"):
                small(text_encoder=text_encoder).fit(features.image, labels)

    def test_table_or_mapping_of_captions_raises(self, features, captioned_images, text_encoder):
        aligner = small(text_encoder=text_encoder)
        with pytest.raises(ValueError, match=r"columns 'caption'\. Pass the column"):
            aligner.fit(features.image, pd.DataFrame({"caption": captioned_images.captions}))
        with pytest.raises(ValueError, match="must be a sequence of captions or features"):
            aligner.fit(features.image, dict(enumerate(captioned_images.captions)))

    def test_encoder_of_an_earlier_fit_is_not_used(self, features, captioned_images, text_encoder):
        aligner = small(text_encoder=text_encoder, max_epochs=1)
        aligner.fit(features.image, captioned_images.captions).fit(features.image, features.text)
        with pytest.raises(ValueError, match="was fitted on features of texts"):
            aligner.transform_text(["a cat"])

    def test_collapsed_text_encoder_scores_at_most_chance(self, features, captioned_images):
        """Captions with equal features do not count as the same caption."""
        training_captions = [f"word{i}" for i in range(200)]
        aligner = small(text_encoder=CountVectorizer(), max_epochs=2)
        aligner.fit(features.image[:200], training_captions)
        assert aligner.score(features.image[200:], captioned_images.captions[200:]) < 0.05
        with pytest.warns(UserWarning, match="9 of the 9 rows of X have the same features"):
            aligner.score(np.ones_like(features.image[:9]), captioned_images.captions[:9])

    def test_rows_repeated_for_each_caption_warn(self, features, captioned_images, text_encoder):
        """Recall on held-out pairs counts them as separate images, and captions as one text."""
        X, captions = features.image[:120], np.array(captioned_images.captions[:240])
        aligner = small(text_encoder=text_encoder, max_epochs=1)
        aligner.fit(X, captions.reshape(120, 2).tolist())
        match = "240 of the 240 rows of X have .* the recall in history_"
        with pytest.warns(UserWarning, match=match) as record:
            aligner.fit(np.repeat(X, 2, axis=0), captions)
        assert len(record) == 1
        with pytest.warns(UserWarning, match="240 of the 240 rows of y have the same features"):
            aligner.fit(features.image[:240], np.repeat(features.text[:120], 2, axis=0))
        aligner.set_params(early_stopping=False).fit(np.repeat(X, 2, axis=0), captions)

    def test_warning_as_error_keeps_finished_training(self, features):
        aligner, texts = small(max_epochs=1), np.repeat(features.text[:120], 2, axis=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserWarning, match="same features"):
                aligner.fit(features.image[:240], texts)
        assert aligner.transform(features.image[:2]).shape == (2, aligner.n_components_)

    def test_captions_as_images_raise(self, captioned_images, image_encoder, text_encoder):
        aligner = small(image_encoder=image_encoder, text_encoder=text_encoder)
        with pytest.raises(ValueError, match=r"rows 0, 1, .*looks like a caption"):
            aligner.fit(captioned_images.captions, captioned_images.captions)

    def test_single_pair_raises(self, concepts, captioned_images, features, text_encoder):
        with pytest.raises(ValueError, match="minimum of 2 is required"):
            small().fit(concepts.image[:1], concepts.text[:1])
        with pytest.raises(ValueError, match="at least 2 pairs"):
            small(text_encoder=text_encoder).fit(features.image[:1], captioned_images.captions[:1])

    def test_row_with_nan_raises(self, concepts):
        image = concepts.image.copy()
        image[[3, 5], 2] = np.nan
        with pytest.raises(ValueError, match=r"Input X contains NaN in 2 rows .rows 3, 5."):
            small().fit(image, concepts.text)
        aligner = small(max_epochs=1).fit(concepts.image, concepts.text)
        with pytest.raises(ValueError, match="Input X contains NaN"):
            aligner.transform(image)

    def test_same_image_with_different_captions_warns(self, captioned_images, image_encoder):
        images = captioned_images.images[:1] * 10
        features = image_encoder.transform(images)
        with pytest.warns(UserWarning, match="All images have the same features"):
            KernelAligner(image_encoder=image_encoder).fit(images, np.eye(10))
        with pytest.warns(UserWarning, match="All images have the same features"):
            KernelAligner().fit(features, np.eye(10))

    @pytest.mark.parametrize(
        ("parameter", "value", "message"),
        [("depth", 0, "depth must be an integer >= 1, not 0"),
         ("depth", 2.0, "depth must be an integer"),
         ("width", -1, "width must be an integer >= 1"),
         ("batch_size", 1, "batch_size must be an integer >= 2"),
         ("max_epochs", 0, "max_epochs must be"),
         ("dropout", 1.0, r"dropout must be a number in \[0, 1\), not 1.0"),
         ("learning_rate", 0, r"learning_rate must be a number in \(0, inf\)"),
         ("loss_params", {"logit_scale": "big"}, r"loss_params\['logit_scale'\] must be a number"),
         ("loss_params", {"max_logit_scale": 1.0}, r"loss_params\['max_logit_scale'\] must be"),
         ("loss_params", {"learn_logit_scale": "no"}, r"\['learn_logit_scale'\] must be True or"),
         ("loss_params", {"structure_weight": None}, r"loss_params\['structure_weight'\] must be"),
         ("loss_params", {"tile_size": 0}, r"loss_params\['tile_size'\].*'auto'"),
         ("loss_params", {"margin": 1}, "loss_params has the unknown key 'margin'. Valid keys"),
         ("loss_params", 3, "loss_params must be None or a dict, not 3"),
         ("head", "mpl", "head must be one of linear, mlp, .*star, not 'mpl'"),
         ("side", "left", "side must be one of"),
         ("loss", "mse", "loss must be one of infonce, sigmoid"),
         ("n_components", 33, "n_components must be None or at most 32, not 33"),
         ("validation_fraction", 1.0, "validation_fraction must be"),
         ("init", "ridge", "^init='ridge' is not .* 'linear', 'starter', a fitted .* or None"),
         ("optimizer", "sgd", "optimizer must be one of adamw, adam, lion"),
         ("optimizer_params", {"warmup": 1.5}, r"\['warmup'\] must be .*number of steps"),
         ("optimizer_params", {"warmup": "long"}, r"_params\['warmup'\] must be a number"),
         ("optimizer_params", {"clip_norm": 0}, r"\['clip_norm'\] must be None or a number"),
         ("optimizer_params", {"lr": 1}, "unknown key 'lr'. Valid keys are warmup, clip_norm"),
         ("mixup", -1, "mixup must be a number in"),
         ("device", "gpu", "device must be 'auto'")],
    )  # fmt: skip
    def test_invalid_parameter_raises(self, concepts, parameter, value, message):
        with pytest.raises(ValueError, match=message):
            small(**{parameter: value}).fit(concepts.image, concepts.text)

    def test_missing_captions_raise(self, concepts):
        with pytest.raises(ValueError, match="requires y to be passed"):
            small().fit(concepts.image, None)

    def test_transform_text_with_several_texts_per_row_raises(
        self, captioned_images, features, text_encoder
    ):
        aligner = small(text_encoder=text_encoder, max_epochs=1)
        aligner.fit(features.image, captioned_images.captions)
        with pytest.raises(ValueError, match="one text per row"):
            aligner.transform_text([["a", "b"], ["c"]])
