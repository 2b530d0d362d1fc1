"""The page in a browser, with the starter model."""

import io
import json
import shutil
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

selenium = pytest.importorskip("selenium")

from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import WebDriverException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from sklearn_ape.app import serve  # noqa: E402
from sklearn_ape.app._session import AppService, Classification  # noqa: E402

CHROMIUM, DRIVER = (
    shutil.which(name) or f"/usr/bin/{name}" for name in ("chromium", "chromedriver")
)
pytestmark = pytest.mark.skipif(
    not (Path(CHROMIUM).is_file() and Path(DRIVER).is_file()),
    reason="needs a browser: apt install chromium chromium-driver",
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--window-size=1280,1000"),
)
PATIENCE = 120  # seconds, for a busy machine
N_ALIGNED = 60


@pytest.fixture(scope="module")
def page(captioned_images):
    """Serve the page with 30 images."""
    running = serve(None, captioned_images.images[:30], port=None, block=False, verbose=0)
    yield SimpleNamespace(url=running.url)
    running.close()


@pytest.fixture
def browser(page, tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(tmp_path / "downloads")}
    )
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Browser(driver, page.url)
    finally:
        driver.quit()


class Browser:
    """User actions on the page."""

    def __init__(self, driver, url):
        self.driver = driver
        self.url = url
        driver.get(url)
        self.wait(lambda: self.all("#classify-button"))

    def wait(self, condition):
        return WebDriverWait(self.driver, PATIENCE, 0.2).until(lambda _: condition())

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, elem_id):
        return self.driver.find_element(By.ID, elem_id).text

    def click(self, selector):
        """Click an element that may not be on the page yet."""

        def clicked():
            try:
                self.all(selector)[0].click()
            except (IndexError, WebDriverException):
                return False
            return True

        self.wait(clicked)

    def narrow(self):
        """Use the size of a phone."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 380, "height": 900, "deviceScaleFactor": 1, "mobile": True},
        )

    def tab(self, name):
        next(tab for tab in self.all("button[role=tab]") if tab.text == name).click()

    def upload(self, elem_id, path):
        """Upload a file and wait until the upload is complete."""
        self.all(f"#{elem_id} input[type=file]")[0].send_keys(str(path))
        # The address of the stored file: a previous image remains visible during the upload.
        link = f"/{quote(Path(path).name)}"
        self.wait(lambda: self.all(f'#{elem_id} [href$="{link}"], #{elem_id} img[src$="{link}"]'))

    def write(self, elem_id, text):
        field = self.all(f"#{elem_id} textarea, #{elem_id} input")[0]
        field.clear()
        field.send_keys(text)

    def choose(self, elem_id, text):
        """Choose an entry of a dropdown whose entries may not be loaded yet."""

        def chosen():
            try:
                self.all(f"#{elem_id} input")[0].click()
                entries = self.all(f"#{elem_id} [role=option], ul.options [role=option]")
                next(entry for entry in entries if entry.text.strip().endswith(text)).click()
            except (IndexError, StopIteration, WebDriverException):
                return False
            return True

        self.wait(chosen)

    def requests(self):
        """Return the URLs that the page requested."""
        log = self.driver.get_log("performance")
        messages = [json.loads(entry["message"])["message"] for entry in log]
        return [
            m["params"]["request"]["url"]
            for m in messages
            if m["method"] == "Network.requestWillBeSent"
            and m["params"].get("documentURL", "").startswith(self.url)
        ]


@pytest.fixture(scope="module")
def zip_of_images(captioned_images, tmp_path_factory):
    """Return a zip file of captioned images with a table."""
    path = tmp_path_factory.mktemp("zip") / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        rows = range(100, 100 + N_ALIGNED)
        for row in rows:
            file.write(captioned_images.images[row], f"set/{row}.png")
        lines = io.StringIO("file_name,caption\n")
        lines.seek(0, io.SEEK_END)
        lines.writelines(f'set/{row}.png,"{captioned_images.captions[row]}"\n' for row in rows)
        file.writestr("captions.csv", lines.getvalue())
    return path


class TestFirstVisit:
    def test_classify_search_and_align(self, browser, captioned_images, zip_of_images, tmp_path):
        # Click an example.
        browser.click("#classify-examples img")
        browser.wait(lambda: "among 8 labels" in browser.text("classify-verdict"))

        # Upload an image and enter labels.
        name = captioned_images.captions[0]
        browser.write("classify-names", f"{name}, submarine, tuba")
        browser.upload("classify-image", captioned_images.images[0])
        browser.click("#classify-button")
        # During the request, the page shows the elapsed time above the previous result.
        browser.wait(lambda: browser.text("classify-verdict").startswith(f"{name}, "))
        assert "among 3 labels" in browser.text("classify-verdict")
        assert "submarine" in browser.text("classify-answer")

        # The map is computed when its section is opened. The next answer removes it.
        def map_is_shown():
            # The upload and the click give an answer each: the later one closes the section.
            if not browser.all("#classify-where button.open"):
                browser.click("#classify-where button")
            images = browser.all("#classify-map img")
            return images and images[0].size["width"] > 200

        browser.wait(map_is_shown)
        (drawn,) = browser.all("#classify-map img")
        assert drawn.get_attribute("alt").startswith(f"Map of the image for {name}, highest at")

        # Correct the label: the page learns it.
        browser.choose("classify-correct-label", "tuba")
        browser.click("#classify-correct")
        browser.wait(lambda: "Labelled images used: 1." in browser.text("classify-verdict"))
        assert browser.text("classify-verdict").startswith("tuba, ")
        browser.wait(lambda: not browser.all("#classify-map img"))
        browser.click("#classify-undo")
        browser.wait(lambda: browser.text("classify-verdict").startswith(f"{name}, "))

        browser.tab("Search")
        browser.click("#search-examples button")
        browser.wait(lambda: browser.all("#search-gallery .caption-label")[0].text.endswith(")"))
        browser.write("search-words", captioned_images.captions[3])
        browser.click("#search-button")
        browser.wait(lambda: len(browser.all("#search-gallery img")) >= 12)
        # Screen readers read the captions.
        button, caption = (
            browser.all(f"#search-gallery .{name}")[0]
            for name in ("thumbnail-item", "caption-label")
        )
        browser.wait(lambda: button.get_attribute("aria-label") == caption.text)

        # A query image replaces the text.
        accordions = browser.all("button.label-wrap")
        next(b for b in accordions if b.text.startswith("Search by an image")).click()
        browser.wait(lambda: browser.all("#search-image input[type=file]"))
        browser.upload("search-image", captioned_images.images[5])
        query = browser.all("#search-words textarea, #search-words input")[0]
        browser.wait(lambda: query.get_attribute("value") == "")

        browser.tab("Align your own")
        browser.upload("align-zip", zip_of_images)
        (method,) = browser.all("#align-method label.selected")
        # White text on it has a contrast of at least 4.5:1.
        assert method.value_of_css_property("background-color") == "rgba(79, 70, 229, 1)"
        # The circle was of the same color, so that only its dot was visible.
        circle = method.find_element(By.TAG_NAME, "input")
        assert circle.value_of_css_property("border-top-color") == "rgba(255, 255, 255, 1)"
        browser.click("#align-head input")  # off, since encoding a thousand class names is slow
        browser.click("#align-button")
        browser.wait(lambda: "Evaluation on" in browser.text("align-result"))
        assert "your aligner" in browser.text("align-result")
        assert "your own aligner (extend)" in browser.text("align-using")
        browser.click("#align-download")
        saved = tmp_path / "downloads" / "aligner.zip"
        browser.wait(saved.is_file)
        with zipfile.ZipFile(saved) as file:
            names = {Path(name).name for name in file.namelist()}
        assert names == {"config.json", "model.safetensors", "README.md"}

        # There are no requests to other servers and no script errors.
        asked = browser.requests()
        assert asked
        elsewhere = [a for a in asked if not a.startswith((browser.url, "data:", "blob:"))]
        assert elsewhere == []
        log = browser.driver.get_log("browser")
        assert [entry["message"] for entry in log if entry["level"] == "SEVERE"] == []

    def test_answer_is_corrected_with_keyboard(self, browser):
        """The focus is always on an element with a visible outline."""

        def press(*keys):
            browser.driver.switch_to.active_element.send_keys(*keys)

        def wait_for_focus(name):
            browser.wait(lambda: browser.driver.switch_to.active_element.accessible_name == name)
            element = browser.driver.switch_to.active_element
            browser.wait(lambda: element.value_of_css_property("outline-style") == "solid")

        def move_to(name):
            while browser.driver.switch_to.active_element.accessible_name != name:
                press(Keys.TAB)
            wait_for_focus(name)

        browser.wait(lambda: len(browser.all("#classify-examples .caption-label")) > 1)
        move_to(browser.all("#classify-examples .caption-label")[1].text)
        press(Keys.ENTER)
        browser.wait(lambda: "among 8 labels" in browser.text("classify-verdict"))
        answer = browser.text("classify-verdict")
        browser.wait(lambda: browser.all("#classify-correct"))
        move_to("This is wrong, it is ...")
        press("guit", Keys.ENTER)
        wait_for_focus("Correct the answer")
        press(Keys.ENTER)
        browser.wait(lambda: "Labelled images used: 1." in browser.text("classify-verdict"))
        assert browser.text("classify-verdict").startswith("guitar, ")
        browser.wait(lambda: browser.all("#classify-undo"))
        press(Keys.TAB)
        wait_for_focus("Undo the last correction")
        press(Keys.ENTER)
        browser.wait(lambda: browser.text("classify-verdict") == answer)
        browser.wait(lambda: not browser.all("#classify-undo"))
        wait_for_focus("Correct the answer")

    def test_slow_result_of_previous_image_is_not_shown(self, browser, monkeypatch):
        requested, finished = [], []

        def classify(service, session, image, *options):
            requested.append(image)
            text = f"image {len(set(requested))}"
            time.sleep(3 if len(requested) == 2 else 0)
            finished.append(image)
            return Classification({"cat": 1.0}, text)

        monkeypatch.setattr(AppService, "classify", classify)
        browser.click("#classify-examples img")
        browser.wait(lambda: browser.text("classify-verdict") == "image 1")
        browser.click("#classify-button")
        browser.wait(lambda: len(requested) == 2)
        browser.all("#classify-examples img")[1].click()
        browser.wait(lambda: len(finished) == 3)
        time.sleep(2)  # until the result has arrived
        browser.wait(lambda: browser.text("classify-verdict") == "image 2")

    def test_result_of_previous_labels_or_options_is_not_shown(self, browser):
        browser.click("#classify-examples img")
        browser.wait(lambda: "among 8 labels" in browser.text("classify-verdict"))
        # Also without typing a letter, for which alone Gradio sends the event "input".
        browser.all("#classify-names textarea")[0].send_keys(Keys.BACKSPACE)
        browser.wait(lambda: "for the changed labels yet" in browser.text("classify-verdict"))
        assert not browser.all("#classify-answer dt")
        browser.click("#classify-button")
        browser.wait(lambda: "among 8 labels" in browser.text("classify-verdict"))
        options = browser.all("button.label-wrap")
        next(b for b in options if b.text.startswith("More options")).click()
        browser.click("input[type=number]")
        browser.all("input[type=number]")[0].send_keys(Keys.CONTROL, "a", Keys.NULL, "1")
        browser.wait(lambda: browser.text("classify-verdict").startswith("Unknown."))
        browser.click("button[aria-label^=Reset]")
        browser.wait(lambda: "among 8 labels" in browser.text("classify-verdict"))

    def test_opened_map_stays_open(self, browser, monkeypatch):
        """A response that was sent before it was opened, and arrives later, closed it."""
        responses = []

        def have_maps(aligner):
            time.sleep(3)
            responses.append(aligner)
            return True

        browser.click("#classify-examples img")
        browser.wait(lambda: browser.all("#classify-where button"))
        monkeypatch.setattr("sklearn_ape.app._ui.may_have_maps", have_maps)
        browser.write("classify-names", "submarine, tuba")
        browser.click("#classify-button")
        browser.wait(lambda: "among 2 labels" in browser.text("classify-verdict"))
        browser.click("#classify-where button")
        browser.wait(lambda: responses)
        browser.wait(lambda: browser.all("#classify-map img"))
        time.sleep(2)  # until the response has arrived
        assert browser.all("#classify-map img")[0].is_displayed()

    def test_results_of_previous_aligner_are_not_shown(self, browser, zip_of_images):
        """Its corrections are gone, too, so that there is nothing to undo."""
        browser.click("#classify-examples img")
        browser.wait(lambda: browser.all("#classify-correct"))
        browser.choose("classify-correct-label", "tiger")
        browser.click("#classify-correct")
        browser.wait(lambda: browser.all("#classify-undo"))
        browser.tab("Search")
        browser.click("#search-examples button")
        browser.wait(lambda: browser.all("#search-gallery .caption-label")[0].text.endswith(")"))
        browser.tab("Align your own")
        browser.upload("align-zip", zip_of_images)
        browser.click("#align-button")
        browser.wait(lambda: "your own aligner" in browser.text("align-using"))
        browser.tab("Classify")
        assert "No result of the current aligner" in browser.text("classify-verdict")
        assert not browser.all("#classify-answer dt")
        browser.wait(lambda: not browser.all("#classify-undo"))
        browser.tab("Search")
        browser.wait(lambda: len(browser.all("#search-gallery .caption-label")) == 12)
        captions = [caption.text for caption in browser.all("#search-gallery .caption-label")]
        assert not any(caption.endswith(")") for caption in captions)  # without scores
        browser.tab("Classify")
        browser.click("#classify-button")
        browser.wait(lambda: "among 8 labels" in browser.text("classify-verdict"))


class TestErrors:
    def test_errors_are_shown_as_messages(self, browser, tmp_path, captioned_images):
        browser.click("#classify-button")
        browser.wait(lambda: "no image yet" in browser.text("classify-verdict"))
        browser.write("classify-names", "cat")
        browser.click("#classify-examples img")
        browser.wait(lambda: "is the only label" in browser.driver.page_source)
        browser.wait(lambda: "No result. The message" in browser.text("classify-verdict"))
        # The next request removes the message.
        browser.write("classify-names", "cat, dog")
        browser.click("#classify-button")
        browser.wait(lambda: "among 2 labels" in browser.text("classify-verdict"))
        assert "is the only label" not in browser.driver.page_source
        browser.tab("Align your own")
        broken = tmp_path / "broken.zip"
        broken.write_bytes(b"this is not a zip")
        browser.upload("align-zip", broken)
        browser.click("#align-button")
        browser.wait(lambda: "not a zip" in browser.driver.page_source)
        assert "Traceback" not in browser.driver.page_source

    def test_next_request_removes_error(self, browser, tmp_path, captioned_images):
        """Also without a click: from the keyboard, or by another image."""
        errors = lambda: browser.all(".toast-body")  # noqa: E731
        empty = tmp_path / "empty.png"
        empty.touch()
        browser.upload("classify-image", empty)
        browser.wait(errors)
        browser.all("#classify-image input[type=file]")[0].send_keys(captioned_images.images[0])
        browser.wait(lambda: "among 8 labels" in browser.text("classify-verdict"))
        browser.wait(lambda: not errors())
        names = browser.all("#classify-names textarea")[0]
        names.clear()
        names.send_keys("cat", Keys.SHIFT, Keys.ENTER)
        browser.wait(errors)
        names.send_keys(", dog", Keys.SHIFT, Keys.ENTER)
        browser.wait(lambda: "among 2 labels" in browser.text("classify-verdict"))
        browser.wait(lambda: not errors())
        browser.tab("Align your own")
        load = next(b for b in browser.all("button") if b.text.startswith("Load a downloaded"))
        load.click()
        (load,) = browser.wait(lambda: [b for b in browser.all("button") if b.text == "Load"])
        for _ in range(2):
            browser.wait(lambda: load.click() or True)
            browser.wait(lambda: [error.text.count("no zip yet") for error in errors()] == [1])

    def test_label_from_right_to_left_does_not_reorder_the_answer(self, browser):
        browser.write("classify-names", "قطة, كلب")
        browser.click("#classify-examples img")
        browser.wait(lambda: "among 2 labels" in browser.text("classify-verdict"))
        (label,) = browser.all("#classify-verdict strong")
        assert label.value_of_css_property("unicode-bidi") == "isolate"

    def test_result_is_visible_on_narrow_screen(self, browser):
        """It was below the visible part of the page."""

        def get_top(elem_id):
            (element,) = browser.all(f"#{elem_id}")
            return browser.driver.execute_script(
                "return arguments[0].getBoundingClientRect().top", element
            )

        browser.narrow()
        assert get_top("classify-verdict") > 900
        browser.click("#classify-examples .thumbnail-item")
        browser.wait(lambda: 0 <= get_top("classify-verdict") < 700)
        browser.wait(lambda: "among 8 labels" in browser.text("classify-verdict"))
        browser.driver.execute_script("window.scrollTo(0, 0)")
        browser.wait(lambda: browser.driver.execute_script("return window.scrollY") == 0)
        browser.tab("Search")
        browser.all("#search-words :is(textarea, input)")[0].send_keys("a red fruit")
        assert get_top("search-gallery") > 900
        browser.all("#search-words :is(textarea, input)")[0].send_keys(Keys.ENTER)
        browser.wait(lambda: 0 <= get_top("search-gallery") < 700)

    def test_page_fits_narrow_screen(self, browser):
        browser.narrow()

        def fits():
            time.sleep(0.5)
            return browser.driver.execute_script(
                "return [...document.querySelectorAll('body *')]"
                ".every(item => item.getBoundingClientRect().right <= 381)"
            )

        assert fits()
        browser.tab("Search")
        browser.write("search-words", "a red fruit")
        browser.click("#search-button")
        browser.wait(lambda: len(browser.all("#search-gallery img")) >= 12)
        assert fits()
        # An enlarged result covers the visible part of the page, with its caption and buttons.
        browser.click("#search-gallery .thumbnail-item")
        browser.wait(lambda: browser.all("#search-gallery .preview"))
        for selector in ("[aria-label=Close]", ".caption"):
            rect = browser.driver.execute_script(
                "return arguments[0].getBoundingClientRect()",
                browser.all(f"#search-gallery .preview {selector}")[0],
            )
            assert 0 <= rect["top"] <= rect["bottom"] <= 900
        browser.click("#search-gallery [aria-label=Close]")
        browser.tab("Align your own")
        assert fits()
