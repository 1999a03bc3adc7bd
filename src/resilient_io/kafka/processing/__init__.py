"""Concurrent handling of a consumer's records: `ResilientKafkaConsumer.run`.

The consumer fetches the records. This package decides when each is handled, and what happens to a
record whose handler fails.
"""

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
from .stats import RunStats

__all__ = [
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
    "plan_run",
]
