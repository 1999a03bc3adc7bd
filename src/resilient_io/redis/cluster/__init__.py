"""Redis Cluster: the client, the slot table, and the keys of commands."""

from __future__ import annotations

from .client import ResilientRedisCluster
from .pipeline import ResilientClusterPipeline

__all__ = ["ResilientClusterPipeline", "ResilientRedisCluster"]
