"""Draws the plan of a run from its seed: which clients, calls and faults there are.

A theme puts all weight on one subject. Without a theme, a seed draws one, or mixes everything. Each
seed also leaves out a random part of the kinds of calls and faults (swarm testing): a fault that is
always present would hide what happens without it.
"""

from __future__ import annotations

from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Any

from .faults import INSTANT
from .plan import Call, Caller, ClientSetup, Fault, NetworkSettings, Plan
from .themes import THEMES
from .workload import SPACING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .themes import Theme

_WEIGHTS = (list(THEMES), [each.weight for each in THEMES.values()])


def draw_plan(seed: int, theme: str | None = None) -> Plan:
    """Return the plan of a seed."""
    rng = Random(f"plan/{seed}/{theme or ''}")
    name = theme or ("mixed" if rng.random() < 0.3 else rng.choices(*_WEIGHTS)[0])
    drawer = _Drawer(rng, THEMES[name])
    clients = drawer.clients()
    faults = drawer.faults()
    callers = drawer.callers(clients)
    return Plan(
        seed=seed,
        theme=name,
        clients=clients,
        callers=(*callers, *drawer.closers(clients, faults, len(callers))),
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

    def closers(
        self, clients: tuple[ClientSetup, ...], faults: tuple[Fault, ...], first: int
    ) -> tuple[Caller, ...]:
        """Return callers that close a client soon after a fault, as who gives up would."""
        rng = self.rng
        if "close" not in self._kinds or not faults or rng.random() < 0.5:
            return ()
        fault = rng.choice(faults)
        calls = []
        soon = rng.choice([0.01, 0.1, 0.1, 1.0])
        for index, kind in enumerate(["close", "reopen"][: rng.choice([1, 2])]):
            calls.append(
                Call(
                    number=(_CLOSERS + index) * SPACING,
                    kind=kind,
                    pause=(0.0 if index else fault.at) + rng.uniform(0.0, soon),
                    arguments=self._arguments(kind),
                )
            )
        return (Caller(first, rng.choice(clients).label, tuple(calls)),)

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
            arguments["letter"] = rng.choice("gise")
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
            for _ in range(rng.choice(theme.faults_at_once)):
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
        if kind in _CONNECTING and rng.random() < 0.4:
            arguments["resets"] = True
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
        if rng.random() < 0.2 and not self._needs_room():
            values["send_buffer"] = rng.choice([60, 60, 300])
        return NetworkSettings(**values | dict(self.theme.network))

    def _needs_room(self) -> bool:
        """Return whether large values are sent, or locks are held whose time passes meanwhile."""
        kinds = ("large", "lock")
        return self.theme.large > 0 or any(each in kind for each in kinds for kind in self._kinds)

    def server(self) -> dict[str, Any]:
        rng = self.rng
        return {
            "version": rng.choice(["redis 7.0.15", "valkey 9.1.2"]),
            "password": rng.random() < self.theme.credentials,
            "busy_threshold": rng.choice([0.05, 0.3, 1.0]),
            "replica_lag": rng.choice([0.001, 0.01, 0.2]),
        }


_CLOSERS = 1000  # their calls have numbers that no other call has

_WITHOUT_VIEWS = (
    "close", "reopen", "visit", "close pool", "temporary", "rotate", "wait up", "look", "follow",
    "misuse",
)  # fmt: skip

_DELAYED = (
    "deny then hold one", "hold and reset", "hold one and reset", "slow and hold one",
    "lose replies", "lose then refuse", "refuse then reset",
)  # fmt: skip

_CONNECTING = ("lookup fails", "lookup hangs", "lookup slow", "refuse", "hang connects")
"""Faults that only clients notice which connect."""

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
