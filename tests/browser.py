"""Headless Chromium for tests of pages: the fixture ``browser`` in conftest.py, and helpers.

A test takes the fixture, opens a page (``browser.get(path.as_uri())``) and asserts::

    def test_a_page(browser, tmp_path):
        show(browser, width=390, dark=True)
        browser.get((tmp_path / "page.html").as_uri())
        assert overflow(browser) == []
        assert console(browser) == []
        screenshot(browser, tmp_path / "page.png")
"""

import base64
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Nothing but the page's own requests, and no sandbox, which a container cannot give.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--hide-scrollbars",
)


def missing() -> str:
    """Why there is no browser; '' if there is one."""
    if not _chromium() or not shutil.which("chromedriver"):
        return "chromium or chromedriver is not installed (Debian: chromium-driver)"
    return ""


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Any]:
    """A selenium WebDriver of headless Chromium with a fresh profile; closed at the end."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _chromium()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(60)
        driver.set_script_timeout(60)
        yield driver
    finally:
        driver.quit()


def show(
    driver: Any, *, width: int = 1200, height: int = 900, dark: bool = False, media: str = "screen"
) -> None:
    """Sets the window's size in CSS pixels (a window is at least 500 wide, this is not), scheme.

    ``media="print"`` shows the page as it is printed; A4 without the report's margins is 688 wide.
    """
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})


def console(driver: Any) -> list[str]:
    """What the page has written to the console since the last call, errors of scripts included."""
    return [f"{entry['level']}: {entry['message']}" for entry in driver.get_log("browser")]


def overflow(driver: Any) -> list[str]:
    """The elements that make the page wider than its window; [] if it is not."""
    return driver.execute_script(
        """
        const width = document.documentElement.clientWidth;
        if (document.documentElement.scrollWidth <= width) return [];
        return [...document.querySelectorAll("body *")]
          .filter((element) => element.getBoundingClientRect().right > width + 0.5)
          .map((element) => element.outerHTML.slice(0, 100));
        """
    )


def drop(driver: Any, selector: str, path: Path) -> None:
    """Drops a file on an element, as from the desktop."""
    rectangle = driver.execute_script(
        "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return {x: r.x + r.width / 2, y: r.y + r.height / 2};",
        selector,
    )
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, **rectangle, "data": data}
        driver.execute_cdp_cmd("Input.dispatchDragEvent", event)


def screenshot(driver: Any, path: Path) -> None:
    """Writes a PNG of the whole page, what overflows included."""
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(taken["data"]))


def _chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), "")
