"""Where `resilient-io` begins: finds out what is asked for, and imports only that.

`probe` runs every few seconds in every container, on whatever little CPU that has: it must not
pay for the drivers, nor for what makes the other commands pleasant to use.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from resilient_io.cli.exits import COULD_NOT_LOOK, INTERRUPTED, PROBLEMS, let_go_of_output

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXTRA = ("typer", "click", "rich", "yaml", "cryptography")
_KIT = ("trustme", "pytest", "pytest_asyncio")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Of the command line; None for those of this process.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        extra = "cli" if root in _EXTRA else "testing" if root in _KIT else None
        if extra is None:
            raise
        sys.stderr.write(
            f"resilient-io: {root} is not installed: pip install 'resilient-io[{extra}]'\n"
        )
        return COULD_NOT_LOOK
    except BrokenPipeError:
        let_go_of_output()
        return PROBLEMS
    except KeyboardInterrupt:  # while imports went on: each command handles its own
        return INTERRUPTED


def _run(given: list[str]) -> int:
    # Each import here is what its command costs, and no other's.
    if given[:1] == ["probe"]:
        from resilient_io.cli.probe import main as probe  # noqa: PLC0415

        return probe(given[1:])
    if given[:1] == ["demo"]:
        from resilient_io.demo.command import main as demo  # noqa: PLC0415

        return demo(given[1:], program="resilient-io demo")
    if given == ["--version"]:
        from importlib.metadata import version  # noqa: PLC0415

        sys.stdout.write(f"resilient-io {version('resilient-io')}\n")
        sys.stdout.flush()
        return 0
    from resilient_io.cli.app import run  # noqa: PLC0415

    return run(given)
