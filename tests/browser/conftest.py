"""One Chromium for all tests of the page, used without blocking the event loop."""

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
    """The status page in a browser."""

    def __init__(self, browser: Chromium) -> None:
        self.browser = browser

    async def open(self, port: int, path: str = "/status") -> None:
        """Open the page, and wait until it shows a status."""
        await asyncio.to_thread(self.browser.open, f"http://127.0.0.1:{port}{path}")
        await self.until("return !document.querySelector('main').hidden")

    async def run(self, script: str, *arguments: object):
        return await asyncio.to_thread(self.browser.run, script, *arguments)

    async def until(self, script: str, *arguments: object, timeout: float = 20.0):
        """Wait until a script returns a true value, and return it."""
        try:
            async with asyncio.timeout(timeout):
                while not (found := await self.run(script, *arguments)):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)  # a browser can only be polled
        except TimeoutError:
            pytest.fail(f"never true: {script}\n{await self.text('body')}")
        return found

    async def text(self, selector: str) -> str:
        """Return the visible text of an element."""
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

    async def until_messages(self, count: int = 1) -> None:
        """Wait until `count` further messages were shown."""
        await self.run(
            "window.messages = 0;"
            "source.addEventListener('status', () => { window.messages += 1; });"
        )
        await self.until("return window.messages >= arguments[0]", count)

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
    """Return a page that is not open yet; the browser must log no error."""
    made = Page(_chromium)
    await made.look()
    yield made
    complaints = await asyncio.to_thread(_chromium.complaints)
    await asyncio.to_thread(_chromium.open, "about:blank")
    # Some tests are about a server that does not answer.
    assert [each for each in complaints if "/events" not in each] == []
