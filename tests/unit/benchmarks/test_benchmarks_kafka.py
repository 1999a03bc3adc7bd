"""What `python -m benchmarks` makes of Kafka's figures, and how it counts what a consumer reads."""

import importlib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _checkout_on_the_path(monkeypatch):
    # The package is part of the checkout, not of what is installed.
    monkeypatch.syspath_prepend(str(ROOT))


def module(name):
    return importlib.import_module(f"benchmarks.kafka.{name}")


def rounds(*rates):
    return [{"rate": rate, "cpu": 1e6 / rate} for rate in rates]


def of_senders(ours, aiokafka, confluent):
    rates = {"aiokafka": aiokafka, "aiokafka, idempotent": aiokafka}
    rates |= {"confluent AIO": confluent, "resilient-io": ours}
    return {client: rounds(*measured) for client, measured in rates.items()}


def kafka_row(results, title):
    lines = module("tables").speed_table(results)
    place = next(n for n, line in enumerate(lines) if line.startswith(f"| {title}"))
    return lines[place:]


def test_a_row_of_kafka_holds_rates_and_cpu_and_leaves_out_who_cannot_do_it():
    results = {"send": of_senders([100_000.0, 120_000.0], [50_000.0] * 2, [90_000.0] * 2)}
    first, second, third, fourth = kafka_row(results, "`send`, 1,000 keys")
    assert first == (
        "| `send`, 1,000 keys | 50,000 / 20 | 50,000 / 20 | 90,000 / 11.1 | - "
        "| 110,000 / 9.17 | ≥1.7x aiokafka | 2.20x (2.00-2.40) | reached |"
    )
    assert second.endswith("| ≥1.4x confluent AIO | 1.22x (1.11-1.33) | **missed** |")
    assert third.endswith("| CPU ≤0.55x aiokafka | 0.46x (0.42-0.50) | reached |")
    assert fourth.endswith("| CPU ≤0.6x confluent AIO | 0.83x (0.75-0.90) | **missed** |")


def test_slow_handlers_are_judged_against_our_own_iteration_which_has_no_column():
    rates = {"aiokafka": 9.0, "FastStream": 8.0, "resilient-io": 50.0, "our async for": 4.0}
    results = {"parallel": {client: rounds(rate) for client, rate in rates.items()}}
    (line,) = kafka_row(results, "`run`, handlers of 0 to 5 ms")
    assert line.endswith("| ≥12x our async for | 12.50x (12.50-12.50) | reached |")


def test_iteration_is_judged_by_its_rate_and_its_cpu():
    rates = {"aiokafka": 1e5, "confluent AIO": 2e5, "resilient-io": 5e5, "bare": 1e6}
    results = {"async-for": {client: rounds(rate) for client, rate in rates.items()}}
    first, second, third, fourth = kafka_row(results, "`async for`")
    assert first.endswith("| 500,000 / 2 | ≥4x aiokafka | 5.00x (5.00-5.00) | reached |")
    assert second.endswith("| CPU ≤0.25x aiokafka | 0.20x (0.20-0.20) | reached |")
    assert third.endswith("| CPU ≤1.3 µs | 2.00 (2.00-2.00) | **missed** |")
    assert fourth.endswith("| CPU without a network | 1.00 µs (1.00-1.00) |  |")


async def test_varied_handlers_take_the_same_times_in_each_round(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    worker = module("worker")
    monkeypatch.setattr(worker, "asyncio", types.SimpleNamespace(sleep=sleep))
    for _ in range(2):
        handler = worker._handler(0.005, varied=True)
        for _ in range(100):
            await handler()
    assert slept[:100] == slept[100:]
    assert 0.0 <= min(slept) < 0.0005
    assert 0.0045 < max(slept) <= 0.005
    await worker._handler(0.005, varied=False)()
    assert slept[-1] == 0.005
    assert worker._handler(0.0, varied=False) is None


def test_an_idle_client_is_judged_by_its_share_of_a_core():
    shares = {"aiokafka": 0.002, "confluent AIO": 0.001, "resilient-io": 0.0051}
    results = {"idle-consumer": {c: [{"share": s, "waits": 7.0}] for c, s in shares.items()}}
    (line,) = kafka_row(results, "an idle consumer")
    assert line == (
        "| an idle consumer, of a core / waits per second "
        "| 0.20% / 7 | - | 0.10% / 7 | - | 0.51% / 7 | ≤0.5% "
        "| 0.51% (0.51%-0.51%) | **missed** |"
    )


def test_every_kafka_target_compares_with_a_measured_client():
    for work in module("plan").WORKS:
        assert {target.against for target in work.targets} <= {*work.clients}, work.name
        assert "resilient-io" in work.clients, work.name


def test_a_record_of_kafka_has_its_size_and_tells_which_it_is():
    value_of = module("plan").value_of
    assert {len(value_of(number)) for number in (0, 9, 19_999)} == {200}
    assert value_of(17).startswith(b"17:")


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, instead of the machine's."""
    meter = module("meter")
    times = types.SimpleNamespace(now=0.0, cpu=0.0)
    fake = types.SimpleNamespace(perf_counter=lambda: times.now, process_time=lambda: times.cpu)
    monkeypatch.setattr(meter, "time", fake)
    return times


async def test_a_meter_measures_from_the_first_record_to_the_end_of_its_time(clock):
    meter = module("meter").Meter(1.0, 1_000_000)
    clock.now, clock.cpu = 5.0, 2.0
    assert not meter.handled()
    for _ in range(8):
        clock.now += 0.125
        clock.cpu += 0.025
        if over := meter.handled():
            break
    assert over
    assert await meter.result == {
        "rate": pytest.approx(8.0),
        "cpu": pytest.approx(25_000.0),
    }


async def test_a_meter_looks_at_the_clock_every_few_milliseconds_and_not_at_each_record(clock):
    meter = module("meter").Meter(1.0, 1_000_000)
    looks = 0

    def look():
        nonlocal looks
        looks += 1
        return clock.now

    module("meter").time.perf_counter = look
    count = 0
    while not meter.handled():
        clock.now += 1e-5
        count += 1
    assert looks < 300
    assert count == pytest.approx(100_000, rel=0.02)


async def test_a_meter_ends_with_the_last_record_and_says_so_ever_after(clock):
    meter = module("meter").Meter(60.0, 3)
    answers = []
    for _ in range(5):
        clock.now += 0.5
        answers.append(meter.handled())
    assert answers == [False, False, True, True, True]
    assert (await meter.result)["rate"] == pytest.approx(2 / 1.0)
