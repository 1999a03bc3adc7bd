"""The entry point of `resilient-io` and `python -m resilient_io.cli`.

It imports only what the command needs: `probe` runs every few seconds in every container, on little
CPU, and must not pay for importing the drivers, nor the packages that the other commands use.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from . import INTERRUPTED, PROBLEMS, UNKNOWN, discard_output

if TYPE_CHECKING:
    from collections.abc import Sequence

_OF_EXTRA_CLI = ("typer", "click", "rich", "yaml", "cryptography")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _OF_EXTRA_CLI:
            raise
        sys.stderr.write(
            f"resilient-io: {package} is not installed: pip install 'resilient-io[cli]'\n"
        )
        return UNKNOWN
    except BrokenPipeError:
        discard_output()
        return PROBLEMS
    except KeyboardInterrupt:  # during imports: each command handles its own
        return INTERRUPTED


def _run(given: list[str]) -> int:
    # The imports are what each command costs.
    if given[:1] == ["probe"]:
        from .probe import main as probe  # noqa: PLC0415

        return probe(given[1:])
    if given == ["--version"]:
        from importlib.metadata import version  # noqa: PLC0415

        sys.stdout.write(f"resilient-io {version('resilient-io')}\n")
        sys.stdout.flush()
        return 0
    from .app import run  # noqa: PLC0415

    return run(given)


if __name__ == "__main__":
    sys.exit(main())
