"""Availability: one state machine per dependency, updated by every call and by a probe task.

```
async with ResilientRedis.from_url("redis://cache") as redis:
    redis.health.on_change(lambda change: print(change.state, change.cause))
    await redis.health.until_up(10)
```
"""

from resilient_io.link import LinkState

from .dependency import Attachment, ClientDependency, Dependency, Reporter
from .loop_lag import LoopLag
from .monitor import HealthMonitor, LivenessCheck, LivenessSettings, MonitorChange
from .recorder import FlightRecorder
from .states import Cause, Change, HealthSettings, ProbeDegraded, ProbeFailed, State, describe_state
from .subscriptions import Subscription, Watch
from .topology import FailoverRecord, Topology, TopologyServer

__all__ = [
    "Attachment",
    "Cause",
    "Change",
    "ClientDependency",
    "Dependency",
    "FailoverRecord",
    "FlightRecorder",
    "HealthMonitor",
    "HealthSettings",
    "LinkState",
    "LivenessCheck",
    "LivenessSettings",
    "LoopLag",
    "MonitorChange",
    "ProbeDegraded",
    "ProbeFailed",
    "Reporter",
    "State",
    "Subscription",
    "Topology",
    "TopologyServer",
    "Watch",
    "describe_state",
]
