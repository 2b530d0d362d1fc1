"""Sessions of visitors who make several requests at the same time, and whose data are deleted."""

import contextlib
import threading
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from sklearn_ape import ZeroShotClassifier
from sklearn_ape.app import Limits, serve
from sklearn_ape.app._limits import SessionHolder, UserError, _HoldersWithData
from sklearn_ape.app._session import AppService
from tests.app.conftest import ignore_progress


class TestSessionHolder:
    def test_data_are_missed_only_if_there_were_some(self, service, captioned_zip):
        visitor = "first"
        initial = SessionHolder(service.initial_session, service.limits, lambda: visitor)
        holder = deepcopy(initial)
        assert deepcopy(initial).open() is service.initial_session
        archive = captioned_zip(200, 204)
        holder.change(lambda session: service.load_images(session, archive, ignore_progress))
        assert holder.open().images is not None
        with pytest.raises(UserError, match="Reload the page"):
            deepcopy(initial).open()
        visitor = "second"
        assert deepcopy(initial).open() is service.initial_session
        visitor = None  # of a program, which other programs share
        other = deepcopy(initial)
        other.change(lambda session: service.load_images(session, archive, ignore_progress))
        assert deepcopy(initial).open() is service.initial_session
        visitor = "first"
        holder.change(service.reset_images)
        assert deepcopy(initial).open() is service.initial_session

    def test_data_deleted_during_a_request_are_not_mixed_with_its_results(
        self, service, captioned_zip
    ):
        """An index of the deleted images would be used for the initial images."""
        visitor = "first"
        limits = replace(service.limits, sessions=1)
        initial = SessionHolder(service.initial_session, limits, lambda: visitor)
        first, second = deepcopy(initial), deepcopy(initial)
        archive = captioned_zip(200, 204)
        first.change(lambda session: service.load_images(session, archive, ignore_progress))
        before = first.open()
        unindexed = replace(before, index=None)
        indexed, _ = service.search(unindexed, "a cat", None, 3, ignore_progress)
        visitor = "second"
        second.change(lambda session: service.load_images(session, archive, ignore_progress))
        visitor = "first"
        reason = r"more than 1 visitors have data on this page, or more than 1,000 have used it\."
        with pytest.raises(UserError, match=reason):
            first.update(before, indexed)
        assert first.session is service.initial_session
        visitor = "second"
        assert second.open().images is not None
        second.change(service.reset_images)
        visitor = "third"
        deepcopy(initial).change(
            lambda session: service.load_images(session, archive, ignore_progress)
        )
        visitor = "second"  # has nothing left that was deleted
        assert second.open() is not None

    def test_visitors_who_left_do_not_count(self, service, captioned_zip):
        visitor = "first"
        limits = replace(service.limits, sessions=2)
        initial = SessionHolder(service.initial_session, limits, lambda: visitor)
        archive = captioned_zip(200, 204)
        holder = deepcopy(initial)
        holder.change(lambda session: service.load_images(session, archive, ignore_progress))
        for name in ("second", "third"):
            visitor = name
            deepcopy(initial).change(
                lambda session: service.load_images(session, archive, ignore_progress)
            )
        visitor = "first"
        assert holder.open().images is not None

    def test_no_data_are_deleted_below_the_limit(self, service):
        limits = replace(service.limits, sessions=3)
        initial = SessionHolder(service.initial_session, limits, lambda: visitor)
        holders = {name: deepcopy(initial) for name in ("first", "second")}
        for name, holder in holders.items():
            visitor = name
            holder.change(lambda session: replace(session, images=service.images))
        for name, holder in holders.items():
            visitor = name
            assert holder.open().images is service.images

    def test_data_are_not_deleted_while_a_request_begins(
        self, service, captioned_zip, monkeypatch
    ):
        """The request used the initial images in place of those of the visitor."""
        limits = replace(service.limits, sessions=1)
        visitor = threading.local()
        initial = SessionHolder(service.initial_session, limits, lambda: visitor.name)
        holders = {name: deepcopy(initial) for name in ("first", "second")}
        archive = captioned_zip(200, 204)

        def load(name):
            visitor.name = name
            holders[name].change(lambda session: replace(session, images=images))

        images = service.load_images(service.initial_session, archive, ignore_progress).images
        load("first")
        other = threading.Thread(target=load, args=("second",))
        mark_as_used = _HoldersWithData.mark_as_used

        def mark_late(*arguments):
            monkeypatch.undo()
            other.start()
            other.join(0.2)
            mark_as_used(*arguments)

        monkeypatch.setattr(_HoldersWithData, "mark_as_used", mark_late)
        assert holders["first"].open().images is images
        other.join()
        with pytest.raises(UserError, match="were deleted"):
            holders["first"].open()

    def test_results_of_a_replaced_aligner_are_not_used(
        self, service, captioned_zip, captioned_images
    ):
        """They arrive after the alignment if they were computed during it."""
        holder = SessionHolder(service.initial_session, service.limits, lambda: "visitor")
        archive = captioned_zip(200, 230)
        holder.change(lambda session: service.load_images(session, archive, ignore_progress))
        before = holder.open()
        image, names = captioned_images.images[0], "cat, tuba"
        corrected = service.correct(before, image, names, "none", "tuba")
        indexed, _ = service.search(replace(before, index=None), "a cat", None, 3, ignore_progress)
        aligned, _ = service.align(before, archive, "cca", False, ignore_progress)
        for after in (aligned, corrected, indexed):
            holder.update(before, after)
        session = holder.open()
        own_aligner = session.alignment.aligner
        assert service.get_aligner(session) is own_aligner
        classifier = ZeroShotClassifier(["cat", "tuba"], aligner=own_aligner, templates="none")
        result = service.classify(session, image, names, "none", 0)
        expected = classifier.predict_proba([image])[0, 0]
        assert result.probabilities["cat"] == pytest.approx(expected, abs=1e-5)
        _, found = service.search(session, "a cat", None, 3, ignore_progress)
        _, expected = service.search(
            replace(session, index=None), "a cat", None, 3, ignore_progress
        )
        assert found == expected


class TestSessions:
    """A visitor with data on the server, as a browser with an open page."""

    @staticmethod
    def open_page(url):
        from gradio_client import Client, handle_file

        client = Client(url, verbose=False, analytics_enabled=False, download_files=False)

        def request(name, *inputs):
            inputs = [handle_file(x) if isinstance(x, Path) else x for x in inputs]
            return client.submit(*inputs, api_name=f"/{name}")

        return request

    def test_correction_during_a_search_is_kept(self, fast_aligner, captioned_images, monkeypatch):
        """The search ended later, with the session that it had begun with."""
        has_begun, may_end = threading.Event(), threading.Event()

        def search_slowly(service, *arguments):
            has_begun.set()
            assert may_end.wait(60)
            return search(service, *arguments)

        search = AppService.search
        monkeypatch.setattr(AppService, "search", search_slowly)
        images = captioned_images.images
        running = serve(fast_aligner, images[:5], port=None, block=False, verbose=0)
        with contextlib.closing(running):
            request = self.open_page(running.url)
            options = (Path(images[0]), "cat, tuba", "simple", 0)
            search_job = request("search", "a cat", None, 3)
            assert has_begun.wait(60)
            request("correct", *options, "tuba").result()
            may_end.set()
            search_job.result()
            assert "Labelled images used: 1." in request("classify", *options).result()[1]

    def test_deleted_data_are_reported(self, fast_aligner, captioned_images):
        """Requests were answered as if the visitor had never corrected a prediction."""
        images, limits = captioned_images.images, Limits(sessions=1)
        running = serve(fast_aligner, images[:5], port=None, block=False, verbose=0, limits=limits)
        with contextlib.closing(running):
            first, second = (self.open_page(running.url) for _ in range(2))
            options = (Path(images[0]), "cat, tuba", "simple", 0)
            first("classify", *options).result()
            first("correct", *options, "tuba").result()
            for _ in range(2):  # visitors without data, who deleted those of the first
                self.open_page(running.url)("classify", *options).result()
            assert "Labelled images used: 1." in first("classify", *options).result()[1]
            second("correct", *options, "tuba").result()  # deletes the data of the first visitor
            for name, inputs in {"classify": options, "search": ("a cat", None, 3)}.items():
                with pytest.raises(Exception, match=r"were deleted, .* Reload the page"):
                    first(name, *inputs).result()
            assert "Labelled images used: 1." in second("classify", *options).result()[1]
