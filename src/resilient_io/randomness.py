"""The source of randomness of everything that got no other one."""

from __future__ import annotations

import random
from typing import Final

SYSTEM_RANDOM: Final = random.SystemRandom()
"""For jitter, names and tokens. It has no state, so that clients, loops and forks can share it.

A `random.Random` for each client would take 2.5 KB, and continue alike in every forked process.
"""
