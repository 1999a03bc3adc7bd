"""ResilientRedis against redis-py, coredis and valkey-glide."""
