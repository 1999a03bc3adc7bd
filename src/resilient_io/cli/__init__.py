"""The command `resilient-io`: diagnose connections, probe services, check Kubernetes manifests.

Here are its exit codes. `probe` needs them, so this module imports nothing else.
"""

import os
import sys

GOOD = 0
PROBLEMS = 1
UNKNOWN = 2
"""The question could not be answered; also for a wrong command line."""

INTERRUPTED = 130


def discard_output() -> None:
    """Send further output nowhere: its reader has closed the pipe.

    Otherwise the interpreter's last flush would print a traceback.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
