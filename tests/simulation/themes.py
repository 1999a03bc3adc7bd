"""The subjects on which seeds concentrate: weights of calls and faults, clients and policies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

_CALLS = {
    "set": 12, "get": 10, "increment": 10, "push": 6, "append": 3, "hash set": 2, "add": 2,
    "echo": 5, "get several": 2, "get range": 2, "get hash": 1, "delete": 1, "set conditional": 2,
    "set expiring": 1, "stream add": 2, "script read": 2, "script push": 2, "script fail": 1,
    "script registered": 1, "pipeline": 6, "transaction": 6, "watch": 4, "manual": 1,
    "burst": 4, "peek": 0.7,
    "pop": 5, "pop now": 2, "move": 2, "stream read": 1, "late": 1,
    "lock": 1.5, "lock block": 1, "lock steal": 0.3, "wait up": 1,
    "look": 0.7, "follow": 0.5, "misuse": 0.3,
    "set large": 1, "get large": 1, "set binary": 1, "get binary": 1,
    "push binary": 0.5, "pop binary": 0.5, "traffic": 0.5, "close": 0.3, "reopen": 0.3,
    "temporary": 0.3, "name": 0.3, "no touch": 0.1,
}  # fmt: skip

_FAULTS = {
    "hold one": 3, "hold one and reset": 4, "slow and hold one": 1, "break off": 4, "flap": 1.5,
    "cut": 2, "drop replies": 2, "hold requests": 2, "hold replies": 2, "hold and reset": 3,
    "lose replies": 3, "slow": 2, "reset": 2, "reset one": 3, "close one": 3, "lose one": 1,
    "forget": 2, "garbage": 1, "refuse": 2, "hang connects": 2, "lookup fails": 1,
    "lookup hangs": 1,
    "lookup slow": 1, "freeze": 3, "kill": 4, "loading": 2, "refuse writes": 3,
    "lose then refuse": 2, "refuse then reset": 1, "refuse and hold one": 0.5, "busy": 2,
    "pause": 1, "limit clients": 1, "deny": 1, "deny then hold one": 1, "kill client": 2,
    "unblock": 1, "fail over": 1, "stall": 2, "forget scripts": 2, "refuse at exec": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Theme:
    """What the seeds of a theme concentrate on.

    Attributes:
        calls, faults: Weights by kind. Kinds that are missing do not occur.
        weight: How often it is drawn, compared with other themes.
        clients: Smallest and largest number of clients.
        shared: Probability that a client shares the health of the first.
        single: Probability of a single-connection client.
        cancel: Probability that a call is cancelled.
        deadline: Probability that a call has a deadline of its own.
        storms: Smallest and largest number of moments at which faults cluster.
        faults_at_once: The possible numbers of faults in such a cluster.
        impatient: Probability that a client probes often, or with short timeouts.
        narrow: Probability that a client permits few exclusive connections.
        decoded: Probability that a client decodes replies.
        scripts: Probability that a batch runs scripts.
        endless: Probability that a pop waits without a limit.
        large: Probability that a burst consists of large values.
        read_only: Probability that a server that refuses writes is a replica.
        bare: Whether connections have no transport, as those of fakes.
        pooled: Whether the clients are on a pool of the application, where others come and go.
        reopens: Probability that calls open a closed client again.
        policy: Changes the policy of a client, which was drawn before.
        options: Further values for clients (`connections`) and the server, by name.
    """

    calls: Mapping[str, float]
    faults: Mapping[str, float]
    weight: float = 1.0
    clients: tuple[int, int] = (1, 2)
    shared: float = 0.15
    single: float = 0.0
    cancel: float = 0.15
    deadline: float = 0.1
    storms: tuple[int, int] = (1, 3)
    faults_at_once: tuple[int, ...] = (1, 1, 2, 3)
    impatient: float = 0.1
    narrow: float = 0.1
    decoded: float = 0.2
    read_only: float = 0.25
    scripts: float = 0.25
    policy: Callable[[Random, dict[str, Any]], None] | None = None
    in_flight: int | None = None
    endless: float = 0.1
    large: float = 0.0
    credentials: float = 0.0
    busy_callers: bool = False
    bare: bool = False
    pooled: bool = False
    reopens: float = 0.1
    network: Mapping[str, float] = field(default_factory=dict)


def _only(weights: Mapping[str, float], *names: str, **more: float) -> dict[str, float]:
    chosen = {name: weights.get(name, 1) for name in names}
    return chosen | {name.replace("_", " "): weight for name, weight in more.items()}


def _scarce_budget(rng: Random, policy: dict[str, Any]) -> None:
    policy["retry_budget"] = float(rng.choice([0, 5, 10, 20, 40, 500, 500]))
    policy["attempts"] = rng.choice([3, 5, 8])
    policy["backoff"] = rng.choice([0.3, 1.0, 1.0])  # long enough for cancellations
    policy["repeat"] = rng.choice(["idempotent", "any"])


def _tries_seldom(rng: Random, policy: dict[str, Any]) -> None:
    policy["attempts"] = rng.choice([1, 2, 3, 4])


def _repeats_much(rng: Random, policy: dict[str, Any]) -> None:
    policy["repeat"] = rng.choice(["idempotent", "conditional", "any"])
    policy["attempts"] = rng.choice([3, 4, 6])


def _no_time_to_lose(rng: Random, policy: dict[str, Any]) -> None:
    """Set a deadline that the first attempt may use up, or none."""
    policy["connect_timeout"] = min(policy["connect_timeout"], policy["response_timeout"])
    policy["deadline"] = rng.choice([policy["response_timeout"], 1.0, None])
    policy["attempts"] = rng.choice([1, 3])


def _overwrites_again(rng: Random, policy: dict[str, Any]) -> None:
    policy["repeat"] = rng.choice(["read", "idempotent", "idempotent", "idempotent"])
    policy["attempts"] = rng.choice([2, 3, 5])


def _waits_while_down(rng: Random, policy: dict[str, Any]) -> None:
    policy["while_down"] = "wait"
    if rng.random() < 0.3:
        policy["deadline"] = None


_WRITES = _only(_CALLS, "set", "increment", "push", "get", "echo", "append", "burst")
_BATCHES = _only(_CALLS, "set", "get", "transaction", "increment", "peek", pipeline=14, watch=2)
_BREAKS = _only(
    _FAULTS, "lose replies", "hold and reset", "reset", "reset one", "kill", "forget", "freeze",
    "drop replies", "hold requests", "hold replies", "hold one", "hold one and reset", "break off",
)  # fmt: skip

THEMES: dict[str, Theme] = {
    "mixed": Theme(_CALLS, _FAULTS, single=0.05, endless=0.25),
    "outages": Theme(
        _only(_CALLS, "set", "increment", "get", "echo", "pop", traffic=4),
        _only(
            _FAULTS,
            "drop replies",
            "reset",
            "refuse",
            freeze=8,
            cut=8,
            kill=8,
            hang_connects=8,
            forget=6,
            reset_one=6,
        ),
        clients=(1, 1),
        storms=(1, 1),
        impatient=0.5,
        network={"latency": 0.001, "stall": 0.0},
    ),
    "silence": Theme(
        _only(_CALLS, "set", "increment", "get", "echo", "look", "name", traffic=1),
        _only(_FAULTS, "freeze", "cut", "drop replies"),
        clients=(1, 1),
        storms=(1, 1),
        single=0.25,
        impatient=0.6,
        cancel=0.3,
        faults_at_once=(1,),
        network={"latency": 0.001, "stall": 0.0},
        weight=4,
    ),
    "timeouts": Theme(
        _only(_CALLS, "set", "increment", "get", "echo", "pipeline", traffic=6, burst=12),
        _only(
            _FAULTS,
            "lose replies",
            "cut",
            "freeze",
            "busy",
            "pause",
            "break off",
            drop_replies=10,
            hold_replies=10,
            slow=8,
            stall=3,
        ),
        cancel=0.25,
        deadline=0.2,
        policy=_no_time_to_lose,
        network={"latency": 0.02},
        busy_callers=True,
    ),
    "blocking": Theme(
        _only(
            _CALLS,
            "push",
            "set",
            "get",
            "move",
            "stream read",
            "stream add",
            "push binary",
            "pop binary",
            pop=25,
        ),
        _BREAKS
        | _only(_FAULTS, "kill client", "unblock", "garbage", "close one", "stall")
        | {"cut": 4, "lose one": 8},
        endless=0.3,
        cancel=0.4,
        narrow=0.4,
        weight=2,
    ),
    "closing": Theme(
        _only(
            _CALLS,
            "set",
            "increment",
            "get",
            "pop",
            "watch",
            "pipeline",
            traffic=4,
            close=5,
            reopen=4,
            lock=5,
            lock_block=4,
        ),
        _FAULTS,
        cancel=0.2,
        policy=_waits_while_down,
        reopens=0.4,
        weight=2,
    ),
    "sharing": Theme(
        _only(_CALLS, "set", "get", "burst", "increment", "traffic", "pipeline", "pop", "lock")
        | {"visit": 25, "close": 6, "reopen": 3, "close pool": 3, "temporary": 3},
        _FAULTS,
        storms=(0, 2),
        pooled=True,
        reopens=0.5,
    ),
    "closing in outages": Theme(
        _only(_CALLS, "get", "pop", "traffic", set=20, increment=4, close=6, reopen=5),
        _only(
            _FAULTS,
            "freeze",
            "hang connects",
            "refuse",
            "slow",
            "cut",
            kill=8,
            lookup_hangs=8,
            hold_one=5,
            lose_replies=10,
            hold_one_and_reset=8,
            refuse_then_reset=5,
            refuse_writes=8,
        ),
        clients=(1, 1),
        cancel=0.3,
        read_only=0.8,
        policy=_waits_while_down,
        network={"latency": 0.02},
        busy_callers=True,
    ),
    "shared health": Theme(
        _only(_CALLS, "set", "increment", "get", "echo", traffic=6, close=1.2, reopen=0.4),
        _only(
            _FAULTS,
            "kill",
            "freeze",
            "loading",
            "busy",
            "cut",
            "close one",
            "lose replies",
            refuse=8,
            limit_clients=6,
            refuse_writes=12,
            refuse_then_reset=4,
            reset_one=10,
        ),
        clients=(2, 3),
        shared=0.9,
        policy=_tries_seldom,
    ),
    "pipelines": Theme(
        _BATCHES,
        _BREAKS
        | _only(_FAULTS, "lose then refuse", refuse_writes=6, break_off=14, refuse_at_exec=8),
        storms=(2, 4),
        policy=_tries_seldom,
        weight=2,
    ),
    "coincidences": Theme(
        _only(_CALLS, "get", "echo", "traffic", set=8, push=8, burst=30, pipeline=12),
        _only(
            _FAULTS,
            "kill client",
            "freeze",
            refuse_then_reset=6,
            refuse_writes=6,
            reset=6,
            reset_one=10,
            close_one=6,
            hold_one=8,
        ),
        clients=(1, 1),
        storms=(3, 6),
        cancel=0.3,
        read_only=0.8,
        network={"latency": 0.02, "stall": 0.2, "stall_longest": 0.3},
    ),
    "transactions": Theme(
        _only(_CALLS, "get", set=20, watch=25, transaction=5, manual=5),
        _BREAKS | _only(_FAULTS, "busy", refuse_writes=5, lose_then_refuse=3, flap=5, hold_one=16),
        clients=(1, 1),
        storms=(2, 4),
        busy_callers=True,
        weight=2,
    ),
    "permissions": Theme(
        _WRITES | _only(_CALLS, pop=8, set=25, traffic=4),
        _BREAKS | {"deny": 6, "deny then hold one": 16, "hold one and reset": 6},
        storms=(2, 4),
        policy=_overwrites_again,
        weight=3,
    ),
    "demotions": Theme(
        _only(_CALLS, "get", "pop", set=15, increment=3, traffic=20, burst=15, echo=5),
        _only(
            _FAULTS,
            "reset one",
            "hold one and reset",
            "kill",
            refuse_writes=6,
            refuse_then_reset=10,
            refuse_and_hold_one=14,
            fail_over=5,
        ),
        read_only=0.8,
        policy=_overwrites_again,
        network={"latency": 0.02},
        busy_callers=True,
    ),
    "scripts": Theme(
        _only(
            _CALLS,
            "set",
            "get",
            "watch",
            script_read=5,
            script_push=8,
            script_fail=8,
            script_registered=8,
            pipeline=8,
            transaction=8,
            script_large=0.5,
        ),
        _BREAKS
        | _only(
            _FAULTS, "busy", "refuse writes", "lose then refuse", "fail over", forget_scripts=8
        ),
        scripts=0.8,
        single=0.1,
        policy=_repeats_much,
    ),
    "locks": Theme(
        _only(_CALLS, "get", set=3, lock=20, lock_block=12, lock_steal=3, close=1.5, reopen=1.5),
        _FAULTS,
        weight=2,
        clients=(1, 3),
        cancel=0.3,
    ),
    "calm locks": Theme(
        _only(_CALLS, "get", lock=20, lock_block=20, lock_steal=5), {}, clients=(1, 2), cancel=0.2
    ),
    "refusals": Theme(
        _WRITES | _only(_CALLS, "pipeline", "transaction", "script fail"),
        _only(
            _FAULTS,
            "lose replies",
            "reset",
            loading=4,
            refuse_writes=8,
            lose_then_refuse=10,
            busy=6,
            limit_clients=2,
            pause=2,
        ),
        policy=_repeats_much,
    ),
    "overwrites": Theme(
        _only(_CALLS, "get", set=25, watch=6, traffic=4),
        _BREAKS
        | _only(
            _FAULTS,
            "slow",
            "deny",
            busy=10,
            flap=6,
            hold_requests=4,
            hold_and_reset=6,
            hold_one=8,
            hold_one_and_reset=6,
            slow_and_hold_one=12,
        ),
        clients=(1, 1),
        storms=(2, 4),
        cancel=0.3,
        network={"latency": 0.02},
        busy_callers=True,
        weight=3,
    ),
    "restarts": Theme(_CALLS, _only(_FAULTS, "kill", "loading", "refuse", "hang connects")),
    "addresses": Theme(
        _WRITES | _only(_CALLS, "pop"),
        _only(
            _FAULTS,
            "reset",
            "kill",
            "lookup slow",
            fail_over=10,
            lookup_fails=6,
            lookup_hangs=6,
            refuse=3,
            hang_connects=4,
        ),
    ),
    "stalls": Theme(_CALLS, _FAULTS | {"stall": 25}, network={"stall": 0.1, "stall_longest": 0.5}),
    "crowded": Theme(
        _only(_CALLS, "set", "get", push=12, pop=20, set_large=10, get_large=6, burst=10),
        _BREAKS | _only(_FAULTS, "slow"),
        in_flight=64 * 1024,
        cancel=0.5,
        storms=(0, 2),
        network={"latency": 0.02},
        busy_callers=True,
    ),
    "large": Theme(
        _only(_CALLS, "set", "get", "increment", burst=10, set_large=10, get_large=5),
        _only(
            _FAULTS, "slow", "reset", hold_requests=10, cut=4, freeze=6, hold_one=6, refuse_writes=6
        ),
        large=0.8,
        read_only=0.8,
        network={"latency": 0.02},
    ),
    "loading": Theme(
        _WRITES | _only(_CALLS, traffic=20),
        _only(_FAULTS, "kill", loading=20, limit_clients=3),
        busy_callers=True,
        network={"latency": 0.02},
        weight=0.7,
    ),
    "budget": Theme(
        _WRITES | {"burst": 14, "traffic": 3},
        _BREAKS | {"refuse writes": 8, "lose replies": 8, "hold and reset": 6},
        cancel=0.6,
        storms=(2, 4),
        policy=_scarce_budget,
        busy_callers=True,
        weight=3,
    ),
    "deadlines": Theme(_CALLS | {"late": 8}, _FAULTS, deadline=0.6, policy=_waits_while_down),
    "waiting": Theme(
        _WRITES | _only(_CALLS, "pop", "wait up", close=1), _FAULTS, policy=_waits_while_down
    ),
    "bound": Theme(
        _only(_CALLS, "set", "get", "increment", "echo", "pipeline", "push", manual=12, pop=6),
        _BREAKS | _only(_FAULTS, refuse_writes=8, lose_then_refuse=4, flap=8, refuse_then_reset=12),
        single=0.4,
        storms=(0, 3),
    ),
    "credentials": Theme(
        _WRITES | _only(_CALLS, "pop", "look", rotate=8),
        _BREAKS | _only(_FAULTS, wrong_password=10, provider_fails=8),
        credentials=1.0,
    ),
    "fakes": Theme(
        _CALLS | _only(_CALLS, lock=3, lock_block=3, pipeline=10),
        {},
        weight=0.7,
        bare=True,
        clients=(1, 1),
    ),
    "reading": Theme(
        _only(_CALLS, "set", "get", look=10, follow=10, wait_up=4, misuse=3, close=0.5, reopen=0.5),
        _FAULTS,
        shared=0.5,
        impatient=0.4,
    ),
    "values": Theme(
        _only(
            _CALLS,
            "set",
            "get",
            "echo",
            "get several",
            "get range",
            "push",
            "pipeline",
            "no touch",
            name=3,
            set_large=3,
            get_large=3,
            set_binary=6,
            get_binary=10,
            push_binary=5,
            pop_binary=5,
        ),
        _BREAKS,
        decoded=0.6,
    ),
    "calm": Theme(_CALLS, {}, weight=0.7, clients=(1, 2), single=0.2, impatient=0.3),
}
