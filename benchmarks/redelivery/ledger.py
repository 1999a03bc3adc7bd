"""A count of deliveries for each record, in a file that survives the kill of its writer."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_MOST = 255


class Ledger:
    """One byte per record number, mapped into the memory of each process that opens the file."""

    def __init__(self, path: Path, count: int) -> None:
        if not path.exists():
            path.write_bytes(bytes(count))
        with path.open("r+b") as file:
            self._counts = mmap.mmap(file.fileno(), count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._counts.close()

    def delivered(self, number: int) -> int:
        """Count a delivery, and return which one it is for this record."""
        times = min(self._counts[number] + 1, _MOST)
        self._counts[number] = times
        return times

    def missing(self) -> int:
        """Return the number of records that were never delivered."""
        return self._counts[:].count(0)

    def redelivered(self) -> int:
        """Return the number of records that were delivered more than once."""
        counts = self._counts[:]
        return len(counts) - counts.count(0) - counts.count(1)
