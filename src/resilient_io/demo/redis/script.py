"""The script of faults, the same for both clients."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resilient_io.demo.redis.scene import Scene

if TYPE_CHECKING:
    from resilient_io.demo.redis.run import Run
    from resilient_io.testing import FaultProxy, RedisServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What both clients go through.

    Attributes:
        scenes: The faults, in order.
        speed_round: Seconds of one round of the measurement without faults.
        socket_timeout: Given to both clients; None leaves both their own defaults.
    """

    scenes: tuple[Scene, ...]
    speed_round: float
    socket_timeout: float | None = None

    @property
    def seconds(self) -> float:
        """How long all scenes take."""
        return sum(scene.seconds for scene in self.scenes)


FULL: Final = Script(
    scenes=(
        # redis-py waits 5 s for a reply before it sends the command again.
        Scene(what="lost replies", before=2.0, lasts=5.5, after=0.5),
        Scene(what="away", before=0.0, lasts=1.5, after=2.0),
        Scene(what="frozen", before=0.5, lasts=2.5, after=1.5),
        # redis-py gives up after 3 to 4 s.
        Scene(what="away", before=0.0, lasts=4.5, after=1.5),
    ),
    speed_round=0.5,
)

QUICK: Final = Script(
    scenes=(
        Scene(what="lost replies", before=0.4, lasts=1.3, after=0.2),
        Scene(what="away", before=0.0, lasts=0.4, after=0.6),
        Scene(what="frozen", before=0.0, lasts=0.4, after=0.3),
    ),
    speed_round=0.1,
    socket_timeout=1.0,
)


async def play(script: Script, run: Run, server: RedisServer, proxy: FaultProxy) -> None:
    """Let the faults happen, and note in the run when each did.

    Cancelling leaves the server as it is then: killed or frozen, perhaps.
    """
    for scene in script.scenes:
        await asyncio.sleep(scene.before)
        if scene.what == "lost replies":
            # Armed in one step, so that both clients lose them while the same calls are made.
            faults = [
                proxy.drop_reply(command, times=scene.replies) for command in ("HINCRBY", "RPUSH")
            ]
            run.fault_began(scene)
            await asyncio.sleep(scene.lasts)
            for fault in faults:
                fault.remove()
            run.fault_over(None)
        elif scene.what == "away":
            server.kill()
            run.fault_began(scene)
            await asyncio.sleep(scene.lasts)
            await server.start()
            run.fault_over("the server is back")
        else:
            server.freeze()
            run.fault_began(scene)
            await asyncio.sleep(scene.lasts)
            server.thaw()
            run.fault_over("the server goes on")
        await asyncio.sleep(scene.after)
