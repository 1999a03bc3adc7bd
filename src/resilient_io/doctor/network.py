"""The way to a server before anything is said: its name, its addresses, its port."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .looking import Finding, merged, note, ok, problem, together
from .machine.files import text_of
from .step import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Place",
    "addresses_of",
    "knock",
    "look_at_names",
    "look_at_ports",
    "silent_names",
    "written",
]

_RESOLV: Final = Path("/etc/resolv.conf")
_SLOW_NAME: Final = 1.0
_SLOW_CONNECT: Final = 0.5

_TIMED_OUT: Final = "no answer"
_REFUSED: Final = "refused"
_UNREACHABLE: Final = "no route"


@dataclass(slots=True)
class Place:
    """One server's host and port, and what was found on the way to it.

    Attributes:
        host: As it was written.
        port: The port.
        addresses: Those its name leads to, in the order in which they are tried.
        reached: Seconds that a connection took, by address.
        failed: What came instead, by address: "refused" …
    """

    host: str
    port: int
    addresses: list[str] = field(default_factory=list)
    reached: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def written(self) -> str:
        """Host and port as they are written."""
        return written(self.host, self.port)

    @property
    def is_loopback(self) -> bool:
        """It can only be on this machine, or in this container."""
        return self.host == "localhost" or (
            bool(self.addresses)
            and all(ipaddress.ip_address(_plain(each)).is_loopback for each in self.addresses)
        )


def written(host: str, port: int) -> str:
    """Write host and port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def addresses_of(place: Place) -> OSError | UnicodeError | None:
    """Look a place's name up; give the error if that fails."""
    loop = asyncio.get_running_loop()
    try:
        # A host that is an address needs no look-up, but this writes it as the others are.
        found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return error
    place.addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    return None


async def look_at_names(places: Sequence[Place]) -> Finding:
    """Look all names up at once, each within the time that the caller gives for all."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    named = [place for place in places if not _is_address(place.host)]
    results = await together("look-up", map(addresses_of, places))
    took = loop.time() - began
    data = {place.written: place.addresses for place in places}
    rest = any(place.addresses for place in places)
    failed = [
        milder(_judge_name(place, error), some_work=rest)
        for place, error in zip(places, results, strict=True)
        if error is not None
    ]
    found = [f"{p.host} is {', '.join(p.addresses)}" for p in places if p.addresses]
    if failed:
        return merged([*failed, *map(ok, found)], addresses=data)
    if not named:
        return ok("an address needs no look-up", addresses=data)
    if took > _SLOW_NAME:
        return note(
            f"{'; '.join(found)}, but the look-up took {took:.1f} s",
            f"Every new connection waits as long: ask whether the name servers "
            f"({_name_servers()}) are well, or write the full name with a dot at its end, which "
            f"spares the search list.",
            addresses=data,
        )
    return ok("; ".join(found), addresses=data)


def silent_names(places: Sequence[Place]) -> Finding:
    """Say what it means that no look-up ended in time."""
    return problem(
        f"the name servers gave no answer for {', '.join(place.host for place in places)}",
        f"Look whether they are well and can be reached from here ({_name_servers()}); in "
        f"Kubernetes, whether a NetworkPolicy lets port 53 out (UDP and TCP).",
    )


def _judge_name(place: Place, error: OSError | UnicodeError) -> Finding:
    if isinstance(error, UnicodeError):
        return problem(
            f"{place.host[:60]!r} cannot be a name", "Write a host name of at most 63 signs a part."
        )
    if error.errno == socket.EAI_AGAIN:
        return problem(
            f"the name servers could not say what {place.host} is",
            f"Look whether they are well and can be reached from here ({_name_servers()}); in "
            f"Kubernetes, whether a NetworkPolicy lets port 53 out (UDP and TCP).",
        )
    searched = _resolver("search")
    dotless = "." not in place.host
    where = f" (searched in {searched})" if searched and dotless else ""
    return problem(
        f"there is no name {place.host}{where}",
        "Look whether it is spelled right and its Service or container exists. "
        + (
            "A Service of another namespace is written name.namespace; containers of Docker see "
            "each other's names only in a network that was made for them."
            if dotless
            else f"Asked were {_name_servers()}."
        ),
    )


def _name_servers() -> str:
    return _resolver("nameserver") or "none in /etc/resolv.conf"


def _resolver(key: str) -> str:
    found = re.findall(rf"^\s*{key}\s+(.+?)\s*$", text_of(_RESOLV) or "", re.MULTILINE)
    return ", ".join(found).replace(" ", ", ") if key == "search" else ", ".join(found)


async def look_at_ports(places: Sequence[Place], timeout: float) -> Finding:
    """Connect to every address of every place at once, and close again.

    Args:
        places: Whose names were looked up.
        timeout: Seconds until an address counts as silent.
    """
    tries = [(place, address) for place in places for address in place.addresses]
    await together("connect", (_try(place, address, timeout) for place, address in tries))
    data = {
        place.written: {
            **{address: round(seconds, 6) for address, seconds in place.reached.items()},
            **place.failed,
        }
        for place in places
    }
    some_work = any(place.reached for place in places)
    findings = [
        milder(_judge_place(place), some_work=some_work) for place in places if place.addresses
    ]
    return merged(findings, addresses=data)


def milder(found: Finding, *, some_work: bool) -> Finding:
    """Make a note of one server's problem where others of the same list do its work."""
    if found.status is not Status.PROBLEM or not some_work:
        return found
    return note(found.found, f"{found.advice} Meanwhile the others do.", **found.data)


async def _try(place: Place, address: str, timeout: float) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    failure = await knock(address, place.port, timeout)
    if failure is None:
        place.reached[address] = loop.time() - began
    else:
        place.failed[address] = failure


async def knock(host: str, port: int, timeout: float) -> str | None:
    """Connect and close again; say in words why it failed, or None.

    Args:
        host: Name or address.
        port: The port.
        timeout: Seconds until it counts as silent.
    """
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return _TIMED_OUT
    except ConnectionRefusedError:
        return _REFUSED
    except OSError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL):
            return _UNREACHABLE
        if error.errno == errno.ETIMEDOUT:
            return _TIMED_OUT
        return " ".join(str(error).split())
    writer.transport.abort()
    return None


def _judge_place(place: Place) -> Finding:
    failed = ", ".join(
        f"{address} {'gives no answer' if why == _TIMED_OUT else why}"
        for address, why in place.failed.items()
    )
    if not place.reached:
        one = list(place.failed.values())
        same = len(set(one)) == 1
        found = f"{place.written}: {one[0] if same and len(one) == 1 else failed}"
        return problem(found, advice_for(place, one[0]))
    best = min(place.reached.values())
    count = f"{len(place.reached)} of {len(place.addresses)} addresses"
    reached = f"{place.written} answers"
    if _TIMED_OUT in place.failed.values():
        return note(
            f"{reached} at {count}; {failed}",
            "A client that tries the silent one first waits there: take it out of the DNS record, "
            "or open the way to it.",
        )
    if best > _SLOW_CONNECT:
        return note(
            f"{reached} after {best * 1e3:.0f} ms",
            "A packet was lost on the way, or the server's queue of new connections is full.",
        )
    return ok(f"{reached} in {best * 1e3:.1f} ms{f'; {failed}' if failed else ''}")


def advice_for(place: Place, failure: str) -> str:
    """Say what to do when a port cannot be reached."""
    if failure == _REFUSED:
        here = (
            " In a container, localhost is the container itself: write the name of the other."
            if place.is_loopback
            else ""
        )
        return (
            f"The host is there, but nothing listens on port {place.port}: is the server running, "
            f"and is the port right?{here}"
        )
    if failure == _TIMED_OUT:
        return (
            "Packets vanish: look at firewall, security group and NetworkPolicy between here and "
            "there, and whether the host is still alive at this address."
        )
    if failure == _UNREACHABLE:
        return "There is no way from this network to that address: look at routes and networks."
    return "Look at the network between here and there."


def _plain(address: str) -> str:
    return address.partition("%")[0]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(_plain(host))
    except ValueError:
        return False
    return True
