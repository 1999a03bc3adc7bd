"""What the kit exports, and what importing it costs."""

import subprocess
import sys

import pytest

import resilient_io.testing as kit


def test_every_exported_name_is_there_and_sorted():
    assert kit.__all__ == sorted(kit.__all__)
    for name in kit.__all__:
        assert getattr(kit, name) is not None
    assert dir(kit) == kit.__all__


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = kit.Nothing


def test_the_kit_brings_no_driver_and_no_pytest():
    code = (
        "import sys\n"
        "from resilient_io.testing import *\n"
        "print([name for name in ('pytest', 'redis', 'aiokafka', 'trustme', 'tenacity')"
        " if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
