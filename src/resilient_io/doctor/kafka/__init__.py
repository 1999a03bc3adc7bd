"""Looking at a Kafka cluster."""

from __future__ import annotations
