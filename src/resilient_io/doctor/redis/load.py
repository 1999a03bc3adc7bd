"""How busy a Redis server is: what held it up, and whether its one thread has time."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final

from resilient_io.doctor.looking import Finding, merged, note, ok, problem

from .account import Unanswered, number, read_info, text_of

if TYPE_CHECKING:
    from .account import Account

__all__ = ["look_at_load", "look_at_slow_log"]

_ASKED: Final = 32
_RECENT: Final = 3600
_HELD_UP: Final = 100_000
"""Microseconds of one command that others notice."""

_LONG: Final = 1_000_000
_NAMED: Final = 3
_COMMAND: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,40}")

_INSTEAD: Final = {
    "KEYS": "SCAN",
    "FLUSHALL": "FLUSHALL ASYNC",
    "FLUSHDB": "FLUSHDB ASYNC",
    "DEL": "UNLINK",
    "HGETALL": "HSCAN, or smaller hashes",
    "SMEMBERS": "SSCAN",
    "LRANGE": "shorter ranges",
    "ZRANGE": "shorter ranges",
    "SORT": "sorting in the client",
    "EVAL": "shorter scripts",
    "EVALSHA": "shorter scripts",
    "DEBUG": "no DEBUG on a server in use",
}

_PINGS: Final = 10
_PAUSE: Final = 0.05
_BUSY: Final = 0.9
_SLOW: Final = 0.1
_FORK: Final = 500_000


async def look_at_slow_log(account: Account) -> Finding:
    """Look which commands held the server up in the last hour; their arguments stay there."""
    entries = await account.ask("SLOWLOG", "GET", _ASKED)
    now = float(text_of((await account.ask("TIME"))[0]))
    recent = [entry for entry in map(_read_entry, entries) if now - entry[1] < _RECENT]
    data = {
        "entries": len(entries),
        "last_hour": [
            {"command": command, "seconds": round(micros * 1e-6, 6), "ago": round(now - at)}
            for micros, at, command in sorted(recent, reverse=True)[:_NAMED]
        ],
    }
    bad = sorted((entry for entry in recent if entry[0] >= _HELD_UP), reverse=True)
    if not bad:
        count = "nothing" if not entries else f"nothing over {_HELD_UP / 1000:.0f} ms"
        return ok(f"{count} in the last hour", **data)
    named = ", ".join(
        f"{command} {micros * 1e-6:.1f} s ({int(now - at)} s ago)"
        for micros, at, command in bad[:_NAMED]
    )
    commands = list(dict.fromkeys(command for _, _, command in bad[:_NAMED]))
    instead = [f"{_INSTEAD[name]} instead of {name}" for name in commands if name in _INSTEAD]
    advice = "While one command runs, all others wait: " + (
        f"use {'; '.join(instead)}." if instead else "make them smaller, or rarer."
    )
    found = f"{len(bad)} commands held it up in the last hour: {named}"
    if len(bad) == 1:
        found = f"one command held it up in the last hour: {named}"
    return (problem if bad[0][0] >= _LONG else note)(found, advice, **data)


def _read_entry(entry: Any) -> tuple[int, float, str]:
    """Give microseconds, server time and the command's name; its arguments may be secrets."""
    name = text_of(entry[3][0]) if entry[3] else ""
    return int(entry[2]), float(entry[1]), name.upper() if _COMMAND.fullmatch(name) else "?"


async def look_at_load(account: Account) -> Finding:
    """Look for half a second how fast it answers, and how much of its time it works."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    before = await _cpu(account)
    took = []
    for _ in range(_PINGS):
        asked = loop.time()
        await account.ask("PING")
        took.append(loop.time() - asked)
        await asyncio.sleep(_PAUSE)
    after = await _cpu(account)
    passed = loop.time() - began
    took.sort()
    data: dict[str, Any] = {
        "ping_median": round(took[_PINGS // 2], 6),
        "ping_worst": round(took[-1], 6),
    }
    findings = []
    answer = f"answers in {took[_PINGS // 2] * 1e3:.1f} ms (at most {took[-1] * 1e3:.1f} ms)"
    if before is not None and after is not None:
        share = data["busy"] = round(min(max((after - before) / passed, 0.0), 1.0), 3)
        answer += f", busy {share:.0%} of its time"
        if share > _BUSY:
            findings.append(
                problem(
                    answer,
                    "Its one thread does nothing but work: look at INFO commandstats for what is "
                    "called most, and share the keys out over more servers.",
                )
            )
    if not findings and took[_PINGS // 2] > _SLOW:
        findings.append(
            note(answer, "The way there is long, or something holds it up: see the slow log.")
        )
    fork = number(await account.info(), "latest_fork_usec")
    if fork > _FORK:
        findings.append(
            note(
                f"its last snapshot stopped it for {fork * 1e-6:.1f} s",
                "Take snapshots on a replica, or keep less data on one server.",
            )
        )
    if not findings:
        return ok(answer, **data)
    return merged(findings, **data)


async def _cpu(account: Account) -> float | None:
    """Give the seconds that its main thread has worked; None where it does not say."""
    try:
        info = read_info(text_of(await account.ask("INFO", "cpu")))
    except Unanswered:
        return None
    for suffix in ("_main_thread", ""):
        user, system = (f"used_cpu_{kind}{suffix}" for kind in ("user", "sys"))
        if user in info and system in info:
            return number(info, user) + number(info, system)
    return None
