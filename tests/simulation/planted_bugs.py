"""Planting the mistakes of `bugs` into the client.

`plant` changes a module while it is imported. Files on disk and bytecode caches stay as they are.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.simulation.bugs import BUGS, PACKAGE, PlantedBug

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType


def plant(name: str) -> PlantedBug:
    """Change the client by one bug, when the module is imported. Return the bug.

    Raises:
        KeyError: No bug has that name.
        RuntimeError: The client was imported already, or has another bug.
        ValueError: The text to replace does not occur exactly once.
    """
    bug = find(name)
    loaded = [module for module in sys.modules if module.partition(".")[0] == PACKAGE]
    if loaded:
        raise RuntimeError(
            f"plant({name!r}) must be called before {PACKAGE} is imported, in a new process: "
            f"{loaded[0]} is loaded"
        )
    planted = [finder.bug.name for finder in sys.meta_path if isinstance(finder, _Finder)]
    if planted:
        raise RuntimeError(f"{planted[0]!r} is planted in this process: use a new one")
    bug.change(source_of(bug))  # fail now, rather than in the import
    sys.meta_path.insert(0, _Finder(bug))
    return bug


def find(name: str) -> PlantedBug:
    """Return the bug with that name.

    Raises:
        KeyError: No bug has it.
    """
    for bug in BUGS:
        if bug.name == name:
            return bug
    raise KeyError(f"no planted bug has the name {name!r}; see tests.simulation.bugs")


def source_of(bug: PlantedBug) -> str:
    """Return the source of the file without the bug. The package is not imported for it.

    Raises:
        ModuleNotFoundError: The package cannot be found.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {PACKAGE} cannot be found", name=PACKAGE)
    return (Path(spec.submodule_search_locations[0]) / bug.file).read_text(encoding="utf-8")


class _Finder:
    """Finds the module of one bug, and no other."""

    def __init__(self, bug: PlantedBug) -> None:
        self.bug = bug

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the usual spec of the module, with a loader that plants the bug."""
        if fullname != self.bug.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self.bug)
            spec.cached = None
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the changed source. It neither reads nor writes bytecode."""

    def __init__(self, fullname: str, path: str, bug: PlantedBug) -> None:
        super().__init__(fullname, path)
        self._bug = bug

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the module with the bug."""
        path = self.get_filename(fullname)
        source = self._bug.change(self.get_data(path).decode("utf-8"))
        return compile(source, path, "exec", dont_inherit=True)
