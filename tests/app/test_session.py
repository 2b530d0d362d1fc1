"""Sessions of the web app: classification, search and alignment."""

import os
import re
import shutil
from copy import deepcopy
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from sklearn_ape import CCAAligner, CLIPAligner, FewShotClassifier, ZeroShotClassifier
from sklearn_ape.app import Limits, _model
from sklearn_ape.app._limits import SessionHolder, UserError, make_visitor_message, parse_labels
from sklearn_ape.app._model import Model, Recall, list_methods, load_model
from sklearn_ape.app._session import AppService, Session, load_collection
from sklearn_ape.encoders import EncodingFailedWarning
from sklearn_ape.features import MemoryFeatureCache
from tests.app.conftest import ignore_progress


class TestParseLabels:
    @pytest.mark.parametrize(
        ("text", "labels"),
        [
            ("cat, dog", ["cat", "dog"]),
            ("cat; dog;", ["cat", "dog"]),
            ("cat\n\n  dog  \ncat\n", ["cat", "dog"]),
            ("a cat, asleep\na dog", ["a cat, asleep", "a dog"]),
            ("cat, dog, car\nbus", ["cat", "dog", "car", "bus"]),
            ("- cat,\n- a dog;\n* bus", ["cat", "a dog", "bus"]),
            ("cat\n- cat", ["cat", "- cat"]),
            ("- cat, cat", ["- cat", "cat"]),
            ("猫,🐶", ["猫", "🐶"]),
        ],
    )
    def test_labels_are_split_at_separators(self, text, labels):
        assert parse_labels(text, Limits()) == labels

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            (None, "no labels"),
            (" ,\n ", "no labels"),
            ("cat", "the only label"),
            ("cat, cat", "the only label"),
            (",".join(map(str, range(501))), "the limit is 500"),
            ("cat," + "x" * 501, "501 characters"),
        ],
    )
    def test_invalid_labels_raise(self, text, why):
        with pytest.raises(UserError, match=why):
            parse_labels(text, Limits())


class TestCorrect:
    def test_image_gets_the_correct_label(self, service, captioned_images):
        """Further corrections are added, and the session before is not changed."""
        images, names = captioned_images.images[:3], "a stone, a cloud, a tuba"
        session = service.correct(Session(), images[0], names, "simple", "a tuba")
        results = service.classify(session, images[0], names, "simple", 0)
        assert next(iter(results.probabilities)) == "a tuba"
        assert "Labelled images used: 1." in results.summary
        second = service.correct(session, images[1], names, "simple", "a cloud")
        assert second.few_shot.class_count_.tolist() == [1, 0, 1]
        assert session.few_shot.class_count_.tolist() == [0, 0, 1]

    def test_other_labels_begin_without_examples(self, service, captioned_images):
        image = captioned_images.images[0]
        session = service.correct(Session(), image, "cat, tuba", "simple", "tuba")
        results = service.classify(session, image, "cat, tuba, rose", "simple", 0)
        assert "Labelled images" not in results.summary
        session = service.correct(session, image, "cat, tuba, rose", "simple", "rose")
        assert session.few_shot.class_count_.sum() == 1

    def test_another_aligner_forgets_corrections(self, service, captioned_images):
        session = service.correct(
            Session(), captioned_images.images[0], "cat, tuba", "simple", "tuba"
        )
        session = service.reset_aligner(session)
        assert session.few_shot is None
        with pytest.raises(UserError, match="no correction to undo"):
            service.undo_correction(session)

    def test_last_correction_is_undone(self, service, captioned_images):
        """The predictions are those before the correction. It can be undone only once."""
        images, names = captioned_images.images[:2], "a stone, a cloud, a tuba"
        first = service.correct(Session(), images[0], names, "simple", "a tuba")
        second = service.correct(first, images[1], names, "simple", "a cloud")
        undone = service.undo_correction(second)
        expected, wrong, results = (
            service.classify(session, images[1], names, "simple", 0)
            for session in (first, second, undone)
        )
        assert results == expected
        assert results.probabilities != wrong.probabilities
        assert undone.few_shot.class_count_.tolist() == [0, 0, 1]
        with pytest.raises(UserError, match="Only the last one can be undone"):
            service.undo_correction(undone)

    def test_undo_restores_corrections_that_were_replaced(self, service, captioned_images):
        """A correction with other labels replaces the earlier ones until it is undone."""
        image = captioned_images.images[0]
        first = service.correct(Session(), image, "cat, tuba", "simple", "tuba")
        second = service.correct(first, image, "cat, tuba, rose", "simple", "rose")
        assert service.undo_correction(second).few_shot is first.few_shot

    def test_other_templates_are_reported(self, service, captioned_images):
        """The labelled images are used with the texts of the first labelled image."""
        image, names = captioned_images.images[0], "a stone, a cloud, a tuba"
        session = service.correct(Session(), image, names, "simple", "a tuba")
        same, other = (
            service.classify(session, image, names, templates, 0)
            for templates in ("simple", "none")
        )
        assert same.probabilities == other.probabilities
        assert "templates are those of the first labelled image" not in same.summary
        assert "templates are those of the first labelled image" in other.summary

    @pytest.mark.parametrize("label", [None, "rose", ""])
    def test_label_that_is_not_listed_raises(self, service, captioned_images, label):
        with pytest.raises(UserError, match="must be one of the labels"):
            service.correct(Session(), captioned_images.images[0], "cat, tuba", "simple", label)

    def test_limit(self, fast_aligner, captioned_images):
        service = AppService(
            Model(fast_aligner), captioned_images.images[:4], Limits(corrections=1)
        )
        arguments = (captioned_images.images[0], "cat, tuba", "simple", "tuba")
        session = service.correct(Session(), *arguments)
        with pytest.raises(UserError, match="The limit is 1 labelled images"):
            service.correct(session, *arguments)

    def test_few_shot_classifier_is_served(self, fast_aligner, captioned_images):
        few = FewShotClassifier(["cat", "tuba"], aligner=fast_aligner)
        few.fit(captioned_images.images[:2], ["tuba", "tuba"])
        model = load_model(few)
        assert model.labels == ["cat", "tuba"]
        service = AppService(model, captioned_images.images[:4], Limits())
        image = captioned_images.images[0]
        results = service.classify(service.initial_session, image, "tuba, cat", "simple", 0)
        assert "Labelled images used: 2." in results.summary
        expected = few.predict_proba([image])[0, 1]
        assert results.probabilities["tuba"] == pytest.approx(expected, abs=1e-5)
        session = service.correct(service.initial_session, image, "tuba, cat", "simple", "cat")
        assert service.reset_aligner(session).few_shot is model.few_shot
        holder = SessionHolder(service.initial_session, service.limits, lambda: None)
        assert deepcopy(holder).session.few_shot is model.few_shot  # not copied

    def test_names_of_subfolders_are_labels(self, captioned_images, tmp_path):
        """Underscores are spaces, and classes that differ by a number remain different."""
        for row, name in enumerate(("house_cat", "tuba", "type_1", "type_2")):
            (tmp_path / name).mkdir()
            shutil.copy(captioned_images.images[row], tmp_path / name)
        assert load_collection(tmp_path).labels == ["house cat", "tuba", "type 1", "type 2"]
        assert load_collection(tmp_path / "tuba").labels is None


class TestClassify:
    def test_probabilities_equal_those_of_classifier(
        self, service, captioned_images, fast_aligner
    ):
        image, names = captioned_images.images[3], sorted(captioned_images.captions[:5])
        results = service.classify(Session(), image, "\n".join(names), "simple", 0)
        expected = ZeroShotClassifier(names, aligner=fast_aligner).predict_proba([image])[0]
        assert results.probabilities == pytest.approx(dict(zip(names, expected, strict=True)))
        assert list(results.probabilities.values()) == sorted(expected, reverse=True)

    @pytest.mark.parametrize("threshold", [0, 1.0])
    def test_labels_are_escaped_in_summary(self, service, captioned_images, threshold):
        names = "![x](http://evil/x.png)\n<b>*a*</b>"
        results = service.classify(Session(), captioned_images.images[0], names, "none", threshold)
        assert any(name in results.probabilities for name in names.split("\n"))
        assert not re.search(r"(?<!\\)[\[\]<>]", results.summary)

    def test_image_below_threshold_is_unknown(self, service, captioned_images):
        results = service.classify(Session(), captioned_images.images[0], "cat, dog", "none", 1.0)
        assert "Unknown" in results.summary

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "empty"),
            (b"hello", "a text file, not an image"),
            (b"<svg xmlns='x'></svg>", "vector drawing"),
            (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "format that can be read"),
        ],
    )
    def test_file_that_is_not_an_image_raises_without_path(self, service, tmp_path, content, why):
        path = tmp_path / "image.png"
        path.write_bytes(content)
        with pytest.raises(UserError, match=why) as caught:
            service.classify(Session(), str(path), "cat, dog", "simple", 0)
        assert str(tmp_path) not in str(caught.value)

    def test_image_with_too_many_pixels_is_not_decoded(self, service, tmp_path):
        path = tmp_path / "bomb.png"
        Image.new("1", (8_000, 7_000)).save(path)
        with pytest.raises(UserError, match="56 million pixels"):
            service.classify(Session(), str(path), "cat, dog", "simple", 0)

    def test_missing_image_and_invalid_options_raise(self, service, captioned_images):
        with pytest.raises(UserError, match="no image yet"):
            service.classify(Session(), None, "cat, dog", "simple", 0)
        with pytest.raises(UserError, match="is not a set of prompt templates"):
            service.classify(Session(), captioned_images.images[0], "cat, dog", "bogus", 0)
        with pytest.raises(UserError, match="between 0 and 1"):
            service.classify(
                Session(), captioned_images.images[0], "cat, dog", "simple", float("nan")
            )


class TestSearch:
    def test_search_by_text_and_by_image(self, service, captioned_images):
        _, results = service.search(Session(), "a cat", None, 5, ignore_progress)
        assert len(results) == 5
        scores = [f.score for f in results]
        assert scores == sorted(scores, reverse=True)
        _, results = service.search(Session(), " ", captioned_images.images[7], 1, ignore_progress)
        assert results[0].image == captioned_images.images[7]

    def test_number_of_results_is_limited(self, service):
        assert len(service.search(Session(), "a cat", None, 10_000, ignore_progress)[1]) == 40

    def test_unreadable_image_of_the_server_is_skipped(self, captioned_images, tmp_path, limits):
        """With the starter model, whose encoder raises an error."""
        (tmp_path / "broken.jpg").write_bytes(b"")
        images = [captioned_images.images[0], str(tmp_path / "broken.jpg")]
        service = AppService(load_model(None), [*images, captioned_images.images[1]], limits)
        with pytest.warns(UserWarning, match=r"broken\.jpg") as record:
            _, found = service.search(Session(), "an animal", None, 20, ignore_progress)
        assert sorted(image.image for image in found) == sorted(captioned_images.images[:2])
        assert ["broken.jpg" in str(warning.message) for warning in record].count(True) == 1
        assert service.images.title == "images, without 1 that cannot be read"
        service = AppService(load_model(None), images[1:], limits)
        with pytest.warns(EncodingFailedWarning), pytest.raises(ValueError, match="None of the 1"):
            service.search(Session(), "an animal", None, 20, ignore_progress)

    def test_incomplete_captions_are_no_error(self, captioned_images, tmp_path):
        for row in range(2):
            shutil.copy(captioned_images.images[row], tmp_path / f"image {row}.png")
        (tmp_path / "image 0.txt").write_text("a caption")
        # The names of the files, with the numbers by which the images of a camera differ.
        assert load_collection(tmp_path).names == ["image 0", "image 1"]

    def test_missing_query_raises(self, service):
        with pytest.raises(UserError, match="There is no query"):
            service.search(Session(), "  ", None, 5, ignore_progress)
        with pytest.raises(UserError, match="characters"):
            service.search(Session(), "x" * 1000, None, 5, ignore_progress)

    def test_invisible_text_raises(self, service, captioned_images):
        """Text encoders reject it, with an error that is not for visitors."""
        image = captioned_images.images[0]
        with pytest.raises(UserError, match=r"The query '\\u200b' is an empty text"):
            service.search(Session(), "\u200b", None, 5, ignore_progress)
        with pytest.raises(UserError, match=r"The label .* is an empty text"):
            service.classify(Session(), image, "cat, \u200b", "simple", 0)

    @pytest.mark.parametrize("exists", [True, False])
    def test_existing_file_gets_same_answer(self, service, captioned_images, tmp_path, exists):
        image, file = captioned_images.images[0], tmp_path / "secret.png"
        if exists:
            shutil.copy(image, file)
        with pytest.raises(UserError, match="is a file name"):
            service.search(Session(), str(file), None, 5, ignore_progress)
        with pytest.raises(UserError, match="is a file name"):
            service.classify(Session(), image, f"cat, {file}", "none", 0)

    def test_unreadable_image_of_zip_is_skipped(self, service, make_zip, captioned_images):
        cat, dog = map(Path, captioned_images.images[:2])
        images = {"red_cat.png": cat, "dog.png": dog, "broken.png": b"\x89PNG broken"}
        archive = make_zip(images | {"notes.pdf": b""})
        session = service.load_images(Session(), archive, ignore_progress)
        assert "broken.png" in session.images.title
        _, results = service.search(session, "a cat", None, 5, ignore_progress)
        assert {f.name for f in results} == {"red_cat", "dog"}

    def test_narrow_image_is_skipped_or_raises(
        self, service, make_zip, captioned_images, tmp_path
    ):
        """Encoders reject it, with an error that is not for visitors."""
        narrow = tmp_path / "long cat.png"
        Image.new("RGB", (900, 2)).save(narrow)
        with pytest.raises(UserError, match="The image cannot be used: it is too narrow"):
            service.search(Session(), "", str(narrow), 5, ignore_progress)
        contents = {f"cat{'x' * i}.png": Path(captioned_images.images[i]) for i in range(6)}
        archive = make_zip(contents | {"long cat.png": narrow})
        session = service.load_images(Session(), archive, ignore_progress)
        assert "'long cat.png' is too narrow (900 x 2 pixels)" in session.images.title
        session, _ = service.align(Session(), archive, "kernel", False, ignore_progress)
        assert session.alignment.n_images == 6

    def test_initial_images_can_be_searched_again(self, service, make_zip, captioned_images):
        archive = make_zip({f"{n}.png": Path(captioned_images.images[n]) for n in range(60, 63)})
        session = service.load_images(Session(), archive, ignore_progress)
        assert len(service.search(session, "a", None, 40, ignore_progress)[1]) == 3
        session = service.reset_images(session)
        assert len(service.search(session, "a", None, 40, ignore_progress)[1]) == 40

    @pytest.mark.parametrize(
        ("contents", "message"),
        [({"a.txt": b"text"}, "The zip has no images"), ({"a.jpg": b""}, "No image of the zip")],
    )
    def test_zip_without_images_raises(self, service, make_zip, contents, message):
        with pytest.raises(UserError, match=message):
            service.load_images(Session(), make_zip(contents), ignore_progress)

    def test_unpacked_images_are_deleted_with_session(self, service, make_zip, captioned_images):
        archive = make_zip({"a.png": Path(captioned_images.images[0])})
        session = service.load_images(Session(), archive, ignore_progress)
        folder = session.images.folder.name
        assert os.path.isdir(folder)
        assert os.stat(folder).st_mode & 0o077 == 0
        del session
        assert not os.path.exists(folder)


@pytest.fixture(scope="module")
def progress():
    return []


class TestAlign:
    @pytest.mark.parametrize(
        "method", ["extend", "kernel", pytest.param("ape", marks=pytest.mark.exhaustive), "cca"]
    )
    def test_aligner_is_evaluated_and_fitted_on_all_pairs(
        self, service, captioned_zip, captioned_images, method
    ):
        calls = []
        session, remark = service.align(
            Session(),
            captioned_zip(200, 290),
            method,
            False,
            lambda fraction, step: calls.append((fraction, step)),
        )
        alignment = session.alignment
        assert alignment.n_images == 90
        assert 10 <= alignment.n_held_out <= 30
        assert [r.aligner_name for r in alignment.recall] == ["initial aligner", "your aligner"]
        assert all(0 <= r.at_1 <= r.at_5 <= 100 for r in alignment.recall)
        assert "text files" in remark
        fractions = [fraction for fraction, _ in calls]
        assert fractions == sorted(fractions)
        assert fractions[0] >= 0
        assert fractions[-1] <= 1
        assert any("Encoding image" in step for _, step in calls)
        assert any("Epoch" in step for _, step in calls) == (method == "ape")
        if method == "ape":  # the aligner contains no training objects
            assert alignment.aligner.callbacks is None
            assert alignment.aligner.head_pairs is None

    def test_copies_of_an_image_are_held_out_together(
        self, service, make_zip, captioned_images, monkeypatch
    ):
        """Otherwise the aligner would be evaluated on images that it was fitted on."""
        contents = {}
        for row, copy in product(range(60), "ab"):
            contents[f"{row}{copy}.png"] = Path(captioned_images.images[row])
            contents[f"{row}{copy}.txt"] = f"caption {row} {copy}"
        held_out = []

        def measure_recall(name, aligner, data):
            held_out.extend(Path(image).stem for image in data.images)
            return Recall(name, 0, 0)

        monkeypatch.setattr(_model, "_measure_recall", measure_recall)
        service.align(Session(), make_zip(contents), "cca", False, ignore_progress)
        rows = {name[:-1] for name in held_out}
        assert rows
        assert set(held_out) == {f"{row}{copy}" for row, copy in product(rows, "ab")}

    def test_extension_is_offered_only_for_aligners_that_can_be_extended(self, service):
        assert list_methods(service.model.aligner) == ["extend", "kernel", "ape", "cca"]
        assert list_methods(CLIPAligner()) == ["kernel", "ape", "cca"]

    def test_extension_keeps_what_the_initial_aligner_knows(self, service, captioned_zip):
        """It is at least about as good on held-out images."""
        archive = captioned_zip(200, 290)
        session, _ = service.align(Session(), archive, "extend", True, ignore_progress)
        initial, own = session.alignment.recall
        assert own.at_5 >= initial.at_5 - 5
        assert not session.alignment.with_head

    def test_aligner_is_used_only_in_its_session(self, service, captioned_zip, captioned_images):
        archive = captioned_zip(200, 290)
        session, _ = service.align(Session(), archive, "kernel", False, ignore_progress)
        other = Session()
        names = "\n".join(captioned_images.captions[200:210])
        mine, theirs = (
            service.classify(s, captioned_images.images[205], names, "none", 0)
            for s in (session, other)
        )
        assert mine.probabilities != theirs.probabilities
        found_before = service.search(other, "a cat", None, 40, ignore_progress)[1]
        session, results = service.search(session, "a cat", None, 40, ignore_progress)
        assert [f.score for f in results] != [f.score for f in found_before]
        assert service.search(other, "a cat", None, 40, ignore_progress)[1] == found_before
        session = service.reset_aligner(session)
        assert service.search(session, "a cat", None, 40, ignore_progress)[1] == found_before

    def test_encoder_without_classification_head_is_aligned(self, service, captioned_zip):
        session, _ = service.align(Session(), captioned_zip(0, 9), "kernel", True, ignore_progress)
        assert not session.alignment.with_head

    def test_few_pairs_are_aligned_without_evaluation(self, service, captioned_zip):
        archive = captioned_zip(200, 210)
        session, _ = service.align(Session(), archive, "cca", False, ignore_progress)
        assert session.alignment.recall == []
        assert "50 pairs without a common image or caption" in session.alignment.remark

    def test_unreadable_image_is_skipped(self, service, make_zip, captioned_images):
        contents = {f"cat{'x' * i}.jpg.png": Path(captioned_images.images[i]) for i in range(6)}
        archive = make_zip(contents | {"broken cat.png": b"nothing"})
        session, remark = service.align(Session(), archive, "kernel", False, ignore_progress)
        assert session.alignment.n_images == 6
        assert "broken cat.png" in remark
        assert "file names" in remark

    def test_invalid_alignment_raises(self, service, captioned_zip):
        with pytest.raises(UserError, match="no zip yet"):
            service.align(Session(), None, "kernel", False, ignore_progress)
        with pytest.raises(UserError, match="at least 4"):
            service.align(Session(), captioned_zip(0, 3), "kernel", False, ignore_progress)
        with pytest.raises(UserError, match="is not a method"):
            service.align(Session(), captioned_zip(0, 9), "bogus", False, ignore_progress)

    def test_temporary_folder_is_empty_afterwards(
        self, service, captioned_zip, tmp_path, monkeypatch
    ):
        import tempfile

        place = tmp_path / "temporary"
        place.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        with pytest.raises(UserError):
            service.align(Session(), captioned_zip(0, 3), "kernel", False, ignore_progress)
        session, _ = service.align(
            Session(), captioned_zip(0, 9), "kernel", False, ignore_progress
        )
        del session
        assert os.listdir(place) == []


class TestLoadModel:
    def test_aligner_fitted_on_features_raises(self):
        features = np.random.default_rng(0).standard_normal((20, 5))
        aligner = CCAAligner().fit(features, features)
        with pytest.raises(ValueError, match="has no image encoder"):
            load_model(aligner)

    def test_labels_of_classifier_are_used(self, fast_aligner):
        model = load_model(ZeroShotClassifier(["dog", "cat"], aligner=fast_aligner))
        assert model.labels == ["cat", "dog"]
        assert model.aligner.fingerprint_ == fast_aligner.fingerprint_

    def test_frozen_aligner_is_unwrapped(self, fast_aligner):
        model = load_model(FrozenEstimator(fast_aligner))
        assert model.aligner.fingerprint_ == fast_aligner.fingerprint_

    @pytest.mark.exhaustive
    def test_uploads_are_not_cached(self, captioned_images, image_encoder, text_encoder):
        caches = MemoryFeatureCache(), MemoryFeatureCache()
        image, text = (
            clone(encoder).set_params(cache=cache)
            for encoder, cache in zip((image_encoder, text_encoder), caches, strict=True)
        )
        aligner = make_pipeline(image, CCAAligner(text_encoder=text))
        aligner.fit(captioned_images.images[:10], captioned_images.captions[:10])
        before = [len(cache) for cache in caches]
        assert min(before) == 10
        service = AppService(load_model(aligner), captioned_images.images[:10], Limits())
        service.classify(Session(), captioned_images.images[20], "cat, dog", "none", 0)
        service.search(Session(), "a cat", None, 3, ignore_progress)
        service.search(Session(), "", captioned_images.images[21], 3, ignore_progress)
        assert [len(cache) for cache in caches] == before

    def test_limits_are_positive_integers(self):
        with pytest.raises(ValueError, match="labels must be an integer >= 1"):
            Limits(labels=0)


class TestErrors:
    def test_unexpected_error_is_generic_for_visitor(self, caplog):
        text = make_visitor_message(KeyError("/home/me/secret"))
        assert "secret" not in text
        assert "A request failed" in caplog.text

    def test_log_has_no_control_characters(self, caplog):
        make_visitor_message(KeyError("red\x1b[31m\u202e"))
        assert r"red" in caplog.text
        assert "\x1b" not in caplog.text
        assert "\u202e" not in caplog.text
