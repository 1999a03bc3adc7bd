"""`run`: handlers at once, in order where it matters, and never a record lost.

What fetches them is the consumer; this decides who is handled when, and what becomes of failures.
"""

from .attempts import Failure
from .failures import OnFailure, Verdict
from .plan import Plan, plan_run
from .processor import Processor
from .report import RunStats
from .settings import DeadLetter, HandlerPolicy, OnUnknown, Order, RunLimits

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
