"""What the process stands on: its limits, the kernel, the versions of what it uses."""

from __future__ import annotations
