"""The package can be imported on Windows and macOS, which lack some modules and functions."""

import subprocess
import sys

# Modules and functions that do not exist on Windows.
BLOCKED = """
import os, signal, sys
for name in ("fcntl", "termios", "resource", "pwd", "grp", "tty", "pty"):
    sys.modules[name] = None
del os.register_at_fork
for name in ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGSTOP", "siginterrupt"):
    delattr(signal, name)
"""
# Imported first, because they need these modules and functions on this platform.
NEEDED = """
import asyncio, concurrent.futures, importlib, logging, multiprocessing.util, pkgutil, random
import ssl, subprocess, tempfile, threading
import aiohttp, aiokafka, prometheus_client, redis.asyncio, starlette.applications, uvicorn
from opentelemetry import trace
"""
PROGRAM = f"""
{NEEDED}
{BLOCKED}
import resilient_io
from resilient_io import *
for package in ("health", "redis", "kafka", "serve", "lifecycle", "telemetry"):
    module = importlib.import_module(f"resilient_io.{{package}}")
    for name in module.__all__:
        getattr(module, name)
    for found in pkgutil.walk_packages(module.__path__, f"{{module.__name__}}."):
        importlib.import_module(found.name)

async def main():
    from resilient_io.lifecycle import Lifecycle
    monitor = HealthMonitor(Dependency("redis"))
    async with Lifecycle(monitor, drain_delay=0.0):
        pass

asyncio.run(main())
print("imported")
"""


def test_package_can_be_imported_without_the_modules_that_windows_lacks():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("imported\n", "")
