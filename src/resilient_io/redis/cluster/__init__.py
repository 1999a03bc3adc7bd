"""Redis Cluster: the slot table, the keys of commands, and the client."""
