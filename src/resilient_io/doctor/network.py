"""Check the network path to a server: name lookup, and a TCP connection to each address."""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resilient_io.text import describe_error, format_address

from .steps import CheckResult, merged, milder, note, ok, problem, together, unknown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from .steps import Checks, Step

_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_SHARE: Final = 0.5
"""How much of the time that is left a step may use: others come after it."""

_SLOW_LOOKUP: Final = 1.0
_SLOW_CONNECT: Final = 0.5

NO_ANSWER: Final = "no answer"
REFUSED: Final = "connection refused"
_UNREACHABLE: Final = "no route"


@dataclass(slots=True)
class Endpoint:
    """Host and port of one server, and what was found on the way to it.

    Attributes:
        host: Name or address, as it was given.
        port: The port.
        addresses: Those of the name, in the order in which they are tried.
        reached: Seconds that a connection took, by address.
        failed: Why no connection was made, by address: "connection refused" …
    """

    host: str
    port: int
    addresses: list[str] = field(default_factory=list)
    reached: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Host and port, an IPv6 address in brackets."""
        return format_address(self.host, self.port)

    @property
    def is_address(self) -> bool:
        """Whether the host is an IP address, which needs no lookup."""
        return _parsed(self.host) is not None

    @property
    def is_loopback(self) -> bool:
        """Whether the host can only be this machine, or this container."""
        parsed = [_parsed(each) for each in self.addresses]
        return self.host == "localhost" or (
            bool(parsed) and all(each is not None and each.is_loopback for each in parsed)
        )

    async def look_up(self) -> OSError | UnicodeError | None:
        """Look up the addresses of the host; return the error if that fails."""
        if self.is_address:
            self.addresses = [self.host]
            return None
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            return error
        self.addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        return None

    async def connect(self, timeout: float) -> None:
        """Connect to every address concurrently, within `timeout` seconds, and close again."""
        await together("connect", (self._connect(each, timeout) for each in self.addresses))

    async def _connect(self, address: str, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(timeout):
                _, writer = await asyncio.open_connection(address, self.port)
        except OSError as error:
            self.failed[address] = _describe(error)
        else:
            writer.transport.abort()
            self.reached[address] = loop.time() - began


def _describe(error: OSError) -> str:
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return NO_ANSWER
    if isinstance(error, ConnectionRefusedError):
        return REFUSED
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL):
        return _UNREACHABLE
    return describe_error(error)


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


async def check_path(checks: Checks, endpoints: Sequence[Endpoint]) -> AsyncGenerator[Step, None]:
    """Yield the steps "name" and, for the addresses that were found, "TCP"."""
    limit = checks.left * _SHARE
    yield await checks.run(
        "name",
        functools.partial(check_names, endpoints),
        share=_SHARE,
        on_timeout=names_timed_out(endpoints, limit),
    )
    if any(each.addresses for each in endpoints):
        limit = checks.left * _SHARE
        yield await checks.run("TCP", functools.partial(check_ports, endpoints, limit))


async def check_names(endpoints: Sequence[Endpoint]) -> CheckResult:
    """Look up all names concurrently."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    errors = await together("lookup", (endpoint.look_up() for endpoint in endpoints))
    took = loop.time() - began
    data = {each.text: each.addresses for each in endpoints}
    named = [each for each in endpoints if not each.is_address]
    if not named:
        return ok("an IP address needs no lookup", addresses=data)
    others_work = any(each.addresses for each in endpoints)
    failed = [
        milder(_judge_name(endpoint, error), others_work=others_work)
        for endpoint, error in zip(endpoints, errors, strict=True)
        if error is not None
    ]
    found = [f"{each.host} is {', '.join(each.addresses)}" for each in named if each.addresses]
    if failed:
        return merged([*failed, *map(ok, found)], addresses=data)
    if took > _SLOW_LOOKUP:
        return note(
            f"{'; '.join(found)}, but the lookup took {took:.1f} s",
            f"Each new connection waits as long. Check the name servers ({_name_servers()}), or "
            f"use the full name with a trailing dot, which skips the search list.",
            addresses=data,
        )
    return ok("; ".join(found), addresses=data)


def names_timed_out(endpoints: Sequence[Endpoint], timeout: float) -> CheckResult:
    """Return what it means that the lookups did not finish within the time limit of the check."""
    names = ", ".join(each.host for each in endpoints if not each.is_address)
    return unknown(
        f"the lookup of {names or 'the addresses'} did not finish within {timeout:.1f} s",
        f"Use a longer timeout. If the lookup fails then, too, check the name servers "
        f"({_name_servers()}), and in Kubernetes a NetworkPolicy that blocks port 53.",
    )


def _judge_name(endpoint: Endpoint, error: OSError | UnicodeError) -> CheckResult:
    host = endpoint.host
    if isinstance(error, UnicodeError):
        return problem(
            f"{host[:60]!r} is not a valid host name",
            "Use a host name with at most 63 characters between two dots.",
        )
    if error.errno == socket.EAI_AGAIN:
        return problem(
            f"the name servers could not resolve {host}: temporary failure",
            f"Check whether the name servers ({_name_servers()}) work and can be reached from "
            f"here; in Kubernetes, whether a NetworkPolicy allows port 53 (UDP and TCP).",
        )
    searched = _resolver("search")
    short = "." not in host
    where = f" (searched in {searched})" if searched and short else ""
    return problem(
        f"the name {host} does not exist{where}",
        "Check its spelling, and that its Service or container exists. "
        + (
            "Use name.namespace for a Service of another namespace; Docker containers resolve each "
            "other's names only in a user-defined network."
            if short
            else f"The name servers are {_name_servers()}."
        ),
    )


def _name_servers() -> str:
    return _resolver("nameserver") or "none in /etc/resolv.conf"


def _resolver(key: str) -> str:
    try:
        text = _RESOLV_CONF.read_text(errors="replace")
    except OSError:
        return ""
    return ", ".join(
        word
        for value in re.findall(rf"^\s*{key}\s+(.+?)\s*$", text, re.MULTILINE)
        for word in value.split()
    )


async def check_ports(endpoints: Sequence[Endpoint], timeout: float) -> CheckResult:
    """Connect to every address of every endpoint concurrently, and close again.

    Args:
        endpoints: Servers whose names were looked up.
        timeout: Seconds to wait for each address.
    """
    await together("connect", (each.connect(timeout) for each in endpoints))
    data = {
        each.text: {address: round(took, 6) for address, took in each.reached.items()} | each.failed
        for each in endpoints
    }
    others_work = any(each.reached for each in endpoints)
    results = [
        milder(_judge_port(each), others_work=others_work) for each in endpoints if each.addresses
    ]
    return merged(results, addresses=data)


def _judge_port(endpoint: Endpoint) -> CheckResult:
    failed = ", ".join(f"{address}: {why}" for address, why in endpoint.failed.items())
    if not endpoint.reached:
        reasons = list(endpoint.failed.values())
        why = reasons[0] if len(reasons) == 1 else failed
        return problem(f"{endpoint.text}: {why}", advice_for(endpoint, reasons[0]))
    fastest = min(endpoint.reached.values())
    if NO_ANSWER in endpoint.failed.values():
        return note(
            f"{endpoint.text} answers at {len(endpoint.reached)} of {len(endpoint.addresses)} "
            f"addresses; {failed}",
            "A client that tries the silent address first waits there for its connect timeout: "
            "remove the address from DNS, or open the way to it.",
        )
    if fastest > _SLOW_CONNECT:
        return note(
            f"{endpoint.text} answers after {fastest * 1e3:.0f} ms",
            "A packet was lost, or the server's queue of new connections is full.",
        )
    return ok(f"{endpoint.text} answers in {fastest * 1e3:.1f} ms{f'; {failed}' if failed else ''}")


def advice_for(endpoint: Endpoint, failure: str) -> str:
    """Return what to do if a port cannot be reached."""
    if failure == REFUSED:
        here = (
            " Inside a container, localhost is the container itself; use the service name."
            if endpoint.is_loopback
            else ""
        )
        return (
            f"The host is up, but nothing listens on port {endpoint.port}: check that the server "
            f"runs and that the port is right.{here}"
        )
    if failure == NO_ANSWER:
        return (
            "Packets are dropped: check firewall, security group and NetworkPolicy between here "
            "and there, and that the host is still alive at this address."
        )
    if failure == _UNREACHABLE:
        return "There is no route from this network to that address: check routes and networks."
    return "Check the network between here and there."
