"""Tests of README.md, DESIGN.md and docs/: every block of Python runs, against real servers.

The blocks of one page run in order, in one namespace, with `await` at the top level as in
`python -m asyncio`. A block with `asyncio.run(` is a program, and a block with `def test_` is a
file of tests for pytest; both run in a process of their own. Shell blocks may only name commands
of this repository that exist.
"""

import ast
import asyncio
import inspect
import re
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from importlib.metadata import packages_distributions, requires
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import redis.asyncio
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "DESIGN.md", *sorted((ROOT / "docs").rglob("*.md"))]
ADDRESS = "redis://localhost:6379"
BROKER = "localhost:9092"
TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
KNOWN_MODULES = sys.stdlib_module_names | {"resilient_io", "redis", "aiokafka"}

_FENCE = re.compile(r"^( *)```([\w-]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)

_PYTEST = """\
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
addopts = -p no:cacheprovider
"""


@dataclass(frozen=True)
class Block:
    """A fenced block, with the line of its first line of code."""

    language: str
    code: str
    line: int


def blocks_of(page):
    text = page.read_text()
    return [
        Block(found[2], textwrap.dedent(found[3]), text.count("\n", 0, found.start()) + 2)
        for found in _FENCE.finditer(text)
    ]


def name_of(page):
    return str(page.relative_to(ROOT))


def pages_with(*languages):
    return [
        pytest.param(page, id=name_of(page))
        for page in PAGES
        if any(block.language in languages for block in blocks_of(page))
    ]


def pages_of_python(*, kafka):
    """Return the pages whose code needs a Kafka broker, or those whose code does not."""
    return [
        page for page in pages_with("python") if (BROKER in page.values[0].read_text()) is kafka
    ]


@pytest.fixture(autouse=True)
def classes_of_redis_py(monkeypatch):
    """Restore the classes that a page replaces."""
    for module in (redis.asyncio, redis.asyncio.client):
        for name in ("Redis", "StrictRedis"):
            monkeypatch.setattr(module, name, getattr(module, name))


@pytest.mark.parametrize("page", pages_of_python(kafka=False))
async def test_python_of_a_page_runs(page, redis_server, tmp_path):
    await run_page(page, tmp_path, {ADDRESS: f"redis://127.0.0.1:{redis_server.port}"})


@pytest.mark.parametrize("page", pages_of_python(kafka=True))
async def test_python_of_a_page_with_kafka_runs(page, redis_server, kafka_server, tmp_path):
    addresses = {
        ADDRESS: f"redis://127.0.0.1:{redis_server.port}",
        BROKER: kafka_server.bootstrap_servers,
    }
    await run_page(page, tmp_path, addresses)


async def run_page(page, folder, addresses):
    async with asyncio.timeout(90):  # a page that hangs fails with its line in the traceback
        await run_blocks(page, folder, addresses)


async def run_blocks(page, folder, addresses):
    namespace = {"__name__": "__docs__"}
    for block in blocks_of(page):
        if block.language != "python":
            continue
        code = block.code
        for written, real in addresses.items():
            code = code.replace(written, real)
        if "asyncio.run(" in code:
            await run_program(code, folder)
        elif "def test_" in code:
            await run_tests(code, folder)
        else:
            await run_block(code, block.line, name_of(page), namespace)


async def run_block(code, line, page, namespace):
    # The empty lines give the traceback the line numbers of the page.
    compiled = compile("\n" * (line - 1) + code, page, "exec", flags=TOP_LEVEL_AWAIT)
    result = eval(compiled, namespace)  # noqa: S307 -- our own pages
    if inspect.iscoroutine(result):
        await result


async def run_program(code, folder):
    program = folder / "program.py"
    program.write_text(code)
    await run_python(program, folder=folder)


async def run_tests(code, folder):
    (folder / "pytest.ini").write_text(_PYTEST)
    tests = folder / "test_of_page.py"
    tests.write_text(code)
    await run_python("-m", "pytest", tests, folder=folder)


async def run_python(*arguments, folder):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        *map(str, arguments),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(100):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()


@pytest.mark.parametrize("page", pages_with("python"))
def test_packages_that_a_page_imports_are_named_with_pip_install(page):
    text = page.read_text()
    installed = set(re.findall(r"[\w.-]+", " ".join(re.findall(r"pip install ([^`\n]*)", text))))
    for extra in re.findall(r"resilient-io\[([\w,]+)\]", text):
        installed |= {name for name, marker in required_by() if marker in extra.split(",")}
    for block in blocks_of(page):
        if block.language == "python":
            for module in modules_of(block.code) - KNOWN_MODULES:
                found = {
                    name.lower().replace("_", "-") for name in packages_distributions()[module]
                }
                where = f"{name_of(page)}:{block.line}"
                assert found & installed, f"{where}: write `pip install` for {module}"


def modules_of(code):
    """Return the top-level modules that code imports."""
    found = set()
    for node in ast.walk(compile(code, "page", "exec", flags=ast.PyCF_ONLY_AST | TOP_LEVEL_AWAIT)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    return found


def required_by():
    """Return the packages that extras of resilient-io require, each with its extra."""
    for required in requires("resilient-io"):
        name, extra = re.match(r"([\w.-]+)", required)[1], re.search(r"extra == '(\w+)'", required)
        if extra:
            yield name.lower(), extra[1]


@pytest.mark.parametrize("page", pages_with("sh", "console"))
def test_commands_of_a_page_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for block in blocks_of(page):
        if block.language not in {"sh", "console"}:
            continue
        for target in re.findall(r"\bmake ([a-z-]+)", block.code):
            assert target in targets, f"{name_of(page)}:{block.line}: no `make {target}`"
        for module in re.findall(r"\bpython -m ([\w.]+)", block.code):
            assert find_spec(module), f"{name_of(page)}:{block.line}: no module {module}"
        for script in re.findall(r"\bpython ([\w/]+\.py)", block.code):
            assert (ROOT / script).exists(), f"{name_of(page)}:{block.line}: no {script}"


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_yaml_of_a_page_is_valid(page):
    for block in blocks_of(page):
        if block.language == "yaml":
            assert all(yaml.safe_load_all(block.code)), f"{name_of(page)}:{block.line}"


@pytest.mark.parametrize("page", pages_with("toml"))
def test_toml_of_a_page_is_valid(page):
    for block in blocks_of(page):
        if block.language == "toml":
            assert tomllib.loads(block.code), f"{name_of(page)}:{block.line}"


def test_code_blocks_name_a_language_that_is_checked():
    known = {"python", "sh", "console", "text", "mermaid", "yaml", "toml", "command-table"}
    for page in PAGES:
        for block in blocks_of(page):
            where = f"{name_of(page)}:{block.line}"
            assert block.language in known, f"{where}: unknown language {block.language!r}"


def anchors_of(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_have_a_target():
    for page in PAGES:
        for link, _, anchor in re.findall(r"\]\(([^)#:]*)(#([^)]*))?\)", page.read_text()):
            target = (page.parent / link) if link else page
            assert target.exists(), f"{name_of(page)}: {link} does not exist"
            if anchor:
                assert anchor in anchors_of(target), f"{name_of(page)}: no {anchor} in {link}"


def test_the_example_of_the_readme_prints_what_the_readme_shows(capsys):
    example, output = blocks_of(ROOT / "README.md")[1:3]
    assert (example.language, output.language) == ("python", "text")
    asyncio.run(run_block(example.code, example.line, "README.md", {}))
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed == output.code.splitlines()


def test_readme_has_the_tables_of_the_benchmarks_page():
    readme = (ROOT / "README.md").read_text()
    spec = spec_from_file_location("readme_tables", ROOT / "scripts" / "readme_tables.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.with_current_tables(readme) == readme


def test_navigation_of_the_site_lists_every_page():
    class Loader(yaml.SafeLoader):
        """Reads the names of functions in mkdocs.yml as None."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda *_: None)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)  # noqa: S506 -- a safe loader
    pages = sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))
    assert sorted(pages_in(config["nav"])) == pages


def pages_in(navigation):
    if isinstance(navigation, str):
        return [navigation]
    entries = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for entry in entries for page in pages_in(entry)]


def test_files_that_the_design_names_exist():
    named = re.findall(r"`(?:[\w/]+/)?(\w+\.py)`", (ROOT / "DESIGN.md").read_text())
    assert set(named) <= {path.name for path in (ROOT / "src").rglob("*.py")}
