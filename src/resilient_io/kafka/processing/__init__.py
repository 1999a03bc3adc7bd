"""Concurrent handling of a consumer's records: `ResilientKafkaConsumer.run`.

The consumer fetches the records. This package decides when each is handled, and what happens to a
record whose handler fails.
"""

from ..stats import RunStats
from .headers import ADDED_HEADERS, header, number_header
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
from .retry_topics import RetryTopic
from .watchdog import answering_since
from .workers import trace_handler

__all__ = [
    "ADDED_HEADERS",
    "DeadLetter",
    "Failure",
    "HandlerPolicy",
    "OnFailure",
    "OnUnknown",
    "Order",
    "Processor",
    "RetryTopic",
    "RunLimits",
    "RunPlan",
    "RunStats",
    "Verdict",
    "answering_since",
    "header",
    "number_header",
    "plan_run",
    "trace_handler",
]
