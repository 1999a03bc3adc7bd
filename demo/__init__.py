"""Show what the library is for, on servers that the demo starts itself, in a minute and a half.

First plain redis-py and `ResilientRedis` go through the same faults. Then a service copies orders
from Kafka to Redis while both are killed, frozen and cut off in turn. At last, both Redis clients
follow Sentinels through failovers. Each part ends with a ledger: the outcomes that callers were
given, against what an independent reader finds in the servers.
"""
