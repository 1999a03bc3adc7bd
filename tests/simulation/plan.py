"""The plan of one run: everything that is drawn from the seed before the run begins.

A plan is plain data, and its elements do not depend on each other. A failing run is minimized by
leaving out faults, callers and calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

SEND_BUFFER = 128 * 1024
"""Bytes that the client's kernel usually accepts before the server's host acknowledges them."""


@dataclass(frozen=True, slots=True)
class ClientSetup:
    """How one client is constructed.

    Attributes:
        label: Its name in the history: "a", "b" ...
        policy: Arguments of RetryPolicy.
        connections: Arguments of ConnectionSettings.
        health: Arguments of HealthSettings.
        shares_health_of: The label of the client whose health it uses, or None.
        protocol: 2 or 3.
        single: Whether it is a single-connection client.
        options: Further arguments of ResilientRedis, such as `decode_responses`.
        form: How it is made: `by_address`, `by_url`, `login` (see `clients.login`), `traced`,
            `bare` for connections without a transport, `pooled` on the application's pool, and
            `reopens` if calls open it again after a close.
    """

    label: str
    policy: Mapping[str, Any] = field(default_factory=dict)
    connections: Mapping[str, Any] = field(default_factory=dict)
    health: Mapping[str, Any] = field(default_factory=dict)
    shares_health_of: str | None = None
    protocol: int = 3
    single: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """One operation of a caller.

    Attributes:
        number: Unique in the plan; it is the operation's number in the history.
        kind: The name of a kind of call in `workload`.
        pause: Seconds that the caller waits first.
        cancel_after: Seconds after which the workload cancels it; None for never.
        deadline: The seconds of an enclosing `resilient_io.deadline`, or None.
        view: Arguments of `with_policy`, or None for the client itself.
        arguments: Values for the kind of call, such as a key or a number of elements.
    """

    number: int
    kind: str
    pause: float = 0.0
    cancel_after: float | None = None
    deadline: float | None = None
    view: Mapping[str, Any] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Caller:
    """A task that makes its calls one after the other, with one client."""

    number: int
    client: str
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong at a time.

    Attributes:
        number: Unique in the plan.
        kind: The name of a kind of fault in `faults`.
        at: Seconds after the start.
        seconds: How long it lasts, for faults that end.
        arguments: Values for the kind of fault.
    """

    number: int
    kind: str
    at: float
    seconds: float = 0.0
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """How the network behaves without faults.

    Attributes:
        latency: Smallest one-way latency in seconds.
        jitter: Largest addition to the latency, in seconds.
        split: Probability that a packet is cut in two.
        stall: Probability that an iteration of our event loop takes 0.5 to 200 ms.
        stall_longest: The longest of these stalls, in seconds.
        kernel: Whether our kernel tells what it knows about a connection, as Linux does. Otherwise
            the address of a connection is unknown, too, as behind a proxy.
        send_buffer: Bytes that our kernel accepts before they are acknowledged. Where it is smaller
            than usual, small calls wait for room in it, as large ones do elsewhere.
    """

    latency: float = 0.0002
    jitter: float = 0.0005
    split: float = 0.1
    stall: float = 0.02
    stall_longest: float = 0.2
    kernel: bool = False
    send_buffer: int = SEND_BUFFER


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about one run."""

    seed: int
    theme: str
    clients: tuple[ClientSetup, ...]
    callers: tuple[Caller, ...]
    faults: tuple[Fault, ...]
    network: NetworkSettings = NetworkSettings()
    server: Mapping[str, Any] = field(default_factory=dict)

    def keep(
        self, *, faults: Collection[int] | None = None, calls: Collection[int] | None = None
    ) -> Plan:
        """Return the plan with only these faults and calls; None keeps all."""
        callers = self.callers
        if calls is not None:
            callers = tuple(
                replace(caller, calls=tuple(call for call in caller.calls if call.number in calls))
                for caller in self.callers
            )
            callers = tuple(caller for caller in callers if caller.calls)
        kept = self.faults
        if faults is not None:
            kept = tuple(fault for fault in self.faults if fault.number in faults)
        return replace(self, callers=callers, faults=kept)
