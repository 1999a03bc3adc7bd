"""Draws the plan of a run from its seed: which clients, calls and faults there are.

A theme puts all weight on one subject. Without a theme, a seed draws one, or mixes everything. Each
seed also leaves out a random part of the kinds of calls and faults (swarm testing): a fault that is
always present would hide what happens without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Any

from .faults import INSTANT
from .plan import Call, Caller, ClientSetup, Fault, NetworkSettings, Plan
from .workload import SPACING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


_WEIGHTS = (list(THEMES), [each.weight for each in THEMES.values()])


def draw_plan(seed: int, theme: str | None = None) -> Plan:
    """Return the plan of a seed."""
    rng = Random(f"plan/{seed}/{theme or ''}")
    name = theme or ("mixed" if rng.random() < 0.3 else rng.choices(*_WEIGHTS)[0])
    drawer = _Drawer(rng, THEMES[name])
    clients = drawer.clients()
    faults = drawer.faults()
    return Plan(
        seed=seed,
        theme=name,
        clients=clients,
        callers=drawer.callers(clients),
        faults=faults,
        network=drawer.network(),
        server=drawer.server(),
    )


class _Drawer:
    def __init__(self, rng: Random, theme: Theme) -> None:
        self.rng = rng
        self.theme = theme
        calls = self._swarm(theme.calls, 0.3)
        # For `Random.choices`, which would add up the weights for each choice.
        self._kinds, self._weights = list(calls), list(accumulate(calls.values()))
        self._faults = self._swarm(theme.faults, 0.5)
        self._span = rng.choice([3.0, 6.0, 10.0])
        """Seconds in which calls and faults are made."""

    def _swarm(self, weights: Mapping[str, float], left_out: float) -> dict[str, float]:
        rng = self.rng
        kept = {
            name: weight
            for name, weight in weights.items()
            if weight >= 5 or rng.random() >= left_out
        }
        return kept or dict(weights)

    def clients(self) -> tuple[ClientSetup, ...]:
        rng, theme = self.rng, self.theme
        count = rng.randint(*theme.clients)
        return tuple(self._client("abc"[index]) for index in range(count))

    def _client(self, label: str) -> ClientSetup:
        rng, theme = self.rng, self.theme
        policy: dict[str, Any] = {
            "deadline": rng.choice([1.0, 2.0, 5.0, 5.0]),
            "response_timeout": rng.choice([0.3, 0.5, 1.0]),
            "connect_timeout": rng.choice([0.3, 0.5, 1.0]),
            "repeat": rng.choice(["read", "idempotent", "idempotent", "conditional", "any"]),
            "while_down": rng.choice(["fail", "fail", "wait"]),
            "attempts": rng.choice([1, 2, 3, 3, 3, 5]),
            "outage_wait": rng.choice([0.0, 0.3, 1.0, 1.0, 1.0, 3.0]),
        }
        if theme.policy is not None:
            theme.policy(rng, policy)
        # One client with several connections is enough to show what can go wrong between them.
        counts = [1, 2, 2, 3] if label == "a" else [1, 1, 1, 2]
        connections: dict[str, Any] = {"count": rng.choice(counts)}
        if theme.in_flight is not None:
            connections["in_flight"] = theme.in_flight
        return ClientSetup(
            label=label,
            policy=policy,
            connections=connections,
            health=self._health(),
            shares_health_of="a" if label != "a" and rng.random() < theme.shared else None,
            protocol=rng.choice([2, 3, 3]),
            single=rng.random() < theme.single,
            options=self._options(),
            form=self._form(),
        )

    def _form(self) -> dict[str, Any]:
        """Return how a client is made: most often in the usual way."""
        rng = self.rng
        form: dict[str, Any] = {}
        if self.theme.bare:
            form["bare"] = True
        elif rng.random() < 0.15:
            form["by_url"] = True
        if rng.random() < 0.05 and "fail over" not in self._faults:
            form["by_address"] = True
        if rng.random() < 0.12:
            form[rng.choice(["traced", "traced", "patched"])] = True
        if rng.random() < self.theme.reopens:
            form["reopens"] = True
        if self.theme.pooled:
            form["pooled"] = True
        if self.theme.credentials:
            form["login"] = rng.choice(["rotating", "rotating", "password", "user", "provider"])
        return form

    def _health(self) -> dict[str, float]:
        rng = self.rng
        settings: dict[str, float] = {}
        if rng.random() < 0.5:
            settings["refusal_hold"] = rng.choice([2.0, 10.0, 10.0])
        if rng.random() < self.theme.impatient:
            settings |= {"timeout": rng.choice([0.3, 0.5]), "interval": rng.choice([0.3, 1.0])}
        if rng.random() < 0.5:
            settings["reconnect_interval"] = rng.choice([0.3, 0.5])
        if rng.random() < 0.2:
            settings |= {"short_outage": rng.choice([1.0, 3.0]), "reconnect_interval_cap": 1.0}
        return settings

    def _options(self) -> dict[str, Any]:
        rng = self.rng
        options: dict[str, Any] = {}
        if rng.random() < self.theme.decoded:
            options["decode_responses"] = True
        if rng.random() < self.theme.narrow:
            options["max_connections"] = rng.choice([1, 2, 3])
        if rng.random() < 0.75:
            options["driver_info"] = None  # without CLIENT SETINFO, a connection costs less
        return options

    def callers(self, clients: tuple[ClientSetup, ...]) -> tuple[Caller, ...]:
        rng, theme = self.rng, self.theme
        count = rng.randint(4, 8) if theme.busy_callers else rng.randint(2, 6)
        total = rng.randint(26, 52)
        number = 0
        callers = []
        for index in range(count):
            calls = []
            pause = self._span / max(1, total / count) * rng.choice([0.3, 1.0])
            rarely = rng.choice([1, 1, 1, 5])  # some callers make few calls
            pause *= rarely
            for _ in range(max(2, total // count // rarely)):
                number += SPACING
                calls.append(self._call(number, pause))
            callers.append(Caller(index, rng.choice(clients).label, tuple(calls)))
        return tuple(callers)

    def _call(self, number: int, pause: float) -> Call:
        rng, theme = self.rng, self.theme
        kind = rng.choices(self._kinds, cum_weights=self._weights)[0]
        cancel = rng.random() < theme.cancel
        limited = rng.random() < theme.deadline or kind == "late"
        arguments = self._arguments(kind)
        cancel_after = self._soon(kind) if cancel else None
        if kind == "pop" and rng.random() < theme.endless:
            arguments["timeout"] = 0  # without a limit, until it is cancelled
            cancel_after = rng.uniform(0.0, 3.0)
        view = None
        if rng.random() < 0.1:
            view = {"repeat": rng.choice(["read", "idempotent", "conditional", "any"])}
        return Call(
            number=number,
            kind=kind,
            pause=rng.expovariate(1 / pause) if rng.random() < 0.8 else 0.0,
            cancel_after=cancel_after,
            deadline=rng.choice([0.001, 0.02, 0.2, 1.0]) if limited else None,
            view=view if kind not in _WITHOUT_VIEWS else None,
            arguments=arguments,
        )

    def _soon(self, kind: str) -> float:
        """Return a time at which a call is likely to be under way."""
        rng = self.rng
        if kind == "burst" and rng.random() < 0.5:
            return 0.0  # before the calls are written
        soon = rng.choice([0.003, 0.1, 0.1, 0.5, 2.0])
        return 0.0 if rng.random() < 0.2 else rng.uniform(0, soon)

    def _arguments(self, kind: str) -> dict[str, Any]:
        rng = self.rng
        arguments: dict[str, Any] = {"key": rng.choice([0, 0, 1, 2])}
        if kind in ("pipeline", "transaction", "manual"):
            letters = rng.choice(
                ["sig", "spge", "siphegw", "se", "g", "ss", "sgg", "ppi", "sd", "sdd"]
            )
            arguments["shape"] = "".join(rng.choices(letters, k=rng.randint(1, 6)))
            if kind == "pipeline" and rng.random() < 0.4:  # it writes, and then only reads
                writes = rng.choices("sip", k=rng.randint(1, 3))
                arguments["shape"] = "".join([*writes, *rng.choices("ge", k=rng.randint(1, 4))])
            arguments["raises"] = rng.random() < 0.2
            if kind != "manual":
                self._batch_arguments(kind, arguments)
        if kind in ("manual", "watch", "peek"):
            arguments["think"] = rng.choice([0, 0.001, 0.3, 0.3, 1.2])
        if kind == "peek":
            arguments["ends"] = rng.choice(["leave", "reset", "raise", "unwatch"])
        if kind == "watch":
            arguments["by_script"] = rng.random() < 0.2
            arguments["guarded"] = rng.random() < 0.5  # it writes another key than it watches
        if kind in ("pop", "move", "stream read"):
            arguments["timeout"] = rng.choice([0.2, 1, 1, 3])
            arguments["tail"] = rng.random() < 0.3
        if kind == "pop":
            arguments["second"] = rng.random() < 0.2
        if kind in ("lock", "lock block"):
            self._lock_arguments(kind, arguments)
        if kind == "burst":
            arguments["count"] = rng.randint(2, 8)
            arguments["letter"] = "l" if rng.random() < self.theme.large else rng.choice("ps")
            arguments["kept"] = rng.choice([0, rng.getrandbits(8)])
        if kind == "traffic":
            arguments["count"] = rng.randint(5, 19)
            arguments["pause"] = rng.choice([0.0, 0.001, 0.02, 0.1, 0.4])
            arguments["letter"] = rng.choice("gis")
        if kind == "follow":
            arguments["how"] = rng.choice(["watch", "watch", "change", "update", "recorder"])
            arguments["seconds"] = rng.choice([0.5, 2.0, 5.0])
            arguments["slow"] = rng.choice([0.0, 0.05, 0.3])
        if kind in ("visit", "temporary"):
            arguments["count"] = rng.choice([0, 1, 3, 6])
            arguments["pause"] = rng.choice([0.0, 0.001, 0.02, 0.3])
            arguments["letter"] = rng.choice("isg")
        if kind == "visit":
            arguments["ends"] = rng.choice(["close", "close", "drop", "early", "pool"])
            arguments["rest"] = rng.choice([0.0, 0.0, 0.5, 4.0, 9.99, 10.0, 10.01, 15.0])
        if kind == "set binary":
            arguments["packed"] = rng.random() < 0.3
        if kind == "misuse":
            arguments["what"] = rng.choice(
                [
                    *("batch", "lock", "plain lock", "not held", "not fenced", "release", "with"),
                    *("health", "select"),
                ]
            )
        if kind == "close":
            arguments["twice"] = rng.random() < 0.3
            arguments["calls"] = rng.choice([0, 0, 4, 10])
            arguments["before"] = rng.randrange(4)
            arguments["reopens"] = rng.choice([None, None, None, 0.0, 0.001, 0.03])
        return arguments

    def _batch_arguments(self, kind: str, arguments: dict[str, Any]) -> None:
        rng = self.rng
        scripts, single = rng.random() < self.theme.scripts, rng.random() < 0.15
        if scripts:
            letters = rng.choice(["xyzvrl", "xs", "xyg", "v", "yv", "x"])
            more = rng.choices(letters, k=rng.randint(1, 3))
            first = arguments["shape"][: rng.randint(0, 2)]
            if rng.random() < 0.5:  # the scripts come last
                arguments["shape"] = "".join([*first, *more])
            else:
                arguments["shape"] = "".join(rng.sample([*first, *more], k=len(first) + len(more)))
        if single:
            letter = "u" if kind == "transaction" else rng.choice("bmukk")
            arguments["shape"] += letter
        if rng.random() < 0.15:
            arguments[rng.choice(["discards", "again", "multi"])] = True

    def _lock_arguments(self, kind: str, arguments: dict[str, Any]) -> None:
        rng = self.rng
        arguments["hold"] = rng.choice([0.0, 0.01, 0.3, 0.3, 1.0, 3.0])
        arguments["timeout"] = rng.choice([0.5, 1.0, 3.0, 3.0, 10.0, None])
        arguments["blocking"] = rng.choice([0.0, 0.5, 0.5, 2.0])
        arguments["fencing"] = rng.random() < 0.3
        arguments["renew"] = arguments["timeout"] is not None and rng.random() < 0.4
        if kind == "lock block":
            arguments["cancels"] = rng.random() < 0.8
            arguments["strict"] = rng.random() < 0.7
            arguments["raises"] = rng.random() < 0.15
            return
        arguments["watched"] = rng.random() < 0.5
        if arguments["timeout"] is not None and rng.random() < 0.4:
            arguments["extend"] = rng.choice(["replace", "add", "reacquire"])

    def faults(self) -> tuple[Fault, ...]:
        rng, theme = self.rng, self.theme
        if not self._faults or rng.random() < 0.03:
            return ()
        faults = []
        for _ in range(rng.randint(*theme.storms)):
            moment = rng.uniform(0.05, self._span)
            for _ in range(rng.choice([1, 1, 2, 3])):
                kind = rng.choices(list(self._faults), list(self._faults.values()))[0]
                faults.append(self._fault(len(faults), kind, moment + rng.expovariate(5)))
        return tuple(sorted(faults, key=lambda fault: fault.at))

    def _fault(self, number: int, kind: str, at: float) -> Fault:
        rng = self.rng
        if kind in INSTANT:
            seconds = 0.0
        elif kind == "stall":
            seconds = rng.choice([0.05, 0.3, 1.0, 1.5, 2.5])
        elif kind == "deny":
            seconds = rng.choice([3.0, 20.0])
        elif kind in ("hold one", "hold one and reset", "deny then hold one"):
            seconds = rng.choice([0.1, 1.0, 3.0, 5.0]) * rng.uniform(0.5, 1.2)
        elif kind == "busy":
            seconds = rng.choice([0.1, 0.5, 2.0, 4.0]) * rng.uniform(0.5, 1.2)
        elif kind == "loading":
            seconds = rng.choice([0.1, 0.5, 2.0, 5.0, 8.0]) * rng.uniform(0.5, 1.2)
        else:
            seconds = rng.choice([0.02, 0.1, 0.5, 1.5, 3.0, 5.0]) * rng.uniform(0.5, 1.2)
        arguments: dict[str, Any] = {"index": rng.randrange(8), "latest": rng.random() < 0.4}
        if not arguments["latest"]:
            arguments["newest"] = rng.random() < 0.4
        if kind in _DELAYED:
            arguments["delay"] = rng.choice([0.001, 0.02, rng.uniform(0.0, 0.1), 0.1, 0.6])
            if kind.startswith("hold") and rng.random() < 0.4:
                # What is held arrives while the client replaces the connection.
                seconds = arguments["delay"] + rng.uniform(0.0, 0.06)
        if kind == "refuse and hold one":
            arguments["delay"] = rng.choice([0.0, 0.01, 0.02, 0.03])
            seconds = rng.choice([0.2, 0.3, 1.0])
        if kind == "slow and hold one":
            arguments["extra"] = rng.choice([0.05, 0.1])
            arguments["delay"] = rng.choice([0.02, 0.1, 0.3])
            seconds = arguments["delay"] + rng.uniform(0.1, 0.3)
        if kind == "flap":
            arguments["delay"] = rng.choice([0.03, 0.1, 0.4])
            seconds = min(seconds, 12 * arguments["delay"])  # more resets show nothing new
        if kind == "break off":
            arguments["direction"] = rng.choice(["requests", "replies", "replies"])
        if kind in ("refuse writes", "lose then refuse", "refuse then reset", "refuse at exec"):
            arguments["why"] = rng.choice(["OOM", "NOREPLICAS", "MISCONF"])
            if rng.random() < self.theme.read_only:
                arguments["why"] = "READONLY"
        if kind == "slow":
            arguments["extra"] = rng.choice([0.02, 0.1, 0.15, 0.3])
        if kind == "kill":
            arguments["keep_data"] = rng.random() < 0.7
            arguments["loading"] = rng.choice([0.0, 0.0, 0.3, 2.0])
            arguments["silently"] = rng.random() < 0.2
        if kind == "pause":
            arguments["mode"] = rng.choice(["ALL", "WRITE"])
        if kind == "limit clients":
            arguments["count"] = rng.choice([0, 2, 4])
        if kind == "deny":
            arguments["commands"] = rng.choice(_DENIED)
        if kind == "deny then hold one":
            arguments["commands"] = rng.choice(_DENIED[:5])
        if kind == "unblock":
            arguments["error"] = rng.random() < 0.5
        return Fault(number, kind, at, seconds, arguments)

    def network(self) -> NetworkSettings:
        rng = self.rng
        values = {
            "latency": rng.choice([0.0001, 0.0002, 0.001, 0.02]),
            "jitter": rng.choice([0.0, 0.0005, 0.005]),
            "split": rng.choice([0.0, 0.1, 0.5]),
            "stall": rng.choice([0.0, 0.01, 0.05]),
            "kernel": rng.random() < 0.5,
        }
        return NetworkSettings(**values | dict(self.theme.network))

    def server(self) -> dict[str, Any]:
        rng = self.rng
        return {
            "version": rng.choice(["redis 7.0.15", "valkey 9.1.2"]),
            "password": rng.random() < self.theme.credentials,
            "busy_threshold": rng.choice([0.05, 0.3, 1.0]),
            "replica_lag": rng.choice([0.001, 0.01, 0.2]),
        }


_WITHOUT_VIEWS = (
    "close", "reopen", "visit", "close pool", "temporary", "rotate", "wait up", "look", "follow",
    "misuse",
)  # fmt: skip

_DELAYED = (
    "deny then hold one", "hold and reset", "hold one and reset", "slow and hold one",
    "lose replies", "lose then refuse", "refuse then reset",
)  # fmt: skip

_DENIED = [
    ["CLIENT|KILL"],
    ["CLIENT|KILL"],
    ["CLIENT|LIST"],
    ["CLIENT|ID"],
    ["CLIENT|SETNAME"],
    ["CLIENT|UNBLOCK"],
    ["CLIENT|TRACKING"],
    ["EVAL"],
    ["CLIENT"],
    ["PING"],
]
