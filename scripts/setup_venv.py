"""Create or update the virtual environment of the running Python, and print its path.

Each version of Python has one (`.venv-3.11`, ...). It contains the locks named as arguments
(`test,lint`: `requirements/test.txt` and `requirements/lint.txt`), with checked hashes, and the
project itself, editable. If nothing has changed, this does nothing; if a lock has changed, the
environment is created again, so that it contains nothing obsolete.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def lock_digest(lock: str) -> str:
    return digest((ROOT / "requirements" / f"{lock}.txt").read_text())


class Environment:
    """A virtual environment that remembers, in stamp files, what was installed into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stamps = path / ".stamps"

    def has(self, what: str, state: str) -> bool:
        stamp = self.stamps / what
        return stamp.is_file() and stamp.read_text() == state

    def remember(self, what: str, state: str) -> None:
        (self.stamps / what).write_text(state)

    def pip(self, *arguments: str) -> None:
        command = [str(self.path / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        # The caller reads the path of the environment from standard output.
        subprocess.run([*command, *arguments], cwd=ROOT, stdout=sys.stderr, check=True)

    def is_stale(self, base: str) -> bool:
        """Whether its Python or path differs, or a lock has changed."""
        if not self.has("base", base):
            return True
        locks = [stamp.stem for stamp in self.stamps.glob("*.lock")]
        return not all(
            (ROOT / "requirements" / f"{lock}.txt").is_file()
            and self.has(f"{lock}.lock", lock_digest(lock))
            for lock in locks
        )

    def create(self, base: str) -> None:
        if importlib.util.find_spec("ensurepip") is None:
            version = sysconfig.get_python_version()
            sys.exit(
                f"{sys.executable} cannot create virtual environments: ensurepip is missing."
                f" On Debian or Ubuntu install python{version}-venv;"
                " or use another Python: make ... PYTHON=/path/to/python",
            )
        print(f"Setting up {self.path.name} ...", file=sys.stderr)
        shutil.rmtree(self.path, ignore_errors=True)
        venv.create(self.path, symlinks=True, with_pip=True)
        self.stamps.mkdir()
        self.remember("base", base)

    def install(self, locks: list[str]) -> None:
        """Install the missing locks and the project."""
        project = digest((ROOT / "pyproject.toml").read_text())
        missing = [lock for lock in locks if not self.has(f"{lock}.lock", lock_digest(lock))]
        for lock in missing:
            self.pip("install", "-q", "--require-hashes", "-r", f"requirements/{lock}.txt")
        if missing or not self.has("project", project):
            # The lock contains the build backend: nothing is downloaded here.
            here = ("--no-deps", "--no-index", "--no-build-isolation", "--editable", ".")
            self.pip("install", "-q", *here)
            self.pip("check", "-q")
        for lock in missing:
            self.remember(f"{lock}.lock", lock_digest(lock))
        self.remember("project", project)


def main() -> None:
    # `test` contains the dependencies of the package and the build backend, which the others need.
    locks = list(dict.fromkeys(["test", *sys.argv[1].split(",")]))
    environment = Environment(ROOT / f".venv-{sysconfig.get_python_version()}")
    base = digest(sys.version, sys.executable, str(environment.path), Path(__file__).read_text())
    with Path(f"{environment.path}.lock").open("w") as lock_file:
        # Concurrent calls of make must not create the same environment.
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        started = time.monotonic()
        if environment.is_stale(base):
            environment.create(base)
        try:
            environment.install(locks)
        except subprocess.CalledProcessError as error:
            sys.exit(f"Setting up {environment.path.name} failed: pip exited {error.returncode}")
        if (took := time.monotonic() - started) > 1:
            print(f"{environment.path.name} is ready ({took:.0f} s)", file=sys.stderr)
    print(environment.path)


if __name__ == "__main__":
    main()
