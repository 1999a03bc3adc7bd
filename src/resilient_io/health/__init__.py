"""Availability: one state machine per dependency, fed by every call and by a probe task.

```
async with ResilientRedis.from_url("redis://cache") as redis:
    redis.health.on_change(lambda change: print(change.state, change.cause))
    await redis.health.until_up(10)
```
"""

from resilient_io.health._dependency import Attachment, Dependency
from resilient_io.health._feed import Watch
from resilient_io.health._lag import LoopLag
from resilient_io.health._liveness import LivenessCheck, LivenessSettings
from resilient_io.health._monitor import HealthMonitor, MonitorChange
from resilient_io.health._recorder import FlightRecorder
from resilient_io.health._settings import HealthSettings
from resilient_io.health._states import Cause, Change, ProbeDegraded, ProbeFailed, State
from resilient_io.health._subscription import Subscription

__all__ = [
    "Attachment",
    "Cause",
    "Change",
    "Dependency",
    "FlightRecorder",
    "HealthMonitor",
    "HealthSettings",
    "LivenessCheck",
    "LivenessSettings",
    "LoopLag",
    "MonitorChange",
    "ProbeDegraded",
    "ProbeFailed",
    "State",
    "Subscription",
    "Watch",
]
