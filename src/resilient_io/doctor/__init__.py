"""Diagnose a Redis server, a Kafka cluster, or the host that this process runs on.

`examine` follows the path of a connection step by step: name, TCP, TLS, login, reply, and for Kafka
the advertised listeners and a consumer group. `examine_host` checks the container's CPU, memory and
kernel. Both only read, and print nothing: the command `resilient-io doctor` does that.

```
async with contextlib.aclosing(examine("redis://cache:6379")) as steps:
    async for step in steps:
        print(step.status, step.name, step.found, step.advice)
```
"""

from __future__ import annotations

from resilient_io.urls import read_kafka_url

from .examine import examine
from .host import examine_host
from .steps import Status, Step, exit_code

__all__ = ["Status", "Step", "examine", "examine_host", "exit_code", "read_kafka_url"]
