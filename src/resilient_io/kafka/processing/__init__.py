"""`run`: handlers at once, in order where it matters, and never a record lost.

What fetches them is the consumer; this decides who is handled when, and what becomes of failures.
"""

from .options import DeadLetter, HandlerPolicy, OnUnknown, Order, Plan, RunLimits, plan_run
from .processor import Processor, RunStats
from .retries import Failure, OnFailure, Verdict

__all__ = [
    "DeadLetter",
    "Failure",
    "HandlerPolicy",
    "OnFailure",
    "OnUnknown",
    "Order",
    "Plan",
    "Processor",
    "RunLimits",
    "RunStats",
    "Verdict",
    "plan_run",
]
