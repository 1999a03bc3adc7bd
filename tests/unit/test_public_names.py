"""The package's public names: sorted, complete, and imported only when they are used."""

import subprocess
import sys

import pytest

import resilient_io


def test_all_is_sorted_and_every_name_can_be_imported():
    assert resilient_io.__all__ == sorted(resilient_io.__all__)
    for name in resilient_io.__all__:
        assert getattr(resilient_io, name) is not None
        assert name in dir(resilient_io)


def test_lazy_names_are_the_public_names():
    assert sorted(resilient_io._HOME_OF) == resilient_io.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Kafka'"):
        resilient_io.Kafka  # noqa: B018


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import resilient_io;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "assert not new & {'asyncio', 'tenacity', 'redis', 'aiokafka', 'logging'}, new;"
        "resilient_io.HealthMonitor;"
        "assert 'redis' not in sys.modules and 'tenacity' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
