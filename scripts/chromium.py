"""A headless Chromium, for the tests of the status page and for its pictures in the docs.

It has a temporary profile, and loads nothing from the network except the page. Selenium's calls
block: run them outside the event loop that serves the page.
"""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any, Self

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAMS = {
    "chromium": ("RESILIENT_IO_CHROMIUM", "chromium", "chromium-browser", "google-chrome"),
    "chromedriver": ("RESILIENT_IO_CHROMEDRIVER", "chromedriver"),
}
"""What is needed: a variable that may name it, then its names on the path."""

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # there is none for root, as in most containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # containers have little of it
    "--force-color-profile=srgb",
    "--hide-scrollbars",
)


class NoBrowserError(Exception):
    """There is no Chromium, or no driver for it, on this machine."""


def find(program: str) -> str:
    variable, *names = PROGRAMS[program]
    for name in (os.environ.get(variable), *names):
        if name and (path := shutil.which(name)):
            return path
    raise NoBrowserError(
        f"no {program} is on the path: run `make servers` (Debian, Ubuntu), "
        f"or set {variable} to one's path"
    )


class Chromium:
    """`with Chromium() as browser:`, then look.

    Args:
        width: Of the window, in CSS pixels.
        dark: Whether the reader prefers dark.
        time_zone: The reader's.
    """

    def __init__(self, *, width: int = 1200, dark: bool = False, time_zone: str = "UTC") -> None:
        self._folder = tempfile.mkdtemp(prefix="resilient-io-chromium-")
        options = webdriver.ChromeOptions()
        options.binary_location = find("chromium")
        for flag in (*FLAGS, f"--user-data-dir={self._folder}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        try:
            self.driver = webdriver.Chrome(options=options, service=Service(find("chromedriver")))
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.driver.set_script_timeout(30)
        self.driver.set_page_load_timeout(30)
        self.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": time_zone})
        self.look(width=width, dark=dark)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self._folder, ignore_errors=True)

    def look(self, *, width: int, dark: bool = False, height: int = 900) -> None:
        """Look with another width, or in the other colours."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        # What moves would be caught in the middle.
        calm = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, calm]})

    def open(self, url: str) -> None:
        self.driver.get(url)

    def run(self, script: str, *arguments: object) -> Any:
        """Run a script's body in the page, and give what it returns."""
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, timeout: float = 20.0) -> None:
        """Wait until a script's body gives something that is true.

        Raises:
            selenium.common.TimeoutException: It never did.
        """
        WebDriverWait(self.driver, timeout, 0.02).until(lambda _: self.run(script))

    def complaints(self) -> Sequence[str]:
        """What the page's console got since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def picture(self, *, most_height: int | None = None) -> bytes:
        """Return the whole page as PNG, or its top."""
        width, height = self.run(
            "const { scrollWidth, scrollHeight } = document.documentElement;"
            "return [scrollWidth, scrollHeight];"
        )
        clip = {"x": 0, "y": 0, "width": width, "scale": 1, "height": height}
        if most_height is not None:
            clip["height"] = min(height, most_height)
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot",
            {"format": "png", "captureBeyondViewport": True, "clip": clip},
        )
        return base64.b64decode(shot["data"])
