"""Keeps the screen up to date while something goes on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from resilient_io.demo.screen import Line, Screen

_REDRAW: Final = 0.125
_TELL: Final = 2.0


@contextlib.asynccontextmanager
async def shown(
    screen: Screen, frame: Callable[[], list[Line]], status: Callable[[], Line]
) -> AsyncIterator[None]:
    """Redraw a terminal in place; elsewhere say every two seconds how it goes.

    Args:
        screen: Where to show it.
        frame: Draws how it goes at this moment; what it drew last stays.
        status: Says the same in one line.
    """

    async def redraw() -> None:
        while True:
            screen.draw(frame())
            await asyncio.sleep(_REDRAW)

    async def tell() -> None:
        while True:
            await asyncio.sleep(_TELL)
            screen.say(status())

    task = asyncio.create_task(redraw() if screen.live else tell(), name="demo screen")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    if screen.live:
        screen.say(*frame())
