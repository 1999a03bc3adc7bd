"""A Chromium for all tests of the page, and a view of it that does not block the event loop."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from resilient_io.testing.pytest_plugin import REQUIRE_VARIABLE
from scripts.chromium import PROGRAMS, Chromium, NoBrowserError, find
from tests.live.conftest import slack  # noqa: F401 (a fixture)

DESKTOP = 1200


class Page:
    """The status page as somebody sees it."""

    def __init__(self, browser: Chromium) -> None:
        self.browser = browser

    async def open(self, port: int, path: str = "/status") -> None:
        """Open it, and wait until it shows something."""
        await asyncio.to_thread(self.browser.open, f"http://127.0.0.1:{port}{path}")
        await self.until("return !document.querySelector('main').hidden")

    async def run(self, script: str, *arguments: object):
        return await asyncio.to_thread(self.browser.run, script, *arguments)

    async def until(self, script: str, *arguments: object, timeout: float = 20.0):
        """Wait until a script gives something that is true, and return it."""
        try:
            async with asyncio.timeout(timeout):
                while not (found := await self.run(script, *arguments)):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)  # a browser can only be asked
        except TimeoutError:
            pytest.fail(f"never true: {script}\n{await self.text('body')}")
        return found

    async def text(self, selector: str) -> str:
        """Give what can be read there."""
        return await self.run("return document.querySelector(arguments[0]).innerText", selector)

    async def texts(self, selector: str) -> list[str]:
        return await self.run(
            "return [...document.querySelectorAll(arguments[0])].map((each) => each.innerText)",
            selector,
        )

    async def until_reads(self, selector: str, text: str, timeout: float = 20.0) -> None:
        await self.until(
            "return document.querySelector(arguments[0])?.textContent === arguments[1]",
            selector,
            text,
            timeout=timeout,
        )

    async def until_news(self, count: int = 1) -> None:
        """Wait until so many messages more were shown."""
        await self.run(
            "window.news = 0;source.addEventListener('status', () => { window.news += 1; });"
        )
        await self.until("return window.news >= arguments[0]", count)

    async def look(self, width: int = DESKTOP, *, dark: bool = False) -> None:
        await asyncio.to_thread(lambda: self.browser.look(width=width, dark=dark))


@pytest.fixture(scope="session")
def _chromium() -> Iterator[Chromium]:
    try:
        for program in PROGRAMS:
            find(program)
    except NoBrowserError as error:
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(f"{REQUIRE_VARIABLE}=1, but {error}", pytrace=False)
        pytest.skip(f"NEEDS CHROMIUM: {error}")
    with Chromium() as browser:
        yield browser


@pytest_asyncio.fixture
async def page(_chromium: Chromium) -> AsyncIterator[Page]:
    """Give a page that is not opened yet; the browser must have nothing to complain about."""
    seen = Page(_chromium)
    await seen.look()
    yield seen
    complaints = await asyncio.to_thread(_chromium.complaints)
    await asyncio.to_thread(_chromium.open, "about:blank")
    # That nobody answers is what some tests are about.
    assert [each for each in complaints if "/events" not in each] == []
