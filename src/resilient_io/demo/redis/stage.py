"""The part about Redis, in its order: the server, the speed, both clients, the report."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resilient_io.demo.redis.frame import frame, status_line
from resilient_io.demo.redis.ledger import Ledger
from resilient_io.demo.redis.report import report, speed_line
from resilient_io.demo.redis.run import Run
from resilient_io.demo.redis.script import play
from resilient_io.demo.redis.sides import SIDES
from resilient_io.demo.redis.speed import measure
from resilient_io.demo.redis.workload import Workload
from resilient_io.demo.screen import Line
from resilient_io.demo.showing import shown
from resilient_io.demo.timeline import event_line
from resilient_io.testing import FaultProxy, RedisServer, find_redis

if TYPE_CHECKING:
    from resilient_io.demo.redis.ledger import Audit
    from resilient_io.demo.redis.script import Script
    from resilient_io.demo.redis.sides import Side
    from resilient_io.demo.screen import Screen
    from resilient_io.demo.timeline import Event

_DRAIN: Final = 2.0
_LOOK_AGAIN: Final = 0.01


async def perform(script: Script, screen: Screen) -> bool:
    """Show this part; return whether the ledger of `ResilientRedis` balances.

    Failing or cancelled, it leaves no process and no folder.

    Raises:
        NoServerError: There is no server on this machine.
        ServerDidNotStartError: The server does not start.
    """
    binary = find_redis()
    screen.say(
        Line(f"Server: {binary}"),
        Line("It is started here, behind a proxy that can lose replies. Both clients meet the"),
        Line(
            f"same {len(script.scenes)} faults, one after the other, {script.seconds:.0f} s each."
        ),
    )
    # Written to disk before it is answered: what is acknowledged must be found again.
    async with (
        RedisServer(binary=binary, persist=True) as server,
        FaultProxy(server.port) as proxy,
    ):
        screen.draw([Line(), Line("First, the speed of both without any fault ...")])
        stage = Stage(script, server, proxy, screen)
        speeds = await measure(script, server)
        screen.say(Line(), speed_line(speeds))
        results = [
            await stage.go_through(kind(proxy.port, script.socket_timeout), part)
            for part, kind in enumerate(SIDES, 1)
        ]
        screen.say(*report(results, speeds, screen.blocks))
    return results[-1][1].balanced


@dataclass(frozen=True, slots=True)
class Stage:
    """What both clients meet.

    Attributes:
        script: The faults.
        server: Suffers them.
        proxy: Stands before the server, and loses replies.
        screen: Shows what happens.
    """

    script: Script
    server: RedisServer
    proxy: FaultProxy
    screen: Screen

    async def go_through(self, side: Side, part: int) -> tuple[Run, Audit]:
        """Let one client go through the script, close it, and check its ledger.

        Args:
            side: The client.
            part: 1 for the first, 2 for the second.
        """
        screen = self.screen

        def show(event: Event) -> None:
            if not screen.live:
                screen.say(event_line(event))

        if not screen.live:
            screen.say(Line(), Line(f"{part} of {len(SIDES)}: {side.title}"))
        ledger = Ledger(side.key)
        run = Run(side, ledger, self.script.seconds, show)
        try:
            async with (
                shown(screen, lambda: frame(run, part, screen.blocks), lambda: status_line(run)),
                Workload(run),
            ):
                await play(self.script, run, self.server, self.proxy)
            run.ended()
        finally:
            await side.client.aclose()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                # What is still on its way would change the server behind the reader's back.
                while self.proxy.connections:  # noqa: ASYNC110 - the proxy has no event for it
                    await asyncio.sleep(_LOOK_AGAIN)
        return run, await ledger.audit(self.server)
