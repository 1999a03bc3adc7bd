"""The container's HEALTHCHECK: exit code 0 while the service's event loop turns.

It fails when the health file is old or missing. That Redis or Kafka is away is no reason: starting
the container again would not bring them back. The file says how they are.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from settings import Settings

OLDEST = 10.0
"""Seconds."""


def main() -> int:
    """Look at the file."""
    path = Path(Settings.from_environment().health_file)
    try:
        age = time.time() - path.stat().st_mtime
        said = path.read_text()
    except OSError as error:
        print(f"no health file: {error}")
        return 1
    print(f"{said} ({age:.0f} s ago)")
    return 0 if age < OLDEST else 1


if __name__ == "__main__":
    sys.exit(main())
