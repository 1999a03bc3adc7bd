"""Looks at Redis, at Kafka and at our own ground, step by step, and says what to do.

`examine` follows the way of a connection: name, TCP, TLS, login, and then the server's own account
of itself. `ground` looks at what the process stands on: CPU, memory, files, kernel, versions. Both
only read. Nothing is printed: the command `resilient-io doctor` does that.

```
async with contextlib.aclosing(examine("redis://cache:6379")) as steps:
    async for step in steps:
        print(step.status, step.name, step.found, step.advice)
```
"""

from __future__ import annotations

from .examination import examine
from .step import Status, Step, exit_code
from .surroundings import ground
from .urls import read_kafka_url

__all__ = ["Status", "Step", "examine", "exit_code", "ground", "read_kafka_url"]
