"""Check the network path to a server: name lookup, and a TCP connection to each address."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from resilient_io.text import describe_error, format_address

from .steps import CheckResult, merged, milder, note, ok, problem, together, unknown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from .steps import Checks, Step

_SLOW_LOOKUP: Final = 1.0
_NO_ANSWER: Final = "no answer"
_REFUSED: Final = "connection refused"
_CHECK_NAME_SERVERS: Final = (
    "Check whether the name servers in /etc/resolv.conf work and can be reached from here; in "
    "Kubernetes, whether a NetworkPolicy allows port 53 (UDP and TCP)."
)


@dataclass(slots=True)
class Endpoint:
    """Host and port of one server, and what was found on the way to it."""

    host: str
    port: int
    addresses: list[str] = field(default_factory=list)  # in the order in which they are tried
    reached: dict[str, float] = field(default_factory=dict)  # seconds of a connection by address
    failed: dict[str, str] = field(default_factory=dict)  # the reason by address

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
        except TimeoutError:
            self.failed[address] = _NO_ANSWER
        except OSError as error:
            self.failed[address] = describe_error(error)
        else:
            writer.transport.abort()
            self.reached[address] = loop.time() - began


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


async def check_path(checks: Checks, endpoints: Sequence[Endpoint]) -> AsyncGenerator[Step, None]:
    """Yield the steps "name" and, for the addresses that were found, "TCP"."""
    limit = checks.half
    yield await checks.run(
        "name",
        lambda: check_names(endpoints),
        limit=limit,
        on_timeout=unknown(
            f"the lookup did not finish within {limit:.1f} s",
            f"Use a longer timeout. If the lookup fails then, too: {_CHECK_NAME_SERVERS}",
        ),
    )
    if any(each.addresses for each in endpoints):
        limit = checks.half
        yield await checks.run("TCP", lambda: check_ports(endpoints, limit))


async def check_names(endpoints: Sequence[Endpoint]) -> CheckResult:
    """Look up all names concurrently."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    errors = await together("lookup", (endpoint.look_up() for endpoint in endpoints))
    took = loop.time() - began
    others_work = any(each.addresses for each in endpoints)
    results = []
    for endpoint, error in zip(endpoints, errors, strict=True):
        if error is not None:
            results.append(milder(judge_name(endpoint.host, error), others_work=others_work))
        elif not endpoint.is_address:
            results.append(ok(f"{endpoint.host} is {', '.join(endpoint.addresses)}"))
    if took > _SLOW_LOOKUP:
        results.append(
            note(
                f"the lookup took {took:.1f} s",
                "Each new connection waits as long. Check the name servers, or use the full name "
                "with a trailing dot, which skips the search list.",
            )
        )
    return merged(
        results or [ok("an IP address needs no lookup")],
        addresses={each.text: each.addresses for each in endpoints},
    )


def judge_name(host: str, error: OSError | UnicodeError) -> CheckResult:
    """Return why the lookup of a name failed."""
    if isinstance(error, OSError) and error.errno == socket.EAI_AGAIN:
        found = f"the name servers could not resolve {host}: temporary failure"
        return problem(found, _CHECK_NAME_SERVERS)
    return problem(
        f"the name {host} does not exist",
        "Check its spelling, and that its Service or container exists. Use name.namespace for a "
        "Service of another namespace; Docker containers resolve each other's names only in a "
        "user-defined network.",
    )


async def check_ports(endpoints: Sequence[Endpoint], timeout: float) -> CheckResult:
    """Connect to every address of every endpoint concurrently, and close again."""
    await together("connect", (each.connect(timeout) for each in endpoints))
    others_work = any(each.reached for each in endpoints)
    return merged(
        [milder(_judge_port(each), others_work=others_work) for each in endpoints if each.addresses]
    )


def _judge_port(endpoint: Endpoint) -> CheckResult:
    failed = ", ".join(f"{address}: {why}" for address, why in endpoint.failed.items())
    if not endpoint.reached:
        reasons = list(endpoint.failed.values())
        why = reasons[0] if len(reasons) == 1 else failed
        return problem(f"{endpoint.text}: {why}", advice_for(endpoint, reasons[0]))
    fastest = min(endpoint.reached.values())
    if _NO_ANSWER in endpoint.failed.values():
        return note(
            f"{endpoint.text} answers at {len(endpoint.reached)} of {len(endpoint.addresses)} "
            f"addresses; {failed}",
            "A client that tries the silent address first waits there for its connect timeout: "
            "remove the address from DNS, or open the way to it.",
        )
    return ok(f"{endpoint.text} answers in {fastest * 1e3:.1f} ms{f'; {failed}' if failed else ''}")


def advice_for(endpoint: Endpoint, failure: str) -> str:
    """Return what to do if a port cannot be reached."""
    if failure == _REFUSED:
        here = " Inside a container, localhost is the container itself; use the service name."
        return (
            f"The host is up, but nothing listens on port {endpoint.port}: check that the server "
            f"runs and that the port is right.{here * endpoint.is_loopback}"
        )
    return (
        "Check routes, firewall, security group and NetworkPolicy between here and there, and that "
        "the host is still alive at this address."
    )
