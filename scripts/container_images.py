"""Build the images for the tests in containers, and print their names as JSON.

If the public images can be pulled, name them; then only the images of the two services are built:

    RESILIENT_IO_REDIS_IMAGE=redis:8
    RESILIENT_IO_KAFKA_IMAGE=apache/kafka:4.3.0
    RESILIENT_IO_PYTHON_IMAGE=python:3.13-slim

Other images are based on one that is built here with debootstrap (Debian, as root): Redis and
Python of the machine's release, so that the machine's Java runs there too, with the Kafka that
`make servers` downloaded. If that image cannot be built, the public names above are used. An image
is built again only if its content has changed.

The image of a service follows its Dockerfile. Two lines are replaced: the base image, and `RUN pip
install`, which has no network here. Instead the packages are copied, as requirements/test.txt locks
them, and with them the package of this checkout.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import docker.errors
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / ".servers" / "containers"
IMAGES = ROOT / "tests" / "containers" / "images"
EXAMPLE = ROOT / "examples" / "order_service"
SITE = "/opt/site"

PUBLIC = {"redis": "redis:8", "kafka": "apache/kafka:4.3.0", "python": "python:3.13-slim"}
PACKAGES = "redis-server,redis-tools,python3"
# What no program in a container looks at.
LEFT_OUT = (
    "./proc/*",
    "./sys/*",
    "./var/cache/apt",
    "./var/lib/apt/lists/*",
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./var/log/*",
)
# What only who compiles needs.
NOT_TO_RUN = ("jmods", "src.zip", "ct.sym", "include", "docs", "demo", "man", "legal")
# What `resilient-io probe` in the HEALTHCHECK and serving take.
EXTRAS = ("serve", "prometheus")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def digest(*parts: bytes | str | Path) -> str:
    """The digest of texts, files and folders."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for path in sorted(part.rglob("*")) if part.is_dir() else [part]:
                if path.is_file() and "__pycache__" not in path.parts:
                    found.update(str(path.relative_to(part)).encode() + path.read_bytes())
        else:
            found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()[:12]


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    started = time.monotonic()
    say(f"{what} ...")
    yield
    say(f"{what}: {time.monotonic() - started:.1f} s")


class Workshop:
    """Makes images with an engine."""

    def __init__(self, engine: docker.DockerClient) -> None:
        self.engine = engine
        self._base: str | None = None

    def has(self, image: str) -> bool:
        try:
            self.engine.images.get(image)
        except docker.errors.ImageNotFound:
            return False
        return True

    # -- the base ------------------------------------------------------------------------------

    @staticmethod
    def makes_base() -> bool:
        return os.geteuid() == 0 and shutil.which("debootstrap") is not None

    def public(self, kind: str) -> str | None:
        """The image that was named for this, or has to be taken for want of a base."""
        named = os.environ.get(f"RESILIENT_IO_{kind.upper()}_IMAGE")
        if named is None and not self.makes_base():
            named = PUBLIC[kind]
        if named is not None and not self.has(named):
            with telling(f"pulling {named}"):
                self.engine.images.pull(named)
        return named

    def base(self) -> str:
        if self._base is None:
            suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "stable")
            self._base = f"resilient-io/base:{digest(PACKAGES, suite, str(LEFT_OUT))}"
            if not self.has(self._base):
                with tempfile.TemporaryDirectory(dir=STORE) as folder:
                    rootfs = Path(folder) / "rootfs"
                    with telling("the base, by debootstrap"):
                        bootstrap(rootfs, suite)
                    with telling("importing the base"):
                        self._import(rootfs, self._base)
        return self._base

    def _import(self, rootfs: Path, image: str) -> None:
        without = [f"--exclude={pattern}" for pattern in LEFT_OUT]
        command = ["tar", "-C", rootfs, *without, "-c", "."]
        repository, _, tag = image.partition(":")
        with subprocess.Popen(command, stdout=subprocess.PIPE) as archive:
            self.engine.api.import_image_from_stream(archive.stdout, repository, tag)
        if archive.returncode:
            sys.exit(f"tar failed with {archive.returncode}")

    # -- images --------------------------------------------------------------------------------

    def redis(self) -> str:
        return self.public("redis") or self.base()

    def kafka(self) -> str:
        if (named := self.public("kafka")) is not None:
            return named
        libs = kafka_libs()
        names = ",".join(sorted(path.name for path in libs.iterdir()))
        inputs = digest(self.base(), names, str(java_home()), IMAGES / "kafka")
        image = f"resilient-io/kafka:{inputs}"
        if not self.has(image):
            with tempfile.TemporaryDirectory(dir=STORE) as folder, telling("the image of Kafka"):
                shutil.copytree(IMAGES / "kafka", folder, dirs_exist_ok=True)
                shutil.copytree(libs, Path(folder) / "libs", copy_function=os.link)
                shutil.copytree(
                    java_home(),
                    Path(folder) / "java",
                    ignore=shutil.ignore_patterns(*NOT_TO_RUN),
                    ignore_dangling_symlinks=True,
                )
                self._build(image, folder, BASE=self.base())
        return image

    def service(self, name: str, source: Path) -> str:
        """The image of a service, from its folder with a Dockerfile."""
        base = self.public("python") or self.base()
        version = self._python(base)
        packages = Packages(version)
        package = ROOT / "src" / "resilient_io"
        image = f"resilient-io/{name}:{digest(base, packages.digest, package, source, __file__)}"
        if not self.has(image):
            with tempfile.TemporaryDirectory(dir=STORE) as folder, telling(f"the image {name}"):
                context = Path(folder) / "context"
                shutil.copytree(source, context, ignore=shutil.ignore_patterns("__pycache__"))
                shutil.copytree(packages.folder(), context / "packages", copy_function=os.link)
                own_package(context / "own")
                file = context / "Dockerfile"
                file.write_text(imported(file.read_text(), base))
                self._build(image, str(context))
        return image

    def _python(self, image: str) -> str:
        ask = "import sys; print('%d.%d' % sys.version_info[:2])"
        said = self.engine.containers.run(
            image, ["python3", "-c", ask], remove=True, network_mode="none"
        )
        return str(said.decode().strip())

    def _build(self, image: str, folder: str, **arguments: str) -> None:
        try:
            self.engine.images.build(
                path=folder, tag=image, buildargs=arguments, rm=True, network_mode="none"
            )
        except docker.errors.BuildError as error:
            said = "".join(line.get("stream", "") for line in error.build_log)
            sys.exit(f"building {image} failed: {error}\n{said[-2000:]}")


def bootstrap(rootfs: Path, suite: str) -> None:
    """Debian's smallest system with Redis and Python."""
    log = STORE / "debootstrap.log"
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, rootfs]
    # The machine's own mirror.
    command += [mirror(suite)] if mirror(suite) else []
    with log.open("wb") as output:
        done = subprocess.run(command, stdout=output, stderr=output, check=False)
    # Left mounted, they would keep the folder from being removed.
    for mounted in ("proc", "sys"):
        subprocess.run(["umount", "-q", rootfs / mounted], check=False)
    if done.returncode:
        sys.exit(f"debootstrap failed:\n{log.read_text()[-2000:]}")
    (rootfs / "usr/bin/python").symlink_to("python3")
    (rootfs / "data").mkdir()
    (rootfs / "data").chmod(0o777)


def mirror(suite: str) -> str | None:
    asked = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in asked.stdout.splitlines():
        codename, _, address = line.partition(" ")
        if codename == suite:
            return address
    return None


def java_home() -> Path:
    java = shutil.which("java")
    if java is None:
        sys.exit("There is no Java: run `make servers`.")
    asked = subprocess.run(
        [java, "-XshowSettings:properties", "-version"], capture_output=True, text=True, check=True
    )
    found = re.search(r"java\.home = (.+)", asked.stderr)
    return Path(found[1] if found else java).resolve()


def kafka_libs() -> Path:
    named = os.environ.get("RESILIENT_IO_KAFKA_LIBS")
    found = [Path(named)] if named else sorted((ROOT / ".servers").glob("kafka-*/libs"))
    if not found:
        sys.exit("There is no Kafka yet: run `make servers`.")
    return found[-1]


def imported(dockerfile: str, base: str) -> str:
    """The Dockerfile of a service, with what is laid in instead of fetched."""
    lay_in = (
        f"COPY packages {SITE}\nCOPY own {SITE}\n"
        f"ENV PYTHONPATH={SITE} PATH={SITE}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    )
    text, begun = re.subn(r"^FROM \S+$", f"FROM {base}", dockerfile, flags=re.MULTILINE)
    text, laid_in = re.subn(r"^RUN pip install [^\\\n]*$", lay_in, text, flags=re.MULTILINE)
    if (begun, laid_in) != (1, 1):
        sys.exit("A Dockerfile needs one line `FROM image` and one `RUN pip install ...`.")
    return text


def own_package(folder: Path) -> None:
    """This checkout's package as pip would install it, with its command."""
    package = folder / "resilient_io"
    shutil.copytree(
        ROOT / "src" / "resilient_io", package, ignore=shutil.ignore_patterns("__pycache__")
    )
    found = importlib.metadata.distribution("resilient-io")
    about = folder / f"resilient_io-{found.version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(found.read_text("METADATA") or "")
    (folder / "bin").mkdir()
    for script in found.entry_points.select(group="console_scripts"):
        module, _, name = script.value.partition(":")
        command = folder / "bin" / script.name
        command.write_text(
            f"#!/usr/bin/env python3\nimport sys\nfrom {module} import {name}\nsys.exit({name}())\n"
        )
        command.chmod(0o755)


class Packages:
    """The packages that a service needs, as the lock names them, for a version of Python."""

    def __init__(self, python: str) -> None:
        self.python = python
        self.lines = self._locked(self._needed("resilient-io", EXTRAS))
        self.digest = digest(python, *self.lines)

    def folder(self) -> Path:
        folder = STORE / f"packages-{self.digest}"
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=STORE) as work, telling("fetching packages"):
                wanted = Path(work) / "requirements.txt"
                wanted.write_text("\n".join(self.lines))
                machine = os.uname().machine
                platforms = [f"manylinux{each}_{machine}" for each in ("2014", "_2_17", "_2_28")]
                subprocess.run(
                    [
                        sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q",
                        "--require-hashes", "--no-deps", "--only-binary=:all:",
                        "--implementation=cp", f"--python-version={self.python}",
                        *[f"--platform={each}" for each in platforms],
                        f"--target={work}/site", "-r", wanted,
                    ],
                    check=True, stdout=sys.stderr,
                )  # fmt: skip
                Path(work, "site").rename(folder)
        return folder

    def _needed(self, name: str, extras: tuple[str, ...], seen: Any = None) -> set[str]:
        """The names of all that this needs, by what is installed here."""
        seen = {} if seen is None else seen
        if name in seen and set(extras) <= seen[name]:
            return set()
        seen[name] = {*seen.get(name, ()), *extras}
        for line in importlib.metadata.requires(name) or []:
            need = Requirement(line)
            there = {"python_version": self.python, "python_full_version": f"{self.python}.0"}
            for extra in ("", *extras):
                if need.marker is None or need.marker.evaluate({**there, "extra": extra}):
                    self._needed(canonicalize_name(need.name), tuple(sorted(need.extras)), seen)
                    break
        return {*seen} - {"resilient-io"}

    @staticmethod
    def _locked(names: set[str]) -> list[str]:
        text = (ROOT / "requirements" / "test.txt").read_text()
        pins = re.findall(r"^(([\w.-]+)==\S+).*?((?:\\\n\s+--hash=\S+ ?)+)", text, re.MULTILINE)
        locked = {canonicalize_name(name): f"{pin} {hashes}" for pin, name, hashes in pins}
        if missing := names - {*locked}:
            sys.exit(f"requirements/test.txt lacks {', '.join(sorted(missing))}: run `make lock`.")
        return [locked[name] for name in sorted(names)]


def main() -> None:
    STORE.mkdir(parents=True, exist_ok=True)
    with (STORE / "lock").open("w") as lock:
        # Two test processes must not make the same image.
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine = docker.from_env(timeout=300)
        workshop = Workshop(engine)
        names = {
            "redis": workshop.redis(),
            "kafka": workshop.kafka(),
            "order_service": workshop.service("order-service", EXAMPLE),
            "plain": workshop.service("plain", IMAGES / "plain"),
        }
        engine.close()
    print(json.dumps(names))


if __name__ == "__main__":
    main()
