"""The address of a server that Sentinels monitor: all of them are asked at the same time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import RedisError, ResponseError

from .addresses import SharedTask, map_address
from .errors import connection_failure
from .wrong_server import SENTINEL_PORT, UnknownMaster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from .addresses import Address, AddressMap

    Ask = Callable[..., Awaitable[Any]]

_LATE_ANSWERS = 0.05  # seconds to wait for more answers once one Sentinel has answered


class SentinelAddress:
    """The address of a master, or of one of its replicas, as its Sentinels know it.

    Every Sentinel is asked at the same time. The address that most of them give counts.

    Args:
        service: The name of the master.
        sentinels: For each Sentinel, a function that sends commands on a new connection, within
            its own time limit, and returns their replies in order; an error reply is an item of
            the result.
        replica: Whether a replica is wanted, or the master if none is alive.
        least_others: How many other Sentinels one must know so that its answer counts.
        forced_host: The host of the master, whatever the Sentinels say.
        address_map: Where a server is reached that the Sentinels announce at another address.
        rng: Chooses the first replica.
    """

    def __init__(
        self,
        service: str,
        sentinels: Sequence[Ask],
        *,
        replica: bool = False,
        least_others: int = 0,
        forced_host: str | None = None,
        address_map: AddressMap | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._service = service
        self._sentinels = sentinels
        self._replica = replica
        self._least_others = least_others
        self._forced_host = forced_host
        self._address_map = address_map
        self._rng = rng if rng is not None else random.Random()
        self._turn: int | None = None  # the position of the latest replica
        self._lookup = SharedTask("resilient-io redis sentinel lookup")

    async def find(self) -> Sequence[Address]:
        """Return the current address of the master, or those of the replicas in turn.

        Raises `MasterNotFoundError` of redis-py, with what the Sentinels said.
        """
        ask_one = self._ask_for_replicas if self._replica else self._ask_for_master
        found = await self._lookup.result(lambda: self._most_agree(ask_one))
        if not self._replica:
            return found
        first = self._rng.randrange(len(found)) if self._turn is None else self._turn + 1
        self._turn = first % len(found)
        return (*found[self._turn :], *found[: self._turn])

    async def aclose(self) -> None:
        """End a lookup that is in flight. Idempotent."""
        await self._lookup.aclose()

    async def _most_agree(
        self, ask_one: Callable[[Ask], Awaitable[tuple[Address, ...]]]
    ) -> tuple[Address, ...]:
        """Return the answer of most Sentinels. A majority ends the wait for the others."""
        loop = asyncio.get_running_loop()

        async def run(ask: Ask) -> tuple[Address, ...]:
            return await ask_one(ask)

        tasks = [
            loop.create_task(run(ask), name="resilient-io redis sentinel")
            for ask in self._sentinels
        ]
        answers: Counter[tuple[Address, ...]] = Counter()
        problems: list[Exception] = []
        pending = list(tasks)
        until: float | None = None
        try:
            while pending:
                left = None if until is None else max(until - loop.time(), 0.0)
                done, _ = await asyncio.wait(
                    pending, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                pending = [task for task in pending if task not in done]
                for task in [each for each in tasks if each in done]:
                    try:
                        answers[task.result()] += 1
                    except (RedisError, OSError) as error:
                        problems.append(error)
                if answers and until is None:
                    until = loop.time() + _LATE_ANSWERS
                if not done or max(answers.values(), default=0) * 2 > len(tasks):
                    break
        finally:
            for task in tasks:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
        if answers:
            return answers.most_common(1)[0][0]
        raise self._explain(problems)

    def _explain(self, problems: Sequence[Exception]) -> Exception:
        """Return the error if no Sentinel has given an address.

        It is one for a wrong setting if all Sentinels say that: then waiting does not help.
        """
        names = [each for each in problems if isinstance(each, UnknownMaster)]
        if len(names) == len(self._sentinels):
            return names[0]
        texts = [
            each.advice if isinstance(each, UnknownMaster) else str(each) or "timed out"
            for each in problems
        ]
        text = "; ".join(dict.fromkeys(texts))
        final = [each for each in problems if connection_failure(each).permanent]
        if len(final) == len(self._sentinels):
            return type(final[0])(text)
        if any(isinstance(each, MasterNotFoundError | ResponseError) for each in problems):
            return MasterNotFoundError(f"no Sentinel knows a master {self._service!r}: {text}")
        why = f": {text}" if text else ""
        return MasterNotFoundError(
            f"no Sentinel answers{why} (a Sentinel listens on port {SENTINEL_PORT} by default)"
        )

    async def _ask_for_master(self, ask: Ask) -> tuple[Address, ...]:
        commands: list[tuple[str, ...]] = [
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service),
        ]
        if self._least_others:
            commands.append(("SENTINEL", "MASTER", self._service))
        address, *facts = await ask(*commands)
        if isinstance(address, Exception):
            raise address
        if address is None:
            raise await self._unknown_name(ask)
        if facts and self._others_known(facts[0]) < self._least_others:
            raise MasterNotFoundError("a Sentinel knows too few others")
        return (self._address(address[0], address[1]),)

    async def _ask_for_replicas(self, ask: Ask) -> tuple[Address, ...]:
        (listed,) = await ask(("SENTINEL", "REPLICAS", self._service))
        if isinstance(listed, ResponseError) and "No such master" in str(listed):
            raise await self._unknown_name(ask)
        if isinstance(listed, Exception):
            raise listed
        facts = [_as_dict(each) for each in listed]
        alive = sorted(
            self._address(each["ip"], each["port"])
            for each in facts
            if not {"s_down", "o_down"} & set(each["flags"].split(","))
        )
        return tuple(alive) or await self._ask_for_master(ask)

    async def _unknown_name(self, ask: Ask) -> UnknownMaster:
        (listed,) = await ask(("SENTINEL", "MASTERS"))
        facts = [] if isinstance(listed, Exception) else [_as_dict(each) for each in listed]
        return UnknownMaster(self._service, (each.get("name", "?") for each in facts))

    def _address(self, host: object, port: object) -> Address:
        if self._forced_host is not None and not self._replica:
            return self._forced_host, int(_text(port))
        return map_address(self._address_map, (_text(host), int(_text(port))))

    @staticmethod
    def _others_known(reply: object) -> int:
        if isinstance(reply, Exception):
            raise reply
        return int(_as_dict(reply).get("num-other-sentinels", "0"))


def _as_dict(reply: Any) -> dict[str, str]:
    """Return what a Sentinel says about a server: a map with RESP3, a flat list with RESP2."""
    if isinstance(reply, dict):
        pairs: Iterable[tuple[Any, Any]] = reply.items()
    else:
        pairs = zip(reply[::2], reply[1::2], strict=True)
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
