"""The address of a server that Sentinels monitor: all of them are asked at the same time.

The Sentinels' answers may differ: one is stale, or wrong, or the first to know about a failover.
Each failover has a number, the epoch, which only a majority of Sentinels can assign. So the answer
with the highest epoch counts, if a majority gives it, or if another Sentinel knows the server, too,
and the server itself says that it is a master.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import RedisError, ResponseError

from resilient_io.tasks import SharedTask
from resilient_io.text import format_address

from .addresses import closed, map_address
from .errors import connection_failure
from .wrong_server import SENTINEL_PORT, UnknownMaster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from .addresses import Address, AddressMap

    Ask: TypeAlias = Callable[..., Awaitable[Any]]

_LATE_ANSWERS = 0.05  # seconds to wait for more answers once one Sentinel has answered


@dataclass(frozen=True, slots=True)
class Answer:
    """What one Sentinel knows about a master.

    Attributes:
        address: Where it is.
        epoch: The number of the failover that made it the master, or 0.
        flags: What the Sentinel thinks about its state: "master", "s_down", "failover_in_progress".
        last_reply: Loop time of its latest reply to a PING of the Sentinel, or -inf.
        down_after: Seconds of silence after which the Sentinel takes it for down.
        replicas: The addresses of its replicas that are not down.
        all_replicas: The addresses of all its replicas.
    """

    address: Address
    epoch: int = 0
    flags: tuple[str, ...] = ()
    last_reply: float = -math.inf
    down_after: float = 0.0
    replicas: tuple[Address, ...] = ()
    all_replicas: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class KnownMaster:
    """The master that a client uses, and the number of the failover that made it the master.

    The number is -1 if no majority of the Sentinels has named it.
    """

    address: Address
    epoch: int

    def __str__(self) -> str:
        """Return the address."""
        return format_address(*self.address)


class SentinelAddress:
    """The address of a master, or of one of its replicas, as its Sentinels know it.

    The latest master is remembered: while no Sentinel answers, or only stale ones, it counts.

    Args:
        service: The name of the master.
        sentinels: For each Sentinel, a function that sends commands on a new connection, within
            its own time limit, and returns their replies in order; an error reply is an item of
            the result.
        replica: Whether a replica is wanted, or the master if none is alive.
        least_others: How many other Sentinels one must know so that its answer counts.
        forced_host: The host of the master, whatever the Sentinels say.
        address_map: Where a server is reached that the Sentinels announce at another address.
        role_of: Returns the role of the server at an address ("master" or "slave"), or raises an
            error of redis-py or an OSError if it does not answer. Without it, a majority counts.
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
        role_of: Callable[[Address], Awaitable[str]] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.service = service
        self._sentinels = sentinels
        self._replica = replica
        self._least_others = least_others
        self._forced_host = forced_host
        self._address_map = address_map
        self._role_of = role_of
        self._rng = rng if rng is not None else random.Random()
        self._turn: int | None = None  # the position of the latest replica
        self._lookup = SharedTask("resilient-io redis sentinel lookup", ended=closed)
        self._listeners: list[Callable[[KnownMaster | None, KnownMaster], None]] = []
        self._servers: dict[int, list[Address]] = {}  # all that a Sentinel has ever named, by index
        self.known: KnownMaster | None = None
        """The current master, as far as is known."""
        self.known_since: float | None = None
        """Loop time at which it was named as the master."""
        self.answers: Sequence[Answer | None] = [None] * len(sentinels)
        """The latest answer of each Sentinel; None if it did not answer the latest question."""

    def on_change(self, listener: Callable[[KnownMaster | None, KnownMaster], None]) -> None:
        """Call a function with the old and the new master before the new address is returned."""
        self._listeners.append(listener)

    async def find(self) -> Sequence[Address]:
        """Return the current address of the master, or those of the replicas in turn.

        Raises `MasterNotFoundError` of redis-py, with what the Sentinels said.
        """
        found = await self._lookup.result(self.ask)
        if not self._replica:
            return (found,)
        replicas = self._replicas() or (found,)
        first = self._rng.randrange(len(replicas)) if self._turn is None else self._turn + 1
        self._turn = first % len(replicas)
        return (*replicas[self._turn :], *replicas[: self._turn])

    async def aclose(self) -> None:
        """End a lookup that is in flight. Idempotent."""
        await self._lookup.aclose()

    async def ask(self) -> Address:
        """Ask all Sentinels now, decide which answer counts, and return the master's address.

        Raises `MasterNotFoundError` of redis-py if none does.
        """
        answers, problems = await self._ask_all()
        self.answers = answers
        for index, answer in enumerate(answers):
            if answer is not None:
                named = [answer.address, *answer.all_replicas, *self._servers.get(index, ())]
                self._servers[index] = list(dict.fromkeys(named))[:_MOST_REMEMBERED]
        known = [answer for answer in answers if answer is not None]
        master = await self._choose(known) if known else self.known
        if master is None:
            raise self._explain(problems)
        self._learn(master)
        return master.address

    def _learn(self, master: KnownMaster) -> None:
        before = self.known
        if before is not None and master.epoch < before.epoch and not self._reset(master):
            return  # a later answer was faster
        self.known = master
        if before is None or before.address != master.address:
            self.known_since = asyncio.get_running_loop().time()
            for listener in self._listeners:
                listener(before, master)

    # -- asking ------------------------------------------------------------------------------

    async def _ask_all(self) -> tuple[list[Answer | None], list[Exception]]:
        """Return the answers in the order of the Sentinels, and why the others did not answer."""
        loop = asyncio.get_running_loop()

        async def run(ask: Ask) -> Answer:
            return await self._ask_one(ask)

        tasks = [
            loop.create_task(run(ask), name="resilient-io redis sentinel")
            for ask in self._sentinels
        ]
        answers: list[Answer | None] = [None] * len(tasks)
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
                for index, task in enumerate(tasks):
                    if task not in done:
                        continue
                    try:
                        answers[index] = task.result()
                    except (RedisError, OSError) as error:
                        problems.append(error)
                if until is None and any(answers):
                    until = loop.time() + _LATE_ANSWERS
                if not done:
                    break
        finally:
            for task in tasks:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
        return answers, problems

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
            return MasterNotFoundError(f"no Sentinel knows a master {self.service!r}: {text}")
        why = f": {text}" if text else ""
        return MasterNotFoundError(
            f"no Sentinel answers{why} (a Sentinel listens on port {SENTINEL_PORT} by default)"
        )

    async def _ask_one(self, ask: Ask) -> Answer:
        address, facts, listed = await ask(
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service),
            ("SENTINEL", "MASTER", self.service),
            ("SENTINEL", "REPLICAS", self.service),
        )
        if isinstance(address, Exception):
            raise address
        if address is None:
            raise await self._unknown_name(ask)
        known = {} if isinstance(facts, Exception) else _as_dict(facts)  # forbidden, for example
        if self._least_others and int(known.get("num-other-sentinels", 0)) < self._least_others:
            raise MasterNotFoundError("a Sentinel knows too few others")
        replicas = [] if isinstance(listed, Exception) else [_as_dict(each) for each in listed]
        alive = [each for each in replicas if not _DOWN.intersection(each["flags"].split(","))]
        since_reply = float(known.get("last-ok-ping-reply", math.inf)) / 1000
        return Answer(
            address=self._address(address[0], address[1], master=not self._replica),
            epoch=int(known.get("config-epoch", 0)),
            flags=tuple(known.get("flags", "master").split(",")),
            last_reply=asyncio.get_running_loop().time() - since_reply,
            down_after=float(known.get("down-after-milliseconds", 0)) / 1000,
            replicas=self._addresses(alive),
            all_replicas=self._addresses(replicas),
        )

    async def _unknown_name(self, ask: Ask) -> UnknownMaster:
        (listed,) = await ask(("SENTINEL", "MASTERS"))
        facts = [] if isinstance(listed, Exception) else [_as_dict(each) for each in listed]
        return UnknownMaster(self.service, (each.get("name", "?") for each in facts))

    def _address(self, host: object, port: object, *, master: bool) -> Address:
        if self._forced_host is not None and master:
            return self._forced_host, int(_text(port))
        return map_address(self._address_map, (_text(host), int(_text(port))))

    def _addresses(self, servers: Iterable[dict[str, str]]) -> tuple[Address, ...]:
        found = (self._address(each["ip"], each["port"], master=False) for each in servers)
        return tuple(sorted(found))

    def _replicas(self) -> tuple[Address, ...]:
        """Return the replicas that most Sentinels take for alive."""
        lists = [answer.replicas for answer in self.answers if answer is not None]
        return Counter(lists).most_common(1)[0][0] if lists else ()

    # -- deciding ----------------------------------------------------------------------------

    async def _choose(self, answers: Sequence[Answer]) -> KnownMaster:
        """Return the master that counts, from at least one answer."""
        known = self.known
        votes = Counter(answer.address for answer in answers)
        named = [KnownMaster(each, self._epoch(each, answers)) for each in votes]
        named.sort(key=lambda each: (each.epoch, votes[each.address]), reverse=True)
        for master in named:
            if known is not None and master.epoch < known.epoch and not self._reset(master):
                break  # these Sentinels are stale
            if votes[master.address] * 2 > len(self._sentinels):
                return master
            if known is not None and master.address == known.address:
                return known
            if (known is not None or len(named) > 1) and await self._is_confirmed(master, known):
                return master
        if known is not None:
            return known
        # They contradict each other, or most do not answer. The answer of a majority will count
        # more, and the role of the server is checked on each connection.
        return replace(max(named, key=lambda each: votes[each.address]), epoch=_UNCONFIRMED)

    def _epoch(self, address: Address, answers: Sequence[Answer]) -> int:
        """Return the epoch of an address: the latest, or the latest that a majority knows."""
        epochs = sorted((each.epoch for each in answers if each.address == address), reverse=True)
        majority = len(self._sentinels) // 2
        if len(epochs) > majority:
            return epochs[majority]
        known = self.known
        # A minority must not raise the epoch of the known master: it would hide the next one.
        return known.epoch if known is not None and known.address == address else epochs[0]

    def _reset(self, master: KnownMaster) -> bool:
        """Return whether all Sentinels agree on a lower epoch: they were set up again."""
        return all(
            answer is not None and (answer.address, answer.epoch) == (master.address, master.epoch)
            for answer in self.answers
        )

    async def _is_confirmed(self, master: KnownMaster, known: KnownMaster | None) -> bool:
        """Return whether the master that a minority names is one.

        Another Sentinel must know the server, or the known master must be gone; and the server
        must say itself that it is a master. Raises `MasterNotFoundError` if it does not answer:
        after a failover, which only this minority has noticed, the former master must not be used.
        """
        if self._role_of is None:
            return False
        address = master.address
        vouched = any(
            address in servers
            for index, servers in self._servers.items()
            if (answer := self.answers[index]) is None or answer.address != address
        )
        if not vouched and known is None:
            return False
        if not vouched and known is not None and await self._is_master(known.address):
            return False
        try:
            return await self._role_of(address) == "master"
        except (RedisError, OSError) as error:
            if not vouched:
                return False
            raise MasterNotFoundError(
                f"the Sentinels name different masters for {self.service!r}, and {master}, "
                f"the latest, does not answer: {error}"
            ) from None

    async def _is_master(self, address: Address) -> bool:
        try:
            return self._role_of is not None and await self._role_of(address) == "master"
        except (RedisError, OSError):
            return False


_DOWN = frozenset({"s_down", "o_down"})

_UNCONFIRMED = -1  # the epoch of a master that no majority has named

_MOST_REMEMBERED = 64  # servers that are remembered of one Sentinel


def _as_dict(reply: Any) -> dict[str, str]:
    """Return what a Sentinel says about a server: a map with RESP3, a flat list with RESP2."""
    if isinstance(reply, dict):
        pairs: Iterable[tuple[Any, Any]] = reply.items()
    else:
        pairs = zip(reply[::2], reply[1::2], strict=True)
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
