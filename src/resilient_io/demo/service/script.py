"""The script of faults: Redis and Kafka are killed, frozen and cut off in turn."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from resilient_io.demo.service.scene import Scene

if TYPE_CHECKING:
    from resilient_io.demo.service.run import Run
    from resilient_io.testing import FaultProxy, KafkaBroker, RedisServer

ServerT = TypeVar("ServerT", "RedisServer", "KafkaBroker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What the service goes through.

    Attributes:
        scenes: The faults, in order.
    """

    scenes: tuple[Scene, ...]

    @property
    def seconds(self) -> float:
        """How long all scenes take, but for the starts of killed servers."""
        return sum(scene.seconds for scene in self.scenes)

    def for_memory_only(self) -> Script:
        """Leave out what a broker that keeps nothing on disk cannot go through: to be killed."""
        scenes = [each for each in self.scenes if (each.whom, each.what) != ("kafka", "killed")]
        return replace(self, scenes=tuple(scenes))


FULL: Final = Script(
    scenes=(
        Scene(whom="redis", what="killed", before=1.0, lasts=1.5, after=1.0),
        Scene(whom="kafka", what="killed", before=0.0, lasts=1.0, after=1.5),
        Scene(whom="redis", what="frozen", before=0.0, lasts=2.5, after=1.0),
        Scene(whom="kafka", what="frozen", before=0.0, lasts=3.5, after=1.0),
        Scene(whom="redis", what="cut off", before=0.0, lasts=2.5, after=1.0),
        Scene(whom="kafka", what="cut off", before=0.0, lasts=3.5, after=1.5),
    ),
)

QUICK: Final = Script(
    scenes=(
        Scene(whom="redis", what="killed", before=0.5, lasts=0.5, after=0.5),
        Scene(whom="kafka", what="killed", before=0.0, lasts=0.2, after=0.5),
        Scene(whom="kafka", what="frozen", before=0.0, lasts=0.5, after=0.5),
        Scene(whom="redis", what="cut off", before=0.0, lasts=0.5, after=0.5),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place(Generic[ServerT]):
    """One server and the network before it.

    Attributes:
        server: Is killed and frozen.
        proxy: Stands before it, and is cut.
    """

    server: ServerT
    proxy: FaultProxy


AnyPlace: TypeAlias = "Place[RedisServer] | Place[KafkaBroker]"


async def play(
    script: Script, run: Run, redis: Place[RedisServer], kafka: Place[KafkaBroker]
) -> None:
    """Let the faults happen, and note in the run when each did.

    Cancelling leaves the servers as they are then: killed or frozen, perhaps.
    """
    for scene in script.scenes:
        await asyncio.sleep(scene.before)
        place: AnyPlace = redis if scene.whom == "redis" else kafka
        _begin(scene, place)
        run.fault_began(scene)
        await asyncio.sleep(scene.lasts)
        await _end(scene, place)
        run.fault_over()
        await asyncio.sleep(scene.after)


def _begin(scene: Scene, place: AnyPlace) -> None:
    if scene.what == "killed":
        place.server.kill()
    elif scene.what == "frozen":
        place.server.freeze()
    else:
        place.proxy.stall()


async def _end(scene: Scene, place: AnyPlace) -> None:
    if scene.what == "killed":
        await place.server.start()
    elif scene.what == "frozen":
        place.server.thaw()
    else:
        # What was on its way is gone with the connections that carried it.
        place.proxy.reset()
        place.proxy.resume()
