"""Writes the table of all metrics in docs/howto/metrics.md; with --check says if it is stale."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from resilient_io.telemetry.catalog import CATALOG

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "metrics.md"
BEGIN, END = "<!-- metrics: begin -->", "<!-- metrics: end -->"


def table() -> str:
    lines = ["| OpenTelemetry | Prometheus | meaning | labels |", "|---|---|---|---|"]
    for metric in CATALOG.values():
        samples = metric.sample_names
        in_prometheus = samples[0] if len(samples) == 1 else metric.prometheus_name
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | `{in_prometheus}` | {metric.help} | {labels} |")
    return "\n".join(lines)


def rewritten(document: str) -> str:
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    document = PAGE.read_text(encoding="utf-8")
    wanted = rewritten(document)
    if document == wanted:
        return 0
    if check:
        print(f"{PAGE.name} is stale: run scripts/in_venv test python {sys.argv[0]}")
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
