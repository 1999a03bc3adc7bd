"""Looking at a Redis server."""

from __future__ import annotations
