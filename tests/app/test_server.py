"""The web server: request limits, error messages and concurrent requests."""

import contextlib
import gc
import inspect
import io
import json
import os
import random
import resource
import signal
import socket
import stat
import tempfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

httpx = pytest.importorskip("httpx")

from benchmarks.reliability import service  # noqa: E402
from sklearn_ape.app import Limits, _server, serve  # noqa: E402
from sklearn_ape.app._server import _handle_signals  # noqa: E402
from sklearn_ape.app._uploads import PageFolders  # noqa: E402
from tests.app.visitor import API, Visitor  # noqa: E402

AT_ONCE = 50


@pytest.fixture(scope="module")
def page(fast_aligner, captioned_images):
    limits = Limits(upload_bytes=2**20, request_bytes=2**16, waiting=20, labels=50)
    running = serve(
        fast_aligner,
        captioned_images.images[:20],
        port=None,
        block=False,
        verbose=0,
        limits=limits,
    )
    yield SimpleNamespace(url=running.url, limits=limits)
    running.close()


@pytest.fixture
def visitor(page):
    return Visitor(page.url)


@pytest.fixture
def temporary_folder(tmp_path, monkeypatch):
    """Make the test start its pages as in a process without other pages."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(_server, "page_folders", PageFolders())
    monkeypatch.setenv("GRADIO_TEMP_DIR", "former")
    return tmp_path


@pytest.mark.parametrize("send", dict.fromkeys(service._REQUESTS))
def test_requests_of_the_benchmark_have_the_expected_outcome(send, visitor, captioned_images):
    """`python -m benchmarks.reliability service` sends them at random."""
    images = [Path(path) for path in captioned_images.images[:3]]
    is_valid = send in (service._send_valid_image, service._send_query)
    assert send(visitor, random.Random(0), images) == ("right" if is_valid else "error")


class TestResults:
    def test_classify_returns_probabilities(self, visitor, captioned_images):
        image = visitor.image(captioned_images.images[0])
        kind, (label, verdict) = visitor.answer("classify", image, "cat, dog", "simple", 0)
        assert kind == "complete"
        assert {entry["label"] for entry in label["confidences"]} == {"cat", "dog"}
        assert "among 2 labels" in verdict

    def test_search_returns_copies_of_images(self, visitor, captioned_images):
        kind, (session, gallery) = visitor.answer("search", "a cat", None, 5)
        assert kind == "complete"
        assert session is None  # the session is stored on the server
        assert len(gallery) == 5
        assert os.path.dirname(captioned_images.images[0]) not in json.dumps(gallery)
        url = gallery[0]["image"]["url"]
        assert visitor.http.get(url).headers["content-type"] == "image/webp"


class TestErrors:
    def test_invalid_labels_are_explained(self, visitor, captioned_images):
        image = visitor.image(captioned_images.images[0])
        names = ",".join(map(str, range(60)))
        kind, error = visitor.answer("classify", image, names, "simple", 0)
        assert kind == "error"
        assert "60 labels; the limit is 50" in json.dumps(error)

    def test_file_that_is_not_an_image_is_explained(self, visitor):
        (place,) = visitor.upload(b"hello, I am text").json()
        image = {"path": place, "meta": {"_type": "gradio.FileData"}}
        kind, error = visitor.answer("classify", image, "cat, dog", "simple", 0)
        assert kind == "error"
        assert "a text file, not an image" in json.dumps(error)
        assert "/" not in json.dumps(error).replace("\\/", "")

    def test_file_that_is_not_a_zip_is_explained(self, visitor):
        (place,) = visitor.upload(b"PK\x03\x04 not really", "set.zip").json()
        file = {"path": place, "meta": {"_type": "gradio.FileData"}}
        kind, error = visitor.answer("align", file, "kernel", False)
        assert kind == "error"
        assert "not a zip" in json.dumps(error)


class TestLimits:
    def test_too_large_upload_is_413(self, visitor, page):
        response = visitor.upload(bytes(page.limits.upload_bytes + 2**17))
        assert response.status_code == 413
        assert "larger than 1 MiB" in response.json()["detail"]

    def test_upload_without_length_is_411(self, visitor):
        def endless():
            yield b"--x\r\nContent-Disposition: form-data; name=files; filename=a\r\n\r\n"
            for _ in range(100):
                yield bytes(2**16)

        response = visitor.http.post(
            f"{API}/upload",
            content=endless(),
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
        assert response.status_code == 411
        assert "length" in response.json()["detail"]

    def test_too_large_request_is_413(self, visitor):
        response = visitor.call("classify", None, "x" * 2**17, "simple", 0)
        assert response.status_code == 413
        assert "larger than 64 KiB" in response.json()["detail"]

    @pytest.mark.parametrize(
        "path", ["http://127.0.0.1:1/x.png", "https://example.com/x.png", "FILE:///etc/passwd"]
    )
    def test_url_is_not_fetched(self, visitor, path):
        image = {"path": path, "meta": {"_type": "gradio.FileData"}}
        response = visitor.call("classify", image, "cat, dog", "simple", 0)
        assert response.status_code == 400
        assert "URL" in response.json()["detail"]

    @pytest.mark.parametrize(
        "more", [{"meta": {"_type": "gradio.FileData"}}, {"meta": {"_type": "file"}}, {}]
    )
    def test_server_files_are_not_accessible(self, more, visitor, captioned_images):
        for path in ("/etc/passwd", captioned_images.images[0], __file__):
            image = {"path": path, **more}
            kind, error = visitor.answer("classify", image, "cat, dog", "simple", 0)
            assert kind == "error"
            assert "starts with" not in json.dumps(error)  # nothing of the content
            assert visitor.answer("search", "", image, 3)[0] == "error"
            assert visitor.http.get(f"{API}/file={path}").status_code in (403, 404)

    def test_invalid_request_is_4xx(self, visitor):
        for body in (b"", b"{", b"[]", b'{"data": 1}', b"[" * 60_000):
            response = visitor.http.post(
                f"{API}/call/classify", content=body, headers={"content-type": "application/json"}
            )
            assert 400 <= response.status_code < 500

    def test_other_host_name_is_rejected(self, visitor):
        assert visitor.http.get("/", headers={"host": "evil.example"}).status_code == 400

    @pytest.mark.parametrize("path", ["", "/x", "x", "/..", f"/../{'x' * 300}", "/../../.."])
    def test_path_that_is_not_an_uploaded_file_is_400(self, visitor, captioned_images, path):
        """Gradio would fail to delete a folder, and would not delete any upload afterwards."""
        image = visitor.image(captioned_images.images[0])
        place = f"{image['path']}{path}"
        outcome = visitor.answer("classify", image | {"path": place}, "cat, dog", "simple", 0)
        if path:
            assert outcome[:2] == ("refused", 400)
            assert "Upload it again." in outcome[2]
        else:
            assert outcome[0] == "complete"

    @pytest.mark.parametrize(
        "path", ["proxy=http://x/", "component_server", "monitoring", "deep_link?session_hash=x"]
    )
    def test_unused_gradio_functions_are_closed(self, visitor, path):
        assert visitor.http.get(f"{API}/{path}").status_code == 404

    @pytest.mark.parametrize("name", ["stream.png", "mcp.png"])
    def test_images_named_like_a_function_are_shown(self, visitor, captioned_images, name):
        content = Path(captioned_images.images[0]).read_bytes()
        (place,) = visitor.upload(content, name).json()
        assert visitor.http.get(f"{API}/file={place}").content == content

    def test_page_loads_nothing_from_other_servers(self, page, visitor):
        html = visitor.http.get("/").text.replace(f'"{page.url}', '"/')
        for tag in ("<script", "<link"):
            for part in html.split(tag)[1:]:
                opening = part.split(">", 1)[0]
                assert "://" not in opening or "gradio.app" in opening, opening
        assert "googleapis" not in html + visitor.http.get("/theme.css").text

    def test_browser_stores_no_history(self, visitor):
        from gradio import Blocks

        if "run_history" not in inspect.signature(Blocks.launch).parameters:
            pytest.skip("Gradio has no history before 6.24")
        assert '"run_history":false' in visitor.http.get("/").text


class TestConcurrentRequests:
    def test_concurrent_requests_get_their_own_results(self, page, captioned_images):
        visitor = Visitor(page.url)
        image = visitor.image(captioned_images.images[0])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def one(number):
            mine = Visitor(page.url)
            if number % 2:
                return mine.answer("classify", image, f"cat, dog, thing {number}", "none", 0)
            return mine.answer("search", f"thing {number}", None, 3)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(one, range(2 * AT_ONCE)))
        kinds = [answer[0] for answer in answers]
        assert set(kinds) <= {"complete", "refused"}
        assert kinds.count("complete") >= page.limits.waiting
        for answer in answers:
            if answer[0] == "refused":
                assert answer[1] == 429
                assert "Try again" in answer[2]
        # Each result belongs to its own request.
        for number in range(1, 2 * AT_ONCE, 2):
            if kinds[number] == "complete":
                labels = {entry["label"] for entry in answers[number][1][0]["confidences"]}
                assert labels == {"cat", "dog", f"thing {number}"}
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 300 * 1024  # KiB

    def test_server_responds_after_full_queue(self, visitor):
        assert visitor.answer("search", "a cat", None, 3)[0] == "complete"


class TestServe:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_signal_interrupts(self, number):
        before = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt), _handle_signals(signal.default_int_handler):
            signal.raise_signal(number)
        assert signal.getsignal(number) is before

    def test_ignored_signal_is_ignored(self):
        """As by nohup."""
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with _handle_signals(signal.default_int_handler):
                signal.raise_signal(signal.SIGHUP)
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_second_signal_does_not_interrupt_the_deletion(
        self, fast_aligner, captioned_images, temporary_folder, monkeypatch
    ):
        """A closed terminal sends SIGHUP several times, while uploads are deleted."""

        class Interrupted:
            def wait(self):
                signal.raise_signal(signal.SIGHUP)

        @contextlib.contextmanager
        def interrupt(service):
            yield
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(_server, "_warm_up", interrupt)
        patched = SimpleNamespace(**{**vars(threading), "Event": Interrupted})
        monkeypatch.setattr(_server, "threading", patched)
        received = []  # by the handlers before, which end the process by default
        before = {
            number: signal.signal(number, lambda number, _: received.append(number))
            for number in (signal.SIGTERM, signal.SIGHUP)
        }
        try:
            serve(fast_aligner, captioned_images.images[:5], port=None, verbose=0)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        assert received == os.listdir(temporary_folder) == []

    def test_signal_during_the_start_leaves_no_folder(
        self, fast_aligner, captioned_images, temporary_folder, monkeypatch
    ):
        def build_page(*args):
            assert os.listdir(temporary_folder)
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("The start was not interrupted.")

        monkeypatch.setattr("sklearn_ape.app._ui.build_page", build_page)
        before = signal.signal(signal.SIGTERM, lambda *_: None)  # ends the process by default
        with pytest.raises(KeyboardInterrupt):
            serve(fast_aligner, captioned_images.images[:5], port=None, verbose=0)
        signal.signal(signal.SIGTERM, before)
        assert os.listdir(temporary_folder) == []

    def test_uploads_are_deleted_at_stop(
        self, fast_aligner, captioned_images, temporary_folder, monkeypatch
    ):
        """The folder of an earlier page of the process is not created again."""
        monkeypatch.setattr("gradio.routes.DEFAULT_TEMP_DIR", str(temporary_folder / "earlier"))
        running = serve(
            fast_aligner, captioned_images.images[:5], port=None, block=False, verbose=0
        )
        (place,) = Visitor(running.url).upload(b"something").json()
        assert Path(place).is_relative_to(temporary_folder)
        running.close()
        assert os.listdir(temporary_folder) == []
        with pytest.raises(httpx.ConnectError):
            httpx.get(running.url)

    @pytest.mark.exhaustive
    def test_full_upload_storage_is_429(self, fast_aligner, captioned_images):
        limits = Limits(stored_bytes=2**20)
        running = serve(
            fast_aligner,
            captioned_images.images[:5],
            port=None,
            block=False,
            verbose=0,
            limits=limits,
        )
        visitor = Visitor(running.url)
        answers = [visitor.upload(os.urandom(2**18)) for _ in range(6)]
        running.close()
        statuses = [answer.status_code for answer in answers]
        assert statuses[0] == 200
        assert statuses[-1] == 429
        assert "Try again" in answers[-1].json()["detail"]

    def test_public_host_warns(self, fast_aligner, captioned_images, capsys):
        running = serve(
            fast_aligner, captioned_images.images[:5], "0.0.0.0", None, block=False, verbose=0
        )
        running.close()
        assert "Everyone who can reach it" in capsys.readouterr().err

    def test_port_in_use_raises(self, page, fast_aligner, captioned_images):
        taken = int(page.url.rstrip("/").rsplit(":", 1)[1])
        with pytest.raises(OSError, match=str(taken)):
            serve(fast_aligner, captioned_images.images[:5], port=taken, block=False, verbose=0)

    @pytest.mark.exhaustive
    def test_host_of_another_computer_raises_at_once(self, fast_aligner, captioned_images):
        """Gradio would try a hundred ports, five seconds each."""
        with pytest.raises(OSError, match="Cannot assign requested address"):
            serve(fast_aligner, captioned_images.images[:5], "192.0.2.1", None, block=False)

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("host", ["::1", "[::1]"])
    def test_ipv6_host_has_a_valid_address(self, fast_aligner, captioned_images, host, capsys):
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("this computer has no IPv6")
        images = captioned_images.images[:5]
        running = serve(fast_aligner, images, host, None, block=False, verbose=0)
        assert running.url.startswith("http://[::1]:")
        assert httpx.get(running.url).status_code == 200
        running.close()
        assert "Warning" not in capsys.readouterr().err


class TestSeveralPages:
    @pytest.fixture
    def start(self, fast_aligner, captioned_images, temporary_folder):
        """Return a function that starts a page."""
        with contextlib.ExitStack() as stack:

            def start(aligner=fast_aligner):
                images = captioned_images.images[:5]
                running = serve(aligner, images, port=None, block=False, verbose=0)
                stack.callback(running.close)
                return running

            yield start

    @pytest.mark.sampled(2)
    @pytest.mark.parametrize("first", [0, 1])
    def test_pages_of_a_process_are_independent(
        self, start, first, temporary_folder, captioned_images
    ):
        """The same images are uploaded and shown, whose files have the same names in Gradio."""
        pages = [start(), start()]
        visitors = [Visitor(page.url) for page in pages]
        images = [visitor.image(captioned_images.images[0]) for visitor in visitors]
        galleries = []
        for visitor, image in zip(visitors, images, strict=True):
            assert visitor.answer("classify", image, "cat, dog", "simple", 0)[0] == "complete"
            galleries.append(visitor.answer("search", "a cat", None, 5)[1][1])
        (shared,) = temporary_folder.iterdir()
        assert stat.S_IMODE(shared.stat().st_mode) == 0o700
        # A visitor cannot read the uploads to the other page.
        other = f"{API}/file={images[1 - first]['path']}"
        assert visitors[1 - first].http.get(other).status_code == 200
        assert visitors[first].http.get(other).status_code == 403

        pages[first].close()
        paths = [item["image"]["path"] for item in galleries[first]] + [images[first]["path"]]
        assert not any(map(os.path.exists, paths))
        visitor, image = visitors[1 - first], images[1 - first]
        assert visitor.answer("classify", image, "cat, dog", "simple", 0)[0] == "complete"
        for item in galleries[1 - first]:
            assert visitor.http.get(item["image"]["url"]).status_code == 200
        image = visitor.image(captioned_images.images[1])
        assert visitor.answer("classify", image, "cat, dog", "simple", 0)[0] == "complete"

        pages[1 - first].close()
        assert os.listdir(temporary_folder) == []
        assert os.environ["GRADIO_TEMP_DIR"] == "former"

    @pytest.mark.exhaustive
    def test_visitors_get_initial_images_and_downloads(self, start, captioned_images):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            for row in range(20):
                file.write(captioned_images.images[row], f"{row}.png")
                file.writestr(f"{row}.txt", captioned_images.captions[row])
        running = start(None)
        start()
        visitor = Visitor(running.url)
        components = visitor.http.get("config").json()["components"]
        galleries = [item["props"]["value"] for item in components if item["type"] == "gallery"]
        assert len(galleries) == 2
        for item in (*galleries[0], *galleries[1]):
            assert visitor.http.get(item["image"]["url"]).status_code == 200
        (place,) = visitor.upload(archive.getvalue(), "set.zip").json()
        file = {"path": place, "meta": {"_type": "gradio.FileData"}}
        kind, values = visitor.answer("align", file, "cca", False)
        assert kind == "complete"
        response = visitor.http.get(values[3]["value"]["url"])
        assert zipfile.is_zipfile(io.BytesIO(response.content))
        path = values[3]["value"]["path"]
        running.close()
        assert not os.path.exists(path)

    @pytest.mark.exhaustive
    def test_discarded_page_keeps_its_private_folder(
        self, fast_aligner, captioned_images, temporary_folder, monkeypatch
    ):
        """As in a notebook, if ``page = serve(block=False)`` is run again."""
        from sklearn_ape.app import _ui

        pages = []

        def build_page(*args):
            pages.append(original(*args))
            return pages[0]

        original = _ui.build_page
        monkeypatch.setattr(_ui, "build_page", build_page)
        images = captioned_images.images[:5]
        url = serve(fast_aligner, images, port=None, block=False, verbose=0).url
        gc.collect()
        visitor = Visitor(url)
        image = visitor.image(images[0])
        kind = visitor.answer("classify", image, "cat, dog", "simple", 0)[0]
        pages[0].close(verbose=False)
        assert kind == "complete"
        (shared,) = temporary_folder.iterdir()
        assert stat.S_IMODE(shared.stat().st_mode) == 0o700
