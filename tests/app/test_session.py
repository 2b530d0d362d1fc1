"""Sessions of the web app: classification, search and alignment."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from sklearn_ape import CCAAligner, ZeroShotClassifier
from sklearn_ape.app import Limits
from sklearn_ape.app._actions import parse_labels
from sklearn_ape.app._limits import UserError, no_report, reason
from sklearn_ape.app._model import Alignment, Recall, load_model
from sklearn_ape.app._session import AppService, Session
from sklearn_ape.app._ui import about_alignment, show_errors
from sklearn_ape.features import MemoryFeatureCache


class TestLabels:
    @pytest.mark.parametrize(
        ("text", "labels"),
        [
            ("cat, dog", ["cat", "dog"]),
            ("cat; dog;", ["cat", "dog"]),
            ("cat\n\n  dog  \ncat\n", ["cat", "dog"]),
            ("a cat, asleep\na dog", ["a cat, asleep", "a dog"]),
            ("猫,🐶", ["猫", "🐶"]),
        ],
    )
    def test_are_told_apart_as_people_write_them(self, text, labels):
        assert parse_labels(text, Limits()) == labels

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            (None, "no names"),
            (" ,\n ", "no names"),
            ("cat", "the only name"),
            ("cat, cat", "the only name"),
            (",".join(map(str, range(501))), "the limit is 500"),
            ("cat," + "x" * 501, "501 characters"),
        ],
    )
    def test_that_cannot_be_used_are_refused_with_the_reason(self, text, why):
        with pytest.raises(UserError, match=why):
            parse_labels(text, Limits())


class TestClassify:
    def test_gives_the_probabilities_of_the_classifier(
        self, studio, captioned_images, fast_aligner
    ):
        image, names = captioned_images.images[3], sorted(captioned_images.captions[:5])
        found = studio.classify(Session(), image, "\n".join(names), "simple", 0)
        expected = ZeroShotClassifier(names, aligner=fast_aligner).predict_proba([image])[0]
        assert found.probabilities == pytest.approx(dict(zip(names, expected, strict=True)))
        assert list(found.probabilities.values()) == sorted(expected, reverse=True)

    @pytest.mark.parametrize("threshold", [0, 1.0])
    def test_names_are_text_in_the_verdict(self, studio, captioned_images, threshold):
        names = "![x](http://evil/x.png)\n<b>*a*</b>"
        found = studio.classify(Session(), captioned_images.images[0], names, "none", threshold)
        assert any(name in found.probabilities for name in names.split("\n"))
        assert not re.search(r"(?<!\\)[\[\]<>]", found.verdict)

    def test_below_the_threshold_it_is_unknown(self, studio, captioned_images):
        found = studio.classify(Session(), captioned_images.images[0], "cat, dog", "none", 1.0)
        assert "Unknown" in found.verdict

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "empty"),
            (b"hello", "not an image but text"),
            (b"<svg xmlns='x'></svg>", "vector drawing"),
            (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "Pillow"),
        ],
    )
    def test_a_file_that_is_no_image_is_refused_without_its_path(
        self, studio, tmp_path, content, why
    ):
        path = tmp_path / "some.png"
        path.write_bytes(content)
        with pytest.raises(UserError, match=why) as caught:
            studio.classify(Session(), str(path), "cat, dog", "simple", 0)
        assert str(tmp_path) not in str(caught.value)

    def test_an_image_of_too_many_pixels_is_not_decoded(self, studio, tmp_path):
        path = tmp_path / "bomb.png"
        Image.new("1", (8_000, 7_000)).save(path)
        with pytest.raises(UserError, match="56 million pixels"):
            studio.classify(Session(), str(path), "cat, dog", "simple", 0)

    def test_no_image_and_unknown_choices_are_refused(self, studio, captioned_images):
        with pytest.raises(UserError, match="no image yet"):
            studio.classify(Session(), None, "cat, dog", "simple", 0)
        with pytest.raises(UserError, match="no sentences called"):
            studio.classify(Session(), captioned_images.images[0], "cat, dog", "bogus", 0)
        with pytest.raises(UserError, match="between 0 and 1"):
            studio.classify(
                Session(), captioned_images.images[0], "cat, dog", "simple", float("nan")
            )


class TestSearch:
    def test_by_words_and_by_an_image(self, studio, captioned_images):
        _, found = studio.search(Session(), "a cat", None, 5)
        assert len(found) == 5
        scores = [f.score for f in found]
        assert scores == sorted(scores, reverse=True)
        _, found = studio.search(Session(), " ", captioned_images.images[7], 1)
        assert found[0].image == captioned_images.images[7]

    def test_no_more_than_there_are(self, studio):
        assert len(studio.search(Session(), "a cat", None, 10_000)[1]) == 40

    def test_nothing_to_look_for_is_refused(self, studio):
        with pytest.raises(UserError, match="Write what to look for"):
            studio.search(Session(), "  ", None, 5)
        with pytest.raises(UserError, match="characters"):
            studio.search(Session(), "x" * 1000, None, 5)

    def test_a_zip_of_images_with_a_broken_one(self, studio, make_zip, captioned_images):
        archive = make_zip(
            {
                "red_cat.png": Path(captioned_images.images[0]),
                "dog.png": Path(captioned_images.images[1]),
            }
            | {"broken.png": b"\x89PNG broken", "notes.pdf": b""}
        )
        session = studio.take_collection(Session(), archive, no_report)
        assert "broken.png" in session.images.title
        _, found = studio.search(session, "a cat", None, 5)
        assert {f.name for f in found} == {"red cat", "dog"}

    def test_unpacked_images_go_with_the_session(self, studio, make_zip, captioned_images):
        archive = make_zip({"a.png": Path(captioned_images.images[0])})
        session = studio.take_collection(Session(), archive, no_report)
        folder = session.images.folder.name
        assert os.path.isdir(folder)
        assert os.stat(folder).st_mode & 0o077 == 0
        del session
        assert not os.path.exists(folder)


@pytest.fixture(scope="module")
def progress():
    return []


class TestAlign:
    @pytest.mark.parametrize("method", ["kernel", "ape", "cca"])
    def test_a_new_aligner_is_measured_fitted_on_all_and_serves_the_session(
        self, studio, captioned_zip, captioned_images, method
    ):
        show_errors = []
        session, remark = studio.align(
            Session(),
            captioned_zip(200, 290),
            method,
            False,
            lambda share, what: show_errors.append((share, what)),
        )
        alignment = session.alignment
        assert alignment.n_pairs == 90
        assert 10 <= alignment.n_held_out <= 30
        assert [r.who for r in alignment.recall] == ["before", "aligned on your images"]
        assert all(0 <= r.at_1 <= r.at_5 <= 100 for r in alignment.recall)
        assert "text files" in remark
        shares = [share for share, _ in show_errors]
        assert shares == sorted(shares)
        assert shares[0] >= 0
        assert shares[-1] <= 1
        assert any("Encoding image" in what for _, what in show_errors)
        assert any("Epoch" in what for _, what in show_errors) == (method == "ape")

    def test_the_session_alone_uses_it(self, studio, captioned_zip, captioned_images):
        session, _ = studio.align(Session(), captioned_zip(200, 290), "kernel", False, no_report)
        other = Session()
        names = "\n".join(captioned_images.captions[200:210])
        mine, theirs = (
            studio.classify(s, captioned_images.images[205], names, "none", 0)
            for s in (session, other)
        )
        assert mine.probabilities != theirs.probabilities
        found_before = studio.search(other, "a cat", None, 40)[1]
        session, found = studio.search(session, "a cat", None, 40)
        assert [f.score for f in found] != [f.score for f in found_before]
        assert studio.search(other, "a cat", None, 40)[1] == found_before
        session = studio.forget_alignment(session)
        assert studio.search(session, "a cat", None, 40)[1] == found_before

    def test_the_aligner_holds_no_image_and_no_cache(self, studio, captioned_zip):
        session, _ = studio.align(Session(), captioned_zip(200, 290), "ape", False, no_report)
        aligner = session.alignment.aligner
        assert aligner.callbacks is None
        assert aligner.head_pairs is None

    def test_encoders_without_a_classification_head_are_aligned_without_its_names(
        self, studio, captioned_zip
    ):
        session, _ = studio.align(Session(), captioned_zip(0, 9), "kernel", True, no_report)
        assert not session.alignment.with_head

    def test_few_pairs_are_aligned_and_not_measured(self, studio, captioned_zip):
        session, _ = studio.align(Session(), captioned_zip(200, 210), "cca", False, no_report)
        assert session.alignment.recall == []
        assert "too few" in session.alignment.remark

    def test_a_broken_image_does_not_cost_the_others(self, studio, make_zip, captioned_images):
        contents = {f"cat{'x' * i}.png": Path(captioned_images.images[i]) for i in range(6)}
        archive = make_zip(contents | {"broken cat.png": b"nothing"})
        session, remark = studio.align(Session(), archive, "kernel", False, no_report)
        assert session.alignment.n_pairs == 6
        assert "broken cat.png" in remark
        assert "names of the files" in remark

    def test_what_cannot_be_aligned_is_refused(self, studio, captioned_zip):
        with pytest.raises(UserError, match="no zip yet"):
            studio.align(Session(), None, "kernel", False, no_report)
        with pytest.raises(UserError, match="at least 4"):
            studio.align(Session(), captioned_zip(0, 3), "kernel", False, no_report)
        with pytest.raises(UserError, match="no method"):
            studio.align(Session(), captioned_zip(0, 9), "bogus", False, no_report)

    def test_nothing_is_left_in_the_temporary_folder(
        self, studio, captioned_zip, tmp_path, monkeypatch
    ):
        import tempfile

        place = tmp_path / "temporary"
        place.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        with pytest.raises(UserError):
            studio.align(Session(), captioned_zip(0, 3), "kernel", False, no_report)
        session, _ = studio.align(Session(), captioned_zip(0, 9), "kernel", False, no_report)
        del session
        assert os.listdir(place) == []


class TestStart:
    def test_an_aligner_of_features_is_refused_at_the_start(self):
        features = np.random.default_rng(0).standard_normal((20, 5))
        aligner = CCAAligner().fit(features, features)
        with pytest.raises(ValueError, match="has no image encoder"):
            load_model(aligner)

    def test_a_classifier_brings_its_names(self, fast_aligner):
        model = load_model(ZeroShotClassifier(["dog", "cat"], aligner=fast_aligner))
        assert model.labels == ["cat", "dog"]
        assert model.aligner.fingerprint_ == fast_aligner.fingerprint_

    def test_what_stands_around_an_aligner_is_taken_off(self, fast_aligner):
        model = load_model(FrozenEstimator(fast_aligner))
        assert model.aligner.fingerprint_ == fast_aligner.fingerprint_

    def test_what_visitors_send_does_not_enter_the_aligners_own_caches(
        self, captioned_images, image_encoder, text_encoder
    ):
        caches = MemoryFeatureCache(), MemoryFeatureCache()
        image, text = (
            clone(encoder).set_params(cache=cache)
            for encoder, cache in zip((image_encoder, text_encoder), caches, strict=True)
        )
        aligner = make_pipeline(image, CCAAligner(text_encoder=text))
        aligner.fit(captioned_images.images[:10], captioned_images.captions[:10])
        before = [len(cache) for cache in caches]
        assert min(before) == 10
        studio = AppService(load_model(aligner), captioned_images.images[:10], Limits())
        studio.classify(Session(), captioned_images.images[20], "cat, dog", "none", 0)
        studio.search(Session(), "a cat", None, 3)
        studio.search(Session(), "", captioned_images.images[21], 3)
        assert [len(cache) for cache in caches] == before

    def test_limits_are_positive_integers(self):
        with pytest.raises(ValueError, match="labels must be an integer >= 1"):
            Limits(labels=0)


class TestReasons:
    def test_what_was_not_foreseen_shows_nothing_of_its_inside(self, caplog):
        text = reason(KeyError("/home/me/secret"))
        assert "secret" not in text
        assert "A request failed" in caplog.text

    def test_the_log_holds_no_control_characters(self, caplog):
        reason(KeyError("red\x1b[31m\u202e"))
        assert r"red" in caplog.text
        assert "\x1b" not in caplog.text
        assert "\u202e" not in caplog.text

    def test_messages_are_text_in_html(self):
        class Gradio:
            class Error(Exception):
                def __init__(self, message, **options):
                    super().__init__(message)

        with pytest.raises(Gradio.Error, match="&lt;img onerror=x&gt;'"), show_errors(Gradio):
            raise UserError("'<img onerror=x>'")


def alignment_text(before, after, n_held_out, with_head=False):
    recall = [Recall("before", before, 90), Recall("after", after, 90)]
    alignment = Alignment(None, "kernel", 500, n_held_out, recall, "", with_head)
    return about_alignment(alignment, "Captions come from files.")


class TestAboutAlignment:
    @pytest.mark.parametrize(
        ("before", "after", "n", "verdict"),
        [
            (57, 55, 22, "no clear difference"),
            (57, 30, 100, "The first aligner does better"),
            (30, 57, 100, "Yours does better"),
            (0, 0, 20, "no clear difference"),
            (100, 100, 20, "no clear difference"),
        ],
    )
    def test_a_difference_counts_beyond_its_standard_error(self, before, after, n, verdict):
        assert verdict in alignment_text(before, after, n)

    def test_the_table_has_chance_beside_both(self):
        text = alignment_text(20, 40, 50)
        for row in (
            "| before | 20 % | 90 % |",
            "| after | 40 % | 90 % |",
            "| chance | 2 % | 10 % |",
        ):
            assert row in text
        assert "fitted on all 500" in text

    def test_class_names_are_advised_to_those_who_left_them_out(self):
        assert "class names" in alignment_text(90, 10, 100)
        assert "class names" not in alignment_text(90, 10, 100, with_head=True)

    def test_going_back_is_said(self):
        assert "in use again" in about_alignment(None, "")

    def test_names_of_files_are_text_in_the_remark(self):
        remark = "1 image was left out: '![x](http://evil/x.png)<b>', is empty"
        shown = about_alignment(None, "") + about_alignment(
            Alignment(None, "kernel", 5, 0, [], "", False), remark
        )
        assert r"\!" not in shown
        assert r"!\[x\](http\://evil/x\.png)\<b\>" in shown
