"""Create the picture of a `resilient-io doctor` run in docs/images: `make screenshots`.

It shows a real run of the command's own code, on a replica of a real Redis and a real Kafka whose
advertised listener cannot be reached. The picture is text in SVG of a fixed width, in the fonts of
the reader.
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

from resilient_io.cli.app import read_urls
from resilient_io.cli.doctor import plan, run_examinations
from resilient_io.cli.terminal import Interruption, Report
from resilient_io.testing import KafkaServer, RedisServer, free_port

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
_COLUMNS = 104
_REDIS, _KAFKA = 6379, 9092


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
    # No font is fetched from a server: the names are enough.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    picture = "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"
    path = IMAGES / "doctor.svg"
    path.write_text(picture, encoding="utf-8")
    print(f"{path.name}: {len(picture) // 1024} KiB, exit code of the run {code}")
    return 0 if code == 1 else 1  # the run must find the prepared problems


async def _run(console: Console) -> int:
    master = RedisServer()
    redis = RedisServer(port=_free(_REDIS), replica_of=master)
    kafka = KafkaServer(port=_free(_KAFKA), advertised_port=free_port())
    async with master, redis, kafka:
        urls = [f"redis://localhost:{redis.port}", f"kafka://localhost:{kafka.port}"]
        console.print(Text(f"$ resilient-io doctor --no-host {' '.join(urls)}", style="dim"))
        # This host is left out: its state is different in each run.
        planned = plan(read_urls(urls), timeout=10.0, group=None, with_host=False)
        return await run_examinations(planned, Report(console), Interruption())


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
