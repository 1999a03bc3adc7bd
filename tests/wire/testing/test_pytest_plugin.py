"""The pytest plugin in another project."""

import pytest

pytest_plugins = ["pytester"]

CONFIGURATION = """
[pytest]
asyncio_mode = {mode}
asyncio_default_fixture_loop_scope = function
filterwarnings = error
addopts = --strict-markers -p no:cacheprovider -rs
"""


@pytest.fixture(params=["auto", "strict"])
def project(pytester, request):
    pytester.makeini(CONFIGURATION.format(mode=request.param))
    return pytester


def run(project, code):
    project.makepyfile("import asyncio\nimport pytest\npytestmark = pytest.mark.asyncio\n" + code)
    return project.runpytest_subprocess()


def test_fixtures_provide_servers_and_a_proxy(project):
    result = run(
        project,
        """
async def test_fresh(redis_server, shared_redis, fault_proxy):
    assert fault_proxy.target == (redis_server.host, redis_server.port)
    assert redis_server.port != shared_redis.port
    await shared_redis.query("SET", "k", 1)

async def test_flushed(shared_redis):
    assert await shared_redis.query("DBSIZE") == 0
""",
    )
    result.assert_outcomes(passed=2)


def test_marker_selects_virtual_time(project):
    result = run(
        project,
        """
from resilient_io.testing import VirtualTimeLoop

@pytest.mark.virtual_time
async def test_virtual():
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
    await asyncio.sleep(3600)

async def test_real():
    assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)

@pytest.mark.virtual_time
async def test_servers_need_real_time(shared_redis):
    pass

@pytest.mark.virtual_time
async def test_that_hangs():
    await asyncio.Event().wait()
""",
    )
    result.assert_outcomes(passed=2, failed=1, errors=1)
    result.stdout.fnmatch_lines_random(
        ["*shared_redis needs real time*", "*NothingWillHappenError: no timer is set*"]
    )


def test_loop_factories_of_the_project_are_kept(project):
    project.makeconftest(
        """
import asyncio

class Loop(asyncio.SelectorEventLoop):
    own = True

def pytest_asyncio_loop_factories(config, item):
    return {"own": Loop}
"""
    )
    result = run(
        project,
        """
from resilient_io.testing import VirtualTimeLoop

async def test_own():
    assert asyncio.get_running_loop().own

@pytest.mark.virtual_time
async def test_virtual():
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
""",
    )
    result.assert_outcomes(passed=2)


def test_leaked_task_fails_the_test(project):
    result = run(
        project,
        """
pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("no_leaks")]
kept = []

async def test_leaves_one():
    kept.append(asyncio.create_task(asyncio.sleep(60), name="left"))

async def test_leaves_one_that_ends_by_itself():
    kept.append(asyncio.create_task(asyncio.sleep(0)))
""",
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*the test left tasks behind:*", "*<Task*name='left'*"])


@pytest.mark.parametrize("project", ["auto"], indirect=True)
def test_fixtures_provide_a_shared_and_a_private_broker(project, shared_kafka):
    result = run(
        project,
        """
async def test_shared(shared_kafka):
    await shared_kafka.create_topic("t")

async def test_the_same(shared_kafka, kafka_server):
    assert await shared_kafka.topics() == ["t"]
    assert await kafka_server.topics() == []

@pytest.mark.virtual_time
async def test_brokers_need_real_time(kafka_server):
    pass
""",
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*kafka_server needs real time*"])


@pytest.mark.parametrize("required", [True, False])
def test_tests_without_kafka_are_skipped_with_the_reason_or_fail_if_required(
    project, monkeypatch, required
):
    monkeypatch.setenv("RESILIENT_IO_KAFKA_LIBS", "/missing/libs")
    monkeypatch.setenv("RESILIENT_IO_REQUIRE_SERVERS", str(int(required)))
    project.makepyfile(
        "async def test_shared(shared_kafka): pass\n"
        "async def test_own(kafka_server): pass\n"
        "async def test_cluster(kafka_cluster): pass\n"
    )
    result = project.runpytest_subprocess("-rs", "--asyncio-mode=auto")
    if required:
        result.assert_outcomes(errors=3)
        result.stdout.fnmatch_lines(["*RESILIENT_IO_REQUIRE_SERVERS=1, but*"])
    else:
        result.assert_outcomes(skipped=3)
        result.stdout.fnmatch_lines(["*NEEDS A SERVER*/missing/libs*"])


@pytest.mark.parametrize("required", [True, False])
def test_tests_without_redis_are_skipped_with_the_reason_or_fail_if_required(
    project, monkeypatch, required
):
    monkeypatch.setenv("RESILIENT_IO_REDIS_SERVER", "/missing/redis-server")
    monkeypatch.setenv("RESILIENT_IO_REQUIRE_SERVERS", str(int(required)))
    project.makepyfile("async def test_needs_one(redis_server): pass")
    result = project.runpytest_subprocess("-rs", "--asyncio-mode=auto")
    if required:
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*RESILIENT_IO_REQUIRE_SERVERS=1, but*"])
    else:
        result.assert_outcomes(skipped=1)
        result.stdout.fnmatch_lines(["*NEEDS A SERVER*/missing/redis-server*"])


def test_missing_server_skips_a_test_without_fixtures(project, monkeypatch):
    monkeypatch.setenv("RESILIENT_IO_KAFKA_LIBS", "/missing/libs")
    monkeypatch.setenv("RESILIENT_IO_REQUIRE_SERVERS", "0")
    result = run(
        project,
        """
from resilient_io.testing import KafkaServer

async def test_own_server():
    async with KafkaServer():
        pass

async def test_other_errors_still_fail():
    raise LookupError
""",
    )
    result.assert_outcomes(skipped=1, failed=1)
    result.stdout.fnmatch_lines(["SKIPPED*NEEDS A SERVER*/missing/libs*"])


def test_fault_that_never_hit_a_request_fails_the_test(project):
    result = run(
        project,
        """
from resilient_io.testing import FaultProxy

async def test_unused(fault_proxy):
    fault_proxy.drop_reply("INCR")

async def test_withdrawn(fault_proxy):
    fault_proxy.drop_reply("INCR").remove()
    fault_proxy.hold("INCR")
    fault_proxy.restore()

async def test_that_has_failed_has_no_second_error(fault_proxy):
    fault_proxy.drop_reply("INCR")
    raise LookupError

async def test_own_proxy(redis_server):
    async with FaultProxy(redis_server.port) as proxy:
        proxy.drop_reply("INCR", nth=2)
""",
    )
    result.assert_outcomes(passed=2, failed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*never hit a request: <Fault DROP_REPLY on 'INCR', hit 0>; forwarded requests: none*",
            "*never hit a request: <Fault DROP_REPLY on 'INCR', nth=2, hit 0>*",
        ],
        consecutive=False,
    )


@pytest.mark.parametrize("project", ["auto"], indirect=True)
def test_fixture_provides_the_embedded_broker(project):
    result = run(
        project,
        """
async def test_embedded(embedded_kafka):
    await embedded_kafka.create_topic("t")
    assert await embedded_kafka.topics() == ["t"]
""",
    )
    result.assert_outcomes(passed=1)


def test_plugin_can_be_disabled(project):
    project.makepyfile("def test_plain(): pass\nasync def test_redis(redis_server): pass")
    result = project.runpytest_subprocess("-p", "no:resilient_io", "--asyncio-mode=auto")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*fixture 'redis_server' not found*"])


def test_plugin_is_silent_without_pytest_asyncio(project):
    project.makepyfile("def test_plain(): pass")
    result = project.runpytest_subprocess("-p", "no:asyncio", "-o", "filterwarnings=error")
    # The project's file names options of pytest-asyncio, which are unknown without it.
    result.stderr.no_fnmatch_line("*resilient_io*")
    project.makeini("[pytest]\nfilterwarnings = error\n")
    project.runpytest_subprocess("-p", "no:asyncio").assert_outcomes(passed=1)


def test_plugin_does_not_change_projects_that_do_not_use_it(project):
    result = run(
        project,
        """
import sys

async def test_loop_is_not_parametrized(request):
    assert not hasattr(request.node, "callspec")
    used = [name for name in sys.modules if name.startswith("resilient_io.")]
    assert used == ["resilient_io.testing", "resilient_io.testing.pytest_plugin"]
""",
    )
    result.assert_outcomes(passed=1)
