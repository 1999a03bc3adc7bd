"""The status page in every state, without colors, by keyboard, and on a phone."""

import asyncio
import math
import re

import pytest
from selenium.webdriver.common.keys import Keys

from resilient_io.health import (
    Cause,
    Dependency,
    FailoverRecord,
    HealthMonitor,
    Topology,
    TopologyServer,
)
from resilient_io.kafka import ResilientKafkaConsumer, TopicPartition
from resilient_io.serve import serve

pytestmark = pytest.mark.soak(seconds=2)  # not in `make test`: independent of the Python version

HOST = "127.0.0.1"
LONG = "payments-and-settlements-reconciliation-service-eu-central-1.svc.cluster.local:26379/12"

# The contrast of every text on the page with its background, as defined by WCAG 2.
CONTRASTS = """
const parts = (color) => color.match(/[\\d.]+/g).map(Number);
const linear = (value) =>
  value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const found = parts(getComputedStyle(node).backgroundColor);
    if (found.length === 3 || found[3] === 1) return found;
  }
  throw new Error("no background");
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const contrasts = [];
while (walker.nextNode()) {
  const { parentElement: node, textContent: text } = walker.currentNode;
  if (!text.trim() || !node.checkVisibility() || node.closest("script, noscript")) continue;
  const pair = [luminance(parts(getComputedStyle(node).color)), luminance(behind(node))].sort();
  pair.sort((one, other) => other - one);
  contrasts.push([(pair[0] + 0.05) / (pair[1] + 0.05), text.trim()]);
}
return contrasts;
"""


def put(dependency, state):
    if state == "down":
        dependency.failed(Cause.REFUSED, "connection refused", definite=True)
    elif state != "unknown":
        dependency.succeeded(0.0012)
    if state == "degraded":
        dependency.refused(Cause.READ_ONLY, "it is a replica")


@pytest.fixture
async def each_state():
    """Yield a monitor with one dependency in each state."""
    dependencies = [Dependency(state) for state in ("up", "degraded", "down", "unknown")]
    async with HealthMonitor(*dependencies) as monitor:
        for dependency in dependencies:
            put(dependency, dependency.name)
        yield monitor


class Behind(ResilientKafkaConsumer):
    """A consumer with lag on a hundred partitions."""

    def known_lag(self):
        return {TopicPartition(LONG[:60], number): number * 37 % 1000 for number in range(100)}


async def test_every_state_has_a_word_and_a_sign(each_state, page):
    async with serve(each_state, host=HOST, port=0) as server:
        await page.open(server.port)
        rows = await page.run(
            "return [...document.querySelectorAll('.row')].map((row) => ["
            "row.querySelector('strong').textContent, row.querySelector('.word').textContent,"
            "row.querySelector('use').getAttribute('href'),"
            "row.querySelector('.cause').textContent])"
        )
        assert rows == [
            ["up", "up", "#sign-up", ""],
            ["degraded", "degraded", "#sign-degraded", "read-only: it is a replica"],
            ["down", "down", "#sign-down", "connection refused"],
            ["unknown", "unknown", "#sign-unknown", ""],
        ]
        shapes = await page.run(
            "return [...document.querySelectorAll('symbol')].map((each) => each.innerHTML)"
        )
        assert len(set(shapes)) == len(shapes) == 5


@pytest.mark.parametrize(
    ("state", "headline"),
    [
        ("unknown", "Starting"),
        ("up", "Ready"),
        ("degraded", "Ready, but degraded"),
        ("down", "Not ready"),
    ],
)
async def test_headline_shows_the_state_of_the_service(page, state, headline):
    redis = Dependency("redis")
    async with HealthMonitor(redis) as monitor, serve(monitor, host=HOST, port=0) as server:
        if state != "unknown":
            redis.succeeded()
            assert monitor.started
        put(redis, state)
        await page.open(server.port)
        assert await page.text("#headline") == headline


async def test_servers_behind_a_dependency_are_listed_with_their_state(page):
    async def answers(_suspicious):
        return 0.001

    now = asyncio.get_running_loop().time()
    latest = FailoverRecord(now - 110.0, 1.2, 20, "10.0.0.1:6379")
    topology = Topology(
        servers=(
            TopologyServer(address="10.0.0.1:6379", role="master", state="up"),
            TopologyServer(address="10.0.0.2:6379", role="replica", state="up", lag=1.0),
            TopologyServer(address=LONG, role="replica", state="down"),
        ),
        master_since=now - 6010.0,  # shown without seconds
        sentinels=3,
        sentinels_reached=2,
        failovers=2,
        latest=latest,
    )
    redis, single = Dependency("redis"), Dependency("single")
    attachment = redis.start(answers, last_reply=lambda: -math.inf, topology=lambda: topology)
    async with (
        HealthMonitor(redis, single) as monitor,
        serve(monitor, host=HOST, port=0) as server,
    ):
        await page.open(server.port)
        summary = (await page.texts(".servers small"))[0]
        assert summary.startswith("master for 1 h 40 min · 2 of 3 Sentinels reached · 2 failovers")
        assert summary.endswith(": 1.2 s, 20 calls held")
        assert [line.split("\n") for line in await page.texts(".servers li")] == [
            ["10.0.0.1:6379", "master"],
            ["10.0.0.2:6379", "replica, 1 s behind"],
            [LONG, "replica, down"],
        ]
        hidden = await page.run(
            "return [...document.querySelectorAll('.servers')].map((row) => row.hidden)"
        )
        assert hidden == [False, True]
        await page.look(390)
        assert await page.run("return document.documentElement.scrollWidth") <= 390
    await attachment.detach()


async def test_headline_shows_a_service_that_is_draining_or_stuck(page):
    class Consumer:
        trouble = None

        def liveness_failure(self):
            return self.trouble

    consumer, redis = Consumer(), Dependency("redis")
    async with (
        HealthMonitor(redis, liveness=[consumer]) as monitor,
        serve(monitor, host=HOST, port=0) as server,
    ):
        redis.succeeded()
        await page.open(server.port)
        monitor.drain()
        await page.until_reads("#headline", "Draining")
        assert await page.text("#reasons") == (
            "Shutting down: work in progress is finished, no new work is accepted."
        )
        consumer.trouble = "its supervisor died"
        await page.until_reads("#headline", "Stuck")
        assert "its supervisor died" in await page.text("#reasons")


async def test_names_and_causes_are_shown_as_text(page):
    evil = "<img src=x onerror='window.hacked = 1'><script>window.hacked = 1</script>"
    redis = Dependency(evil)
    async with (
        HealthMonitor(redis) as monitor,
        serve(monitor, name=evil, host=HOST, port=0) as server,
    ):
        redis.failed(Cause.OTHER, evil, definite=True)
        redis.note(evil, **{"<b>": evil})
        await page.open(server.port)
        await page.until_messages(2)
        assert await page.text("#service") == evil
        assert await page.text(".row strong") == evil
        assert evil in await page.text("#recorder")
        assert await page.run("return window.hacked") is None
        assert await page.run("return document.querySelectorAll('img, b').length") == 0


async def test_screen_reader_announces_changes_only(page):
    redis = Dependency("redis")
    async with HealthMonitor(redis) as monitor, serve(monitor, host=HOST, port=0) as server:
        redis.succeeded()
        await page.open(server.port)
        await page.until_messages(2)
        assert await page.run("return announcement.textContent") == ""
        put(redis, "down")
        await page.until_reads("#announcement", "Not ready. redis is down (connection refused).")


async def test_screen_reader_finds_landmarks_and_tables_with_headers_on_a_phone_too(
    each_state, page
):
    consumer = Behind("orders", group_id="billing")
    async with serve(each_state, clients=[consumer], host=HOST, port=0) as server:
        await page.open(server.port)
        for width in (1200, 390):
            await page.look(width)
            tree = await asyncio.to_thread(
                page.browser.driver.execute_cdp_cmd, "Accessibility.getFullAXTree", {}
            )
            found = [
                (node["role"]["value"], node.get("name", {}).get("value", ""))
                for node in tree["nodes"]
                if not node["ignored"]
            ]
            assert {"banner", "main", "contentinfo", "status"} <= {role for role, _ in found}
            assert ("table", "Dependencies") in found
            assert ("table", "Flight recorder") in found
            for header in ("Name", "State", "Since", "Latency", "Retries", "Budget", "Source"):
                assert ("columnheader", header) in found, (width, header)
            rows = [name for role, name in found if role == "rowheader"]
            assert len(rows) >= 4, width
            assert ("button", "History (3) of degraded") in found
            assert any(
                role == "button" and name.startswith("All 100 partitions of ")
                for role, name in found
            )


async def test_part_expanded_by_keyboard_stays_expanded_and_keeps_the_focus(each_state, page):
    consumer = Behind("orders", group_id="billing")
    async with serve(each_state, clients=[consumer], host=HOST, port=0) as server:
        await page.open(server.port)
        assert await page.run("return document.querySelector('.partitions').checkVisibility()") is (
            False
        )
        for name in ("History (2)", "All 100 partitions"):
            await press(page, name)
            await page.until_messages(2)
            assert await page.run("return document.activeElement.textContent") == name
            assert (
                await page.run("return document.activeElement.getAttribute('aria-expanded')")
                == "true"
            )
        assert len(await page.texts(".partitions tbody tr")) == 100
        assert "for " in await page.text(".more:not([hidden]) ol")
        assert await page.text(".partitions tbody tr:nth-child(28)") == "27\n999"
        behind = sum(number * 37 % 1000 for number in range(100))
        assert f"{behind:,} behind; most: partition 27 with 999" in await page.text("#lag")


async def test_page_shows_the_partitions_with_the_most_lag(each_state, page):
    class Wide(ResilientKafkaConsumer):
        def known_lag(self):
            return {TopicPartition("orders", number): number for number in range(300)}

    consumer = Wide("orders", group_id="billing")
    async with serve(each_state, clients=[consumer], host=HOST, port=0) as server:
        await page.open(server.port)
        behind = sum(range(300))
        assert f"{behind:,} behind; most: partition 299 with 299" in await page.text("#lag")
        await press(page, "All 300 partitions")
        rows = await page.texts(".partitions tbody tr")
        assert len(rows) == 201
        assert (rows[0], rows[-1]) == ("100\n100", "100 others\n4,950")
        assert len(await page.run("return [...document.querySelectorAll('.bars i')]")) == 200


async def press(page, name):
    """Move to a button with the Tab key, and press Enter."""
    await page.run("document.activeElement.blur()")
    for _ in range(40):
        await asyncio.to_thread(page.browser.driver.switch_to.active_element.send_keys, Keys.TAB)
        if await page.run("return document.activeElement.textContent") == name:
            await asyncio.to_thread(
                page.browser.driver.switch_to.active_element.send_keys, Keys.ENTER
            )
            return
    pytest.fail(f"the Tab key does not lead to {name!r}")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_page_fits_a_phone_and_has_enough_contrast_in_light_and_dark(each_state, page, dark):
    consumer = Behind("orders", group_id=LONG)
    each_state.dependencies[2].note("x" * 300, path="y" * 300)
    every = (*each_state.dependencies, Dependency(LONG))
    put(every[-1], "down")
    async with (
        HealthMonitor(*every, recorder=each_state.recorder) as monitor,
        serve(monitor, clients=[consumer], name=LONG, host=HOST, port=0) as server,
    ):
        await page.open(server.port)
        for width in (320, 390, 800, 1200):
            await page.look(width, dark=dark)
            wide = await page.run("return document.documentElement.scrollWidth")
            assert wide <= width
        contrasts = await page.run(CONTRASTS)
        assert len(contrasts) > 50
        assert [text for contrast, text in contrasts if contrast < 4.5] == []
        ground = await page.run("return getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(each) for each in re.findall(r"\d+", ground)) / 3
        assert (brightness < 60) is dark


async def test_timeline_shows_the_states_in_order_and_outages_are_taller(page):
    redis = Dependency("redis")
    async with HealthMonitor(redis) as monitor, serve(monitor, host=HOST, port=0) as server:
        redis.succeeded()
        await asyncio.sleep(1.0)
        put(redis, "down")
        await asyncio.sleep(0.3)
        redis.succeeded()
        await asyncio.sleep(0.5)
        await page.open(server.port)
        assert await page.text("#period") == "Last minute"
        bars = await page.run(
            "return [...document.querySelectorAll('.track i')].map((bar) => {"
            "const { left, width, height } = bar.getBoundingClientRect();"
            "return [bar.dataset.state, left, width, height]; })"
        )
        track = await page.run(
            "return document.querySelector('.track').getBoundingClientRect().toJSON()"
        )
        _, (first, left, width, height), (down, down_left, down_width, tall), last = bars
        assert (first, down, last[0]) == ("up", "down", "up")
        assert width / track["width"] == pytest.approx(1 / 60, abs=0.02)
        assert down_width >= 3
        assert down_left == pytest.approx(left + width, abs=1.0)
        assert tall > 2 * height
        assert last[1] + last[2] == pytest.approx(track["right"], abs=1.0)
        assert re.match(r"1 outage, 0\.[3-9] s", await page.text(".ends small"))


async def test_latency_of_a_server_that_is_down_is_not_shown(page):
    redis = Dependency("redis")
    latency = "return document.querySelector('[data-label=Latency] span').textContent"
    async with HealthMonitor(redis) as monitor, serve(monitor, host=HOST, port=0) as server:
        redis.succeeded(0.0012)
        await page.open(server.port)
        await page.until(f"{latency} === '1.2 ms'")
        put(redis, "down")
        await page.until(f"{latency} === '{NOTHING}'")
        redis.succeeded(0.0034)
        await page.until(f"{latency} === '3.4 ms'")


async def test_long_errors_are_hidden_until_the_user_clicks(page):
    redis = Dependency("redis")
    error = "Error while reading: " + "connection reset by peer, " * 8
    async with HealthMonitor(redis) as monitor, serve(monitor, host=HOST, port=0) as server:
        redis.succeeded()
        assert monitor.started
        redis.failed(Cause.RESET, error, definite=True)
        await page.open(server.port)
        await page.until_reads("#headline", "Not ready")
        visible = await page.text("body")
        assert "peer, connection reset by peer" not in visible
        assert await page.text(".cause") == "reset"
        await page.run("document.querySelector('.cause summary').click()")
        await page.until_messages(2)  # an update does not close it
        assert error.strip() in await page.text(".cause")


async def test_red_of_the_dark_theme_is_red(page):
    redis = Dependency("redis")
    async with HealthMonitor(redis) as monitor, serve(monitor, host=HOST, port=0) as server:
        put(redis, "down")
        await page.open(server.port)
        for dark in (False, True):
            await page.look(dark=dark)
            color = await page.run(
                "return getComputedStyle(document.querySelector('.row .word')).color"
            )
            red, green, blue = map(int, re.findall(r"\d+", color)[:3])
            assert red - max(green, blue) > 140, color
            assert abs(green - blue) < 20, color


async def test_policy_blocks_an_inline_script_and_style(page):
    redis = Dependency("redis")
    async with HealthMonitor(redis) as monitor, serve(monitor, host=HOST, port=0) as server:
        await page.open(server.port)
        for tag, attribute in (("script", "window.hacked = 1"), ("style", "main { width: 1px }")):
            await page.run(
                "const node = document.createElement(arguments[0]);"
                "node.textContent = arguments[1]; document.head.append(node);",
                tag,
                attribute,
            )
        assert await page.run("return window.hacked") is None
        assert await page.run("return document.querySelector('main').clientWidth") > 100
        blocked = await asyncio.to_thread(page.browser.complaints)
        assert len([each for each in blocked if "Content Security Policy" in each]) == 2


async def test_numbers_have_units(page):
    redis = Dependency("redis")
    async with HealthMonitor(redis) as monitor, serve(monitor, host=HOST, port=0) as server:
        redis.succeeded(0.00042)
        await page.open(server.port)
        texts = await page.run(
            "return [duration(0.42), duration(59.9), duration(61), duration(600), duration(7300),"
            "duration(180000), latency(0.00042), latency(0.25), latency(2), latency(null),"
            "bytes(999), bytes(1500), bytes(123456789), number(1234567), number(null)]"
        )
        assert texts == [
            *("0.4 s", "59 s", "1 min 1 s", "10 min", "2 h 1 min"),
            *("2 days", "0.4 ms", "250 ms", "2.0 s", NOTHING),
            *("999 B", "1.5 kB", "123 MB", "1,234,567", NOTHING),
        ]
        assert math.isclose(redis.latency, 0.00042)


NOTHING = "\N{EN DASH}"
