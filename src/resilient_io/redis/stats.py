"""Counters that cost next to nothing: a lane records one latency per write, not per call."""

from __future__ import annotations

from resilient_io.histogram import Latencies

__all__ = ["Latencies"]
