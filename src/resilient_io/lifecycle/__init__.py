"""The life of a service: started in order, and ended on a signal with nothing lost.

```
async with Lifecycle(monitor, consumer, producer, redis, grace=25.0):
    await consumer.run(handle)
```
"""

from resilient_io.lifecycle._lifecycle import Lifecycle
from resilient_io.lifecycle._report import LifecycleReport, LifecycleStep

__all__ = ["Lifecycle", "LifecycleReport", "LifecycleStep"]
