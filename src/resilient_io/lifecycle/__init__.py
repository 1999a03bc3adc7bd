"""Start a service in order, and shut it down on a signal without losing anything.

```
async with Lifecycle(monitor, consumer, producer, redis, grace_period=25.0):
    await consumer.run(handle)
```
"""

from .lifecycle import Lifecycle
from .parts import LifecycleReport, LifecycleStep

__all__ = ["Lifecycle", "LifecycleReport", "LifecycleStep"]
