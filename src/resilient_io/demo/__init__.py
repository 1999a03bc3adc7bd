"""What the library is for, on servers of its own, in about a minute.

First plain redis-py and `ResilientRedis` through the same faults; then a service that takes orders
from Kafka and books them in Redis, while both are killed, frozen and cut off in turn. Run by
`python -m resilient_io.demo`. It needs no terminal, and ends with ledgers: what callers were told,
against what an independent reader finds in the servers.
"""
