"""`resilient-io dlq`: list, show and replay the dead letters of a topic."""

from __future__ import annotations

import contextlib
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError

from resilient_io.errors import ConfigurationError, ResilientIOError
from resilient_io.kafka import (
    DeadLetterFilter,
    ReplayReport,
    StoredDeadLetter,
    read_dead_letters,
    replay_dead_letters,
)

from . import INTERRUPTED, PROBLEMS
from .terminal import complain, json_line, write_line

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from .terminal import Interruption

_SHOWN = 500  # most characters of a value


def read_time(name: str, text: str | None) -> datetime | None:
    """Return the time of an option in ISO 8601; without a time zone, it is in UTC."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"{name} {text!r} is not a time in ISO 8601: use for example 2026-01-31T13:00"
        ) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


async def list_letters(
    url: str, topic: str, select: DeadLetterFilter, interruption: Interruption, *, as_json: bool
) -> int:
    """Show how many dead letters there are of each original topic and error."""
    counts: Counter[tuple[str, str]] = Counter()
    times: dict[tuple[str, str], tuple[int, int]] = {}

    async def read() -> None:
        async with contextlib.aclosing(read_dead_letters(url, topic, select=select)) as letters:
            async for letter in letters:
                kind = (letter.topic or "unknown", letter.error or "unknown")
                counts[kind] += 1
                at = letter.record.timestamp
                first, last = times.get(kind, (at, at))
                times[kind] = (min(first, at), max(last, at))

    code = await _run(read(), interruption)
    for kind, count in counts.most_common():
        first, last = map(_iso, times[kind])
        facts = dict(zip(("topic", "error"), kind, strict=True))
        if as_json:
            json_line({**facts, "count": count, "first": first, "last": last})
        else:
            write_line(f"{count:8,}  {kind[0]}  {kind[1]}  {first} to {last}")
    total = counts.total()
    if not as_json and (total or code != PROBLEMS):
        write_line(f"{total:8,}  dead {'letter' if total == 1 else 'letters'} in {topic}")
    return code


async def show_letters(
    url: str,
    topic: str,
    select: DeadLetterFilter,
    interruption: Interruption,
    *,
    limit: int,
    as_json: bool,
) -> int:
    """Show single dead letters with their contents."""

    async def read() -> None:
        shown = 0
        async with contextlib.aclosing(read_dead_letters(url, topic, select=select)) as letters:
            async for letter in letters:
                _show(letter, as_json=as_json)
                shown += 1
                if shown == limit:
                    return

    return await _run(read(), interruption)


async def replay_letters(
    url: str,
    topic: str,
    select: DeadLetterFilter,
    interruption: Interruption,
    *,
    dry_run: bool,
    rate: float,
    max_replays: int,
    as_json: bool,
) -> int:
    """Replay dead letters, and show the counts, also after an interruption."""
    latest = ReplayReport()

    def note(report: ReplayReport) -> None:
        nonlocal latest
        latest = report

    async def replay() -> None:
        await replay_dead_letters(
            url,
            topic,
            select=select,
            dry_run=dry_run,
            rate=rate,
            max_replays=max_replays,
            progress=note,
        )

    code = await _run(replay(), interruption)
    counts = {
        "would be replayed" if dry_run else "replayed": latest.replayed,
        "not selected": latest.not_selected,
        f"replayed {max_replays} times before": latest.over_limit,
        "without an origin": latest.without_origin,
    }
    if as_json:
        json_line({"dry_run": dry_run, **_facts(latest)})
    else:
        write_line(", ".join(f"{count:,} {what}" for what, count in counts.items()))
    return code


async def _run(work: Awaitable[None], interruption: Interruption) -> int:
    async def waiting() -> None:
        await work

    try:
        return INTERRUPTED if await interruption.before(waiting()) else 0
    except (ResilientIOError, KafkaError) as error:
        if isinstance(error, ConfigurationError):
            raise
        complain("dlq", "; ".join([str(error), *getattr(error, "__notes__", ())]))
        return PROBLEMS


def _show(letter: StoredDeadLetter, *, as_json: bool) -> None:
    record = letter.record
    facts: dict[str, Any] = {
        "at": f"{record.partition}@{record.offset}",
        "written": _iso(record.timestamp),
        "from": f"{letter.topic}[{letter.partition}]@{letter.offset}",
        "error": letter.error,
        "message": letter.message,
        "attempts": letter.attempts,
        "replays": letter.replays,
        "headers": {name: _shown(value) for name, value in letter.original_headers()[:-1]},
        "key": _shown(record.raw_key),
        "value": _shown(record.raw_value),
    }
    if as_json:
        json_line(facts)
        return
    write_line(f"{facts.pop('at')}")
    for name, value in facts.items():
        write_line(f"  {name:9} {value}")


def _shown(data: bytes | None) -> str | None:
    if data is None:
        return None
    text = data.decode(errors="backslashreplace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(data):,} bytes)"


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _facts(report: ReplayReport) -> dict[str, int]:
    return {
        "replayed": report.replayed,
        "not_selected": report.not_selected,
        "over_limit": report.over_limit,
        "without_origin": report.without_origin,
    }
