"""What `make bench` measures: ours against redis-py, coredis and valkey-glide, interleaved.

`plan` says what is measured and what must be reached, `clients` how each client is set up, `worker`
is the process that holds one client, `arena` lets the workers take turns, `statistics` and `tables`
turn the figures into what is printed.
"""
