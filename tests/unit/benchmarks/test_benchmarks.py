"""The pure parts of `python -m benchmarks`: statistics, verdicts, tables, the documents."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _checkout_on_the_path(monkeypatch):
    # The package is part of the checkout, not of what is installed.
    monkeypatch.syspath_prepend(str(ROOT))


def module(name):
    return importlib.import_module(f"benchmarks.{name}")


def rounds(*rates, **other):
    return [{"rate": rate, "cpu": 1e6 / rate, **other} for rate in rates]


def of_each(ours, redis_py, others=5.0):
    return {
        "redis-py": rounds(*redis_py),
        "coredis": rounds(*[others] * len(ours)),
        "valkey-glide": rounds(*[others] * len(ours)),
        "resilient-io without Sentinel": rounds(*[others] * len(ours)),
        "resilient-io": rounds(*ours),
    }


def row(lines, title):
    return next(line for line in lines if line.startswith(f"| {title}"))


def test_ratios_are_taken_round_by_round():
    # The medians' ratio would be 3.0; a machine that was slow in two rounds must not count.
    found = module("statistics").ratios([10.0, 30.0, 200.0], [5.0, 10.0, 100.0])
    assert (found.median, found.low, found.high) == (2.0, 2.0, 3.0)


def test_ratios_of_unequal_rounds_are_refused():
    with pytest.raises(ValueError, match="zip"):
        module("statistics").ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize("function", ["spread", "quantile"])
def test_nothing_measured_is_refused(function):
    arguments = ([],) if function == "spread" else ([], 0.5)
    with pytest.raises(ValueError, match="there is no"):
        getattr(module("statistics"), function)(*arguments)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 50), (0.501, 51), (0.99, 99), (1.0, 100)]
)
def test_a_quantile_is_a_value_that_was_measured(share, expected):
    assert module("statistics").quantile(list(range(100, 0, -1)), share) == expected


def test_each_client_begins_a_round_in_its_turn():
    turn = module("statistics").turn
    assert [turn(["a", "b", "c"], number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (10.0, "reached"),
        (9.99, "**missed**"),
    ],
)
def test_a_target_says_whether_it_was_reached(ratio, verdict):
    target = module("targets").Target(against="redis-py", least=10)
    assert target.verdict(ratio) == verdict


def test_a_row_holds_the_medians_and_the_verdict_on_the_rounds_ratios():
    results = {"get-1": of_each([3100.0, 3200.0, 3500.0], [1000.0, 1000.0, 1000.0])}
    line = row(module("redis.tables").speed_table(results), "GET, 1 caller")
    assert line == (
        "| GET, 1 caller, per second | 1,000 | 5 | 5 | 3,200 | ≥3x redis-py "
        "| 3.20x (3.10-3.50) | reached |"
    )


def test_a_work_with_two_targets_has_a_row_for_each():
    results = {"get-50": of_each([90.0], [10.0], others=30.0)}
    lines = module("redis.tables").speed_table(results)
    assert "9.00x (9.00-9.00) | **missed** |" in lines[2]
    assert lines[3].startswith("|  |")
    assert lines[3].endswith("≥5.5x valkey-glide | 3.00x (3.00-3.00) | **missed** |")


def test_cost_at_many_callers_is_judged_against_few():
    results = {
        "get-500": of_each([130.0, 140.0], [1.0, 1.0]),
        "get-10000": of_each([100.0, 100.0], [1.0, 1.0]),
    }
    line = row(module("redis.tables").speed_table(results), "cost of a call at 10,000 callers")
    assert line.endswith("| 1.35x | ≤1.3x | 1.35x (1.30-1.40) | **missed** |")


def test_our_tail_is_judged_against_the_peers_middle():
    results = {"latency-50": of_each([1.0], [1.0])}
    for client, measured in results["latency-50"].items():
        measured[0] |= {"p50": 1000.0, "p99": 900.0 if client == "resilient-io" else 2000.0}
    line = row(module("redis.tables").speed_table(results), "GET, 50 callers: p50 / p99")
    assert "| 1,000 / 2,000 | 1,000 / 2,000 | 1,000 / 2,000 | 1,000 / 900 |" in line
    assert line.endswith("| 0.90x (0.90-0.90) | reached |")


def test_call_without_a_result_is_reported_as_longer_than_the_wait():
    costs = {"redis-py": 200.0, "coredis": 5e6, "valkey-glide": 250_000.0, "resilient-io": 5.5}
    results = {"down": {client: [{"refused": cost}] for client, cost in costs.items()}}
    line = row(module("redis.tables").speed_table(results), "a call while the server is dead")
    assert "| 200 | over 5,000,000 | 250,000 | 5.5 | ≤4 µs | 5.50 (5.50-5.50) |" in line
    assert line.endswith("**missed** |")


def test_overhead_is_judged_against_a_bare_connection_and_against_futures():
    measured = {"ours": 11.0, "bare": 10.0, "overhead": 0.10}
    measured |= {"ours CPU": 5.0, "futures CPU": 2.0, "CPU multiple": 2.5}
    lines = module("redis.tables").speed_table({"overhead": {"resilient-io": [measured]}})
    assert row(lines, "policy").endswith(
        "| 11.00 against 10.00 | ≤10% more | 10% (10% to 10%) | reached |"
    )
    assert row(lines, "against futures").endswith(
        "| 5.00 against 2.00 | ≤2.1x | 2.50x (2.50-2.50) | **missed** |"
    )


def test_resources_have_a_table_of_their_own():
    weights = {"redis-py": 37_000.0, "coredis": 1.0, "valkey-glide": 2.0, "resilient-io": 64_000.0}
    results = {
        "get-50": of_each([500_000.0], [10_000.0]),
        "idle": {c: [{"bytes": w, "connections": 2.0}] for c, w in weights.items()},
    }
    lines = module("redis.tables").resource_table(results)
    assert row(lines, "CPU µs per call: GET, 50 callers").startswith(
        "| CPU µs per call: GET, 50 callers | 100 |"
    )
    assert row(lines, "bytes per idle client").endswith("| 37,000 | 1 | 2 | 64,000 |")
    assert row(lines, "connections of an idle client").endswith("| 2 | 2 | 2 | 2 |")


def test_idle_clients_have_a_table_of_their_own():
    ours = {"construct": 340.0, "traced": 46_000.0, "crowd": 0.08, "dependencies": 0.009}
    results = {
        "scale": {
            "redis-py": [{"construct": 180.0, "traced": 26_000.0}],
            "resilient-io": [ours | {"up": 2.2, "down": 0}],
        }
    }
    lines = module("redis.tables").scale_table(results)
    assert row(lines, "CPU of constructing").endswith("| 180 | 340 | ≤350 | reached |")
    assert row(lines, "bytes that").endswith("| 26,000 | 46,000 | ≤28,000 | **missed** |")
    assert row(lines, "CPU of 1,000 probed").endswith("| - | 0.9% | ≤1.0% | reached |")
    assert row(lines, "how many").endswith("| - | 0 | ≤0 | reached |")


async def test_reading_the_slots_of_a_cluster_has_a_table_of_its_own():
    refresh = module("redis.refresh")
    lines = refresh.refresh_table({"refresh": await refresh.measure(1)})
    assert len(lines) == 2 + 4
    measured = [{"all-100": 3.0, "slice-100": 6.0, "all-1000": 20.0, "slice-1000": 1.0}]
    lines = refresh.refresh_table({"refresh": {"resilient-io": measured}})
    assert row(lines, "slots of 100 nodes").endswith("| 3.0 (3.0-3.0) | ≤5 | reached |")
    assert lines[3].endswith("| 6.0 (6.0-6.0) | ≤5 | **missed** |")


def test_every_row_of_a_table_has_as_many_cells_as_its_head():
    results = {work.name: of_each([9.0], [1.0]) for work in module("redis.plan").WORKS}
    for measured in results["latency-50"].values():
        measured[0] |= {"p50": 1.0, "p99": 1.0}
    for table in (module("redis.tables").speed_table, module("redis.tables").resource_table):
        assert len({line.count("|") for line in table(results)}) == 1


def test_only_what_stands_between_its_markers_is_rewritten():
    markdown = module("markdown")
    (begin, end), (other, its_end) = (markdown.markers(name) for name in ("redis", "kafka"))
    kept = f"{other}\nkafka's\n{its_end}\nkept\n"
    before = f"# Title\n{begin}\nold\n{end}\n{kept}"
    after = markdown.replace_measured(before, "redis", "\nnew\n")
    assert after == f"# Title\n{begin}\nnew\n{end}\n{kept}"
    assert markdown.replace_measured(after, "redis", "new") == after


@pytest.mark.parametrize(
    "document",
    ["", "<!-- measured redis: begin -->", "<!-- measured redis: end -->" * 2],
)
def test_a_document_without_its_markers_is_refused(document):
    with pytest.raises(ValueError, match="must have one"):
        module("markdown").replace_measured(document, "redis", "new")


@pytest.mark.parametrize("suite", ["redis", "kafka", "service"])
def test_the_document_has_the_markers_of_each_suite(suite):
    document = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert module("markdown").replace_measured(document, suite, "x") != document


@pytest.mark.parametrize("suite", ["redis", "kafka", "service"])
def test_the_document_has_every_row_once_something_was_measured(suite):
    begin, end = module("markdown").markers(suite)
    document = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    measured = document.partition(begin)[2].partition(end)[0]
    if "|" not in measured:
        pytest.skip("not measured yet")
    for work in module(f"{suite}.plan").WORKS:
        assert work.title in measured, work.title


def test_docs_are_not_rewritten_from_a_part_of_the_rows(capsys):
    with pytest.raises(SystemExit):
        module("__main__").parse(["--write-docs", "--only", "get-1"])
    assert "needs every row" in capsys.readouterr().err


def test_an_unknown_suite_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        module("__main__").parse(["rabbit"])
    assert "write redis or kafka or service" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"redis": "get-1", "kafka": "send", "service": "metrics-50"}),
        (["kafka"], {"kafka": "send"}),
        (["--only", "send"], {"kafka": "send"}),
        (["redis", "--only", "send"], {}),
    ],
)
def test_suites_and_works_select_the_measurements(arguments, expected):
    command = module("__main__")
    chosen = command.chosen(command.parse(arguments))
    assert {suite.name: names[0] for suite, names in chosen.items()} == expected


def test_every_work_has_a_name_of_its_own():
    names = module("__main__")._NAMES
    assert len({*names}) == len(names)


def test_a_run_is_reported_suite_by_suite_and_loop_by_loop():
    command = module("__main__")
    suite = command.SUITES["redis"]
    text = command.report(suite, ["where"], {"uvloop": {"get-1": of_each([2.0], [1.0])}})
    assert text.startswith("where\n#### Redis on uvloop\n\n| work | redis-py |")


def test_importing_the_command_brings_no_peer():
    module("__main__")
    assert not {"coredis", "glide", "confluent_kafka", "faststream"} & sys.modules.keys()


def test_cost_of_instrumentation_is_compared_round_by_round():
    results = {
        "metrics-50": {
            "resilient-io": [
                {"with": 10.4, "without": 10.0},
                {"with": 20.4, "without": 20.0},
                {"with": 10.6, "without": 10.0},
            ]
        },
        "probe": {"resilient-io": [{"with": 81.0, "without": 20.0}]},
    }
    lines = module("service.tables").cost_table(results)
    metrics, probe = row(lines, "GET, 50 callers, with"), row(lines, "`resilient-io probe")
    assert "| without: 10 µs | ≤5% more | 10.6 µs (10.4-20.4), +4.0% (+2.0% to +6.0%)" in metrics
    assert metrics.endswith("| reached |")
    assert probe.endswith("| `python -c pass`: 20 ms | ≤80 ms | 81 ms (81-81) | **missed** |")
