"""Plays the scenes in containers, and shows as a table what each came to.

Arguments are pytest's. With --write-docs the table goes into docs/containers.md, too; it needs all
scenes then. Without a Docker engine nothing is played, which fails where
RESILIENT_IO_REQUIRE_SERVERS is 1.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / ".servers" / "containers" / "scenes"
PAGE = ROOT / "docs" / "containers.md"
BEGIN, END = "<!-- scenes: begin -->", "<!-- scenes: end -->"

SCENES = {
    "the_network_of_redis_is_cut_and_healed": "Redis's network cut, {seconds:.0f} s",
    "redis_is_paused": "Redis paused, {seconds:.0f} s",
    "redis_is_killed_and_comes_back_at_another_address": (
        "Redis killed; {seconds:.0f} s later back at another address"
    ),
    "redis_has_no_memory_left": "Redis at maxmemory, {seconds:.0f} s",
    "the_name_of_redis_is_gone_and_comes_back": (
        "Redis restarted, and its DNS name gone for {seconds:.0f} s"
    ),
    "the_network_of_kafka_is_cut_and_healed": "Kafka's network cut, {seconds:.0f} s",
    "kafka_is_killed_and_starts_again": "Kafka killed; it runs again {seconds:.0f} s later",
    "a_tenth_of_a_cpu_is_not_blamed_on_a_server": "the service on 10% of a CPU, {seconds:.0f} s",
    "a_flood_while_redis_is_away_fits_into_little_memory": (
        "96 MiB for the service; Redis paused, and 105 MB of orders come"
    ),
    "sigterm_in_the_middle_of_work_loses_nothing": "SIGTERM in the middle of work, and a new start",
    "the_service_starts_first_then_redis_then_kafka": (
        "the service starts first, Redis 20 s later, Kafka 40 s later"
    ),
}
NAMES = {"ours": "resilient_io", "plain": "plain"}
COLUMNS = ("what happens", "service", "not ready after", "ready again after", "books again after",
           "log lines", "lost", "not booked", "announced twice", "restarts, or end")  # fmt: skip


def cells(title: str, service: str, outcome: dict[str, Any]) -> list[str]:
    restarts = str(outcome["restarts"])
    if outcome["killed_for_memory"]:
        restarts += ", out of memory"
    if "exit_code" in outcome:
        restarts = f"exit code {outcome['exit_code']} after {outcome['stopped_after']:.1f} s"
    return [
        title if service == "ours" else "",
        NAMES[service],
        seconds(outcome["unready_after"]),
        seconds(outcome["ready_after"]),
        seconds(outcome["booking_after"]),
        f"{outcome['lines']:,}",
        *(str(outcome[each]) for each in ("lost", "pending", "repeated")),
        restarts,
    ]


def seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def table() -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for name, title in SCENES.items():
        path = STORE / f"test_{name}.json"
        if path.exists():
            outcome = json.loads(path.read_text())
            words = title.format(seconds=outcome["ours"]["seconds"])
            lines += [
                "| " + " | ".join(cells(words, service, outcome[service])) + " |"
                for service in NAMES
            ]
    return "\n".join(lines) + "\n"


def write(text: str) -> None:
    """Put the table into the docs."""
    missing = [name for name in SCENES if not (STORE / f"test_{name}.json").exists()]
    if missing:
        sys.exit(f"no outcome of: {', '.join(missing)}; {PAGE.name} is left as it was")
    page = PAGE.read_text()
    between = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
    PAGE.write_text(between.sub(lambda _: f"{BEGIN}\n{text}{END}", page))
    print(f"written: {PAGE.relative_to(ROOT)}")


def environment() -> dict[str, str]:
    """Return the environment of the tests: the engine, the images, the file for outcomes."""
    found = subprocess.run(
        [ROOT / "scripts/docker_engine.sh", "find"], stdout=subprocess.PIPE, text=True, check=False
    )
    known = os.environ | {"RESILIENT_IO_SCENES": str(STORE)}
    if found.returncode:
        return known  # the tests say so
    known["DOCKER_HOST"] = found.stdout.strip()
    started = time.monotonic()
    made = subprocess.run(
        [sys.executable, ROOT / "scripts/container_images.py"],
        env=known, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        sys.exit(made.returncode)
    print(f"Images: {time.monotonic() - started:.1f} s", flush=True)
    return known | {"RESILIENT_IO_IMAGES": made.stdout.strip()}


def main() -> None:
    arguments = [each for each in sys.argv[1:] if each != "--write-docs"]
    shutil.rmtree(STORE, ignore_errors=True)
    STORE.mkdir(parents=True)
    played = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/containers", "-m", "containers", "-n", "2",
         "--dist", "worksteal", "-o", "faulthandler_timeout=400", *arguments],
        env=environment(), check=False,
    )  # fmt: skip
    if any(STORE.iterdir()):
        print(table())
    if played.returncode:
        sys.exit(played.returncode)
    if "--write-docs" in sys.argv:
        write(table())


if __name__ == "__main__":
    main()
