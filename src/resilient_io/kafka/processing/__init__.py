"""Concurrent handling of a consumer's records: `ResilientKafkaConsumer.run`.

The consumer fetches the records. This package decides when each is handled, and what happens to a
record whose handler fails.
"""

from ..stats import RunStats
from .failures import FAILURE_HEADERS, ORIGIN_HEADERS
from .options import (
    DeadLetter,
    Failure,
    HandlerPolicy,
    OnFailure,
    OnUnknown,
    Order,
    RunLimits,
    RunPlan,
    Verdict,
    plan_run,
)
from .processor import Processor
from .watchdog import answering_since
from .workers import trace_handler

__all__ = [
    "FAILURE_HEADERS",
    "ORIGIN_HEADERS",
    "DeadLetter",
    "Failure",
    "HandlerPolicy",
    "OnFailure",
    "OnUnknown",
    "Order",
    "Processor",
    "RunLimits",
    "RunPlan",
    "RunStats",
    "Verdict",
    "answering_since",
    "plan_run",
    "trace_handler",
]
