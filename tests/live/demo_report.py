"""What the tests of the demo read: the lines of a report, and the processes that it left."""

import contextlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def row(output, label):
    """Return the two numbers of a line of the report."""
    found = re.search(rf"^ *{re.escape(label)} +([\d,]+) +([\d,]+)$", output, re.MULTILINE)
    assert found, f"no line {label!r} in:\n{output}"
    return [int(number.replace(",", "")) for number in found.groups()]


def processes_of(folder):
    """Return the command lines of living processes that name a folder."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(entry.read_bytes().replace(b"\0", b" ").decode())
    return [line for line in lines if str(folder) in line]
