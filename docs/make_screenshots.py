"""Take screenshots of the web app and of the report of the demo, for docs/images.

    sklearn-ape demo --output demo_report
    python docs/make_screenshots.py demo_report/index.html

This requires chromium, chromedriver, the stamps of Tux Paint and the packages selenium and gradio.
"""

import io
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from sklearn_ape.app import serve
from sklearn_ape.datasets import load_tuxpaint_stamps

IMAGES = Path(__file__).parent / "images"
LOADED = "return [...document.images].every(image => image.complete)"
PATIENCE = 300  # seconds, because the first search embeds the images


def open_browser() -> webdriver.Chrome:
    """Return a browser without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def save(driver: webdriver.Chrome, name: str) -> None:
    """Save the visible part of the page with 128 colors, which makes small files."""
    time.sleep(1)  # new elements fade in
    image = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    image.quantize(128).save(IMAGES / name, optimize=True)


def write_stamps(folder: str, n_images: int = 110) -> str:
    """Write a zip of captioned stamps, evenly spaced in the collection; return its path."""
    stamps = load_tuxpaint_stamps()
    path = str(Path(folder, "stamps.zip"))
    with zipfile.ZipFile(path, "w") as file:
        for number in range(n_images):
            row = number * len(stamps.images) // n_images
            file.write(stamps.images[row], f"{number}.png")
            file.writestr(f"{number}.txt", stamps.captions[row])
    return path


def main() -> None:
    """Take all screenshots."""
    folder = tempfile.TemporaryDirectory()
    report = Path(sys.argv[1]).resolve().as_uri()
    page = serve(port=None, block=False, verbose=0)
    driver = open_browser()

    def find(selector: str) -> list[Any]:
        return driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(condition: Callable[[], Any]) -> None:
        WebDriverWait(driver, PATIENCE).until(lambda _: condition())

    try:
        driver.set_window_size(1000, 1135)
        driver.get(report)
        save(driver, "demo_report.png")
        driver.set_window_size(1200, 900)
        driver.get(page.url)
        wait(lambda: find("#classify-examples img"))
        find("#classify-examples img")[0].click()
        wait(lambda: find("#classify-answer meter") and find("#classify-correct"))
        save(driver, "page_classify.png")
        next(tab for tab in find("button[role=tab]") if tab.text == "Search").click()
        find("#search-words textarea, #search-words input")[0].send_keys("a red fruit")
        find("#search-button")[0].click()
        wait(lambda: "(" in find("#search-gallery .caption-label")[0].text)
        wait(lambda: driver.execute_script(LOADED))
        save(driver, "page_search.png")
        next(tab for tab in find("button[role=tab]") if tab.text == "Align your own").click()
        find("#align-zip input[type=file]")[0].send_keys(write_stamps(folder.name))
        wait(lambda: find("#align-zip .download"))
        find("#align-button")[0].click()
        wait(lambda: "Evaluation on" in find("#align-result")[0].text)
        save(driver, "page_align.png")
    finally:
        driver.quit()
        page.close()
        folder.cleanup()


if __name__ == "__main__":
    main()
