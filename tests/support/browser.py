"""Debian's chromium, driven by selenium, without a screen: what people see of our pages.

Its profile is a new folder, and it asks nobody on the network but the page's own server.
"""

import base64
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from tests.support.missing import missing

Seen = TypeVar("Seen")

PATIENCE_SECONDS = 60.0  # a hang guard, never part of what is asserted
LAPTOP = (1366, 768)
PHONE = (390, 844)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def require_browser() -> tuple[str, str]:
    """Paths of chromium and its driver.  Skips where they are missing; in CI that is a failure."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        import selenium  # noqa: F401  # only whether it is there
    except ImportError:
        chromium = None
    if chromium is None or chromedriver is None:
        missing("no browser here: apt-get install chromium chromium-driver, and make install")
    return chromium, chromedriver


class Window:
    """A window of chromium.  Its calls block: a test makes them in a thread while the server runs in trio."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.width = 0

    def resize(self, size: tuple[int, int]) -> None:
        """Make it so large, in the pixels of a style sheet."""
        # A window may not be as narrow as a phone; the screen that is emulated may.
        self.width, height = size
        metrics = {"width": self.width, "height": height, "deviceScaleFactor": 1, "mobile": self.width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def go(self, url: str) -> None:
        self.driver.get(url)

    def text(self) -> str:
        """What stands on the page, without markup."""
        return str(self.driver.find_element("tag name", "body").text)

    def texts(self, selector: str) -> list[str]:
        """What each element shows that the selector means."""
        return [element.text for element in self.driver.find_elements("css selector", selector)]

    def click(self, words: str) -> None:
        """On the link that begins with these words."""
        self._press(self.driver.find_element("partial link text", words))

    def press(self, selector: str) -> None:
        """What the selector means, and leads to another page."""
        self._press(self.driver.find_element("css selector", selector))

    def fill(self, form: str, **values: str) -> None:
        """Write into the fields of the form that the selector means, and send it."""
        element = self.driver.find_element("css selector", form)
        for name, value in values.items():
            for field in element.find_elements("css selector", f'[name="{name}"]'):
                if field.tag_name == "select":
                    field.find_element("css selector", f'option[value="{value}"]').click()
                else:
                    field.clear()
                    field.send_keys(value)
        self._press(element.find_element("css selector", "button"))

    def _press(self, element: Any) -> None:
        """Press what leads to another page, and wait for that."""
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.support.wait import WebDriverWait

        self.driver.execute_script("window.isLeft = true")
        element.click()
        # Between two pages there is no document, and to ask for one is an error.
        wait = WebDriverWait(self.driver, PATIENCE_SECONDS, ignored_exceptions=[WebDriverException])
        wait.until(lambda driver: driver.execute_script("return !window.isLeft && document.readyState === 'complete'"))

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window: a reader would have to push it about."""
        # A phone shows what is too wide by making its window larger, so that says nothing.
        return int(self.driver.execute_script("return document.documentElement.scrollWidth")) - self.width

    def complaints(self) -> list[str]:
        """What the browser refused or missed: scripts, styles, pictures that the policy forbids."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def shoot(self, name: str) -> None:
        """A picture of the whole page, into the folder that SHOTS names, if it does."""
        folder = os.environ.get("SHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            height = self.driver.execute_script("return document.documentElement.scrollHeight")
            clip = {"x": 0, "y": 0, "width": self.width, "height": min(height, 4000), "scale": 1}
            shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def open_window(size: tuple[int, int] = LAPTOP, *, flags: Sequence[str] = ()) -> Iterator[Window]:
    """A window of this size, in the pixels of a style sheet; more flags for chromium."""
    chromium, chromedriver = require_browser()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(prefix="chromium-") as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, *flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, Service(chromedriver))
        try:
            window = Window(driver)
            window.resize(size)
            yield window
        finally:
            driver.quit()


async def look(use: Callable[[Window], Seen], size: tuple[int, int] = LAPTOP, *flags: str) -> Seen:
    """What somebody finds who sits before a window of this size, while the server goes on."""

    def sit() -> Seen:
        with open_window(size, flags=flags) as window:
            return use(window)

    return await trio.to_thread.run_sync(sit)
