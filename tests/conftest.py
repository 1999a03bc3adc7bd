"""What all tests share: the fixtures of the public testing kit."""

from pathlib import Path

import pytest

pytest_plugins = ["resilient_io.testing.pytest_plugin"]

_UNIT = Path(__file__).parent / "unit"


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    """Let all unit tests run on virtual time: none of them really sleeps."""
    module: pytest.Module = pytest.Module.from_parent(parent, path=module_path)
    if _UNIT in module_path.parents:
        module.add_marker("virtual_time")
    return module
