"""serve starts the page with what was given; the page itself is tested with the app."""

import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from sklearn_ape import app


@pytest.fixture
def served(monkeypatch):
    """What `sklearn_ape.app.serve` was called with."""
    calls = []
    monkeypatch.setattr(app, "serve", lambda *a, **k: calls.append((a, k)))
    return calls


class TestServe:
    def test_listens_on_this_computer_alone_by_default(self, run, served):
        run("serve", "--quiet")
        expected = (None, None, "127.0.0.1", 7860, False), {"labels": None, "verbose": 0}
        assert served == [expected]

    def test_hands_on_what_it_was_given(self, run, served, few):
        run("serve", "--images", few, "--labels", "a cat,a dog", "--port", "0", "--open")
        (arguments, options) = served[0]
        assert arguments == (None, few, "127.0.0.1", None, True)
        assert options == {"labels": ["a cat", "a dog"], "verbose": 1}

    def test_no_such_folder(self, run, served):
        assert "no folder 'gone'" in run("serve", "--images", "gone", code=1).stderr
        assert not served

    def test_answers_and_ends_at_ctrl_c(self, few):
        command = [sys.executable, "-u", "-m", "sklearn_ape", "serve", "--port", "0"]
        with subprocess.Popen(
            [*command, "--images", str(few)], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
                with urllib.request.urlopen(url, timeout=60) as page:
                    assert b"sklearn-ape" in page.read()
            finally:
                process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
