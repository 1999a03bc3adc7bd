"""The package has no import cycle, neither between files nor between folders."""

from scripts.structure import source_measures


def test_package_has_no_import_cycle():
    counts = {name: (count, list(details)) for name, count, details in source_measures()}
    assert counts["import cycles, also between folders"] == (0, [])
