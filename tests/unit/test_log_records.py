"""Every record that the library logs has fields, and docs/howto/logs.md tells of all of them."""

import ast
import logging
import re
from pathlib import Path

import pytest

import resilient_io
from resilient_io import Dependency, State
from resilient_io.health import Cause, ProbeFailed

PACKAGE = Path(resilient_io.__file__).parent
PAGE = PACKAGE.parents[1] / "docs" / "howto" / "logs.md"
OTHERS = ("testing", "demo")  # they talk to a terminal
LEVELS = ("debug", "info", "warning", "error", "exception", "critical", "log")
RESERVED = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}


def calls_of(path):
    """Return the calls of a module's logger, which is called log or _log everywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="log" | "_log"), attr=attribute)):
                if attribute in LEVELS:
                    yield node


def logger_of(path):
    """Return the end of a logger's name; a folder's modules may share one."""
    for each in (path, *sorted(path.parent.glob("*.py"))):
        if found := re.search(r'getLogger\("resilient_io\.?(\w*)"\)', each.read_text()):
            return found[1]
    raise AssertionError(f"{path} has no logger")


def fields_of(call):
    for keyword in call.keywords:
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
            return {
                key.value: value
                for key, value in zip(keyword.value.keys, keyword.value.values, strict=True)
            }
    return None


EVENTS_OF = {
    # The one place that logs several events: the word is given to it.
    "failures.py": {"dead_lettered", "sent_to_retry_topic", "skipped", "verdict_delayed"},
}


def logged():
    """Return the logger and the fields of each event, as the source has them."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in OTHERS:
            continue
        for call in calls_of(path):
            where = f"{path.relative_to(PACKAGE)}:{call.lineno}"
            fields = fields_of(call)
            assert fields is not None, f'{where}: give it extra={{"event": ..., ...}}'
            assert "event" in fields, f'{where}: its extra= has no "event"'
            assert not fields.keys() & RESERVED, f"{where}: logging has such a field itself"
            event = fields.pop("event")
            names = [event.value] if isinstance(event, ast.Constant) else EVENTS_OF[path.name]
            for name in names:
                found.setdefault(name, (logger_of(path), set()))[1].update(fields)
    return found


def documented():
    """Return the logger and the fields of each event, as the page has them."""
    rows = re.findall(r"^\| `(\w+)` \| (\w*) \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE)
    return {event: (logger, set(re.findall(r"`(\w+)`", fields))) for event, logger, fields in rows}


def test_the_page_tells_of_every_record_and_of_no_other():
    assert documented() == logged()
    assert len(documented()) > 25


@pytest.mark.virtual_time
async def test_a_transition_has_the_fields_that_the_page_says(caplog):
    async def probe(_suspicious):
        raise ProbeFailed(Cause.REFUSED, "nothing listens")

    dependency = Dependency("redis")
    with caplog.at_level(logging.INFO, "resilient_io"):
        dependency.start(probe, last_reply=lambda: float("-inf"))
        async for change in dependency.watch():
            if change.state is State.DOWN:
                break
        await dependency.aclose()
    record = next(each for each in caplog.records if each.event == "state_changed")
    assert {name: getattr(record, name) for name in documented()["state_changed"][1]} == {
        "dependency": "redis",
        "state": "down",
        "previous": "unknown",
        "cause": "refused",
        "detail": "nothing listens",
        "after": record.after,
        "probes": record.probes,
        "probes_failed": record.probes_failed,
        "failures": 0,
        "refusals": 0,
    }
    assert record.probes_failed >= 1
