"""A program without signal handlers."""

# ruff: noqa: T201 -- the test reads what it prints

import time

print("sleeping", flush=True)
time.sleep(120)
