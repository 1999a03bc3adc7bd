"""Redis: the client, its lanes, its gate and its command table."""
