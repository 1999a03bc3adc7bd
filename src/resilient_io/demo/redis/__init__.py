"""The first part: plain redis-py and `ResilientRedis` through the same faults."""
