"""Check whether the link to a server loses packets, as the kernel knows it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from resilient_io.link import describe_losses, read_link

from .steps import CheckResult, Checks, Step, note, ok, unknown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilient_io.link import LinkState

REQUESTS: Final = 200  # enough to notice a loss of 2 % almost certainly
_SECONDS: Final = 1.5


async def check_link(checks: Checks, sock: Any, ask: Callable[[], Awaitable[object]]) -> Step:
    """Run the step: `ask` sends many requests; read how many segments had to be sent again."""
    limit = min(checks.half, _SECONDS)

    async def check() -> CheckResult:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await ask()
        return judge_link(read_link(sock))

    return await checks.run("link", check)


def judge_link(link: LinkState | None) -> CheckResult:
    """Return whether the link to the server loses packets."""
    if link is None:
        return unknown("the connection was lost meanwhile")
    if link.retransmitted:
        return note(
            f"this link loses packets: {describe_losses(link)}",
            "Each loss delays calls by 0.2 s or more: check the network between here and the "
            "server (an overloaded host or switch, a bad cable, a limit of the cloud provider).",
            **link.as_dict(),
        )
    segments = "" if link.segments is None else f" of {link.segments} segments"
    return ok(
        f"the round trip takes {link.rtt * 1e3:.2f} ms; none{segments} lost", **link.as_dict()
    )
