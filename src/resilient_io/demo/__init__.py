"""Plain redis-py and `ResilientRedis` through the same faults, on a server of its own.

Run by `python -m resilient_io.demo`. It takes under a minute, needs no terminal, and ends with a
ledger: what callers were told, against what an independent reader finds in the server.
"""
