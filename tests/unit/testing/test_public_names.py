"""The names of the testing kit, and the cost of its import."""

import subprocess
import sys

import pytest

import resilient_io.testing as kit


def test_exported_names_exist_and_are_sorted():
    assert kit.__all__ == sorted(kit.__all__)
    for name in kit.__all__:
        assert getattr(kit, name) is not None
    assert dir(kit) == kit.__all__


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = kit.Nothing


def test_import_does_not_import_drivers_or_pytest():
    code = (
        "import sys\n"
        "from resilient_io.testing import *\n"
        "print([name for name in ('pytest', 'redis', 'aiokafka', 'trustme', 'tenacity')"
        " if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
