"""What `make bench` measures: ours against the peers, interleaved in one run.

`redis/` and `kafka/` each have a `plan` (what is measured and what must be reached), `clients` (how
each client is set up), a `worker` (the process that holds one client), an `arena` (a real server,
and the workers taking turns on it), `tables`, and a `suite` that joins them. What both need stands
here, once: the worker process and its protocol, the turns and statistics, targets, Markdown and the
document that holds the tables.
"""
