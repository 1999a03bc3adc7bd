"""Create the picture of a run of `resilient-io doctor` in docs/images: `make screenshots`.

The run is real: the code of the command checks a Redis that is almost full, and a Kafka whose
advertised listener is unreachable. The picture is SVG text of a fixed width, in the reader's fonts.
"""

from __future__ import annotations

import asyncio
import io
import re
import socket
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from resilient_io.cli.doctor import TableReport, examined, plan
from resilient_io.cli.running import Interruption
from resilient_io.cli.vantage import name_of
from resilient_io.testing import KafkaServer, RedisServer, free_port

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
_COLUMNS = 104
_REDIS, _KAFKA = 6379, 9092
_MEMORY = 4 * 1024 * 1024
_FULL = 0.93
_VALUE = "x" * 4096


def main() -> int:
    """Create the picture."""
    console = Console(
        record=True,
        width=_COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        markup=False,
        highlight=False,
    )
    code = asyncio.run(_run(console))
    IMAGES.mkdir(parents=True, exist_ok=True)
    picture = console.export_svg(title="resilient-io doctor", unique_id="doctor")
    # A viewer must not download fonts: their names are enough.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    picture = "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"
    path = IMAGES / "doctor.svg"
    path.write_text(picture, encoding="utf-8")
    print(f"{path.name}: {len(picture) // 1024} KiB, exit code of the run {code}")
    return 0 if code == 1 else 1  # the run has to find the prepared problems


async def _run(console: Console) -> int:
    redis = RedisServer(port=_free(_REDIS), options={"maxmemory": _MEMORY, "appendonly": "yes"})
    kafka = KafkaServer(port=_free(_KAFKA), advertised_port=free_port())
    async with redis, kafka:
        number, used = 0, 0
        while used < _MEMORY * _FULL:
            number += 1
            await redis.query("SET", f"session:{number}", _VALUE)
            facts = await redis.query("INFO", "memory")
            used = int(str(facts).partition("used_memory:")[2].partition("\\r")[0])
        urls = [f"redis://localhost:{redis.port}", f"kafka://localhost:{kafka.port}"]
        console.print(Text(f"$ resilient-io doctor --no-ground {' '.join(urls)}", style="dim"))
        planned = plan(
            urls,
            [name_of(url) for url in urls],
            timeout=10.0,
            group=None,
            topics=[],
            with_ground=False,  # depends on the machine
        )
        return await examined(planned, TableReport(console), Interruption())


def _free(port: int) -> int | None:
    """Return the default port if it is free, so that the pictures stay the same."""
    with socket.socket() as tried:
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return None
    return port


if __name__ == "__main__":
    sys.exit(main())
