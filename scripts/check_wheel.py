"""Build the wheel, install it into a new environment, and import every public name."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Runs in the new environment, outside the checkout.
IMPORT = """
import importlib.metadata, importlib.resources, sys
import resilient_io
assert sys.prefix in resilient_io.__file__, resilient_io.__file__
for file in ("py.typed", "serve/status.html"):
    assert importlib.resources.files(resilient_io).joinpath(file).is_file(), file
for name in resilient_io.__all__:
    getattr(resilient_io, name)
version = importlib.metadata.version("resilient-io")
print(f"resilient-io {version}: {len(resilient_io.__all__)} public names import")
"""

# The command without its extra: probe works, and the rest names the missing extra.
ASKED = (
    (("probe", "--file", "nowhere"), 1, "no heartbeat at nowhere"),
    (("doctor", "redis://127.0.0.1"), 2, "pip install 'resilient-io[cli]'"),
)


def pip(python: Path | str, *arguments: str) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        wheels, fresh = Path(folder, "wheels"), Path(folder, "venv")
        # The lock of this environment contains the build backend.
        here = ("--no-index", "--no-deps", "--no-build-isolation", str(ROOT))
        pip(sys.executable, "wheel", "-q", "--wheel-dir", str(wheels), *here)
        (wheel,) = wheels.glob("*.whl")
        venv.create(fresh, symlinks=True, with_pip=True)
        python = fresh / "bin" / "python"
        lock = ROOT / "requirements" / "runtime.txt"
        pip(python, "install", "-q", "--require-hashes", "-r", str(lock))
        pip(python, "install", "-q", "--no-index", "--no-deps", str(wheel))
        # The lock must contain all requirements of the wheel.
        pip(python, "check")
        print(wheel.name, flush=True)
        imported = subprocess.run([python, "-W", "error", "-c", IMPORT], cwd=folder, check=False)
        if imported.returncode:
            sys.exit(f"{wheel.name} does not import")
        command = fresh / "bin" / "resilient-io"
        for arguments, code, said in ASKED:
            asked = subprocess.run(
                [command, *arguments], cwd=folder, check=False, capture_output=True, text=True
            )
            if asked.returncode != code or said not in asked.stderr + asked.stdout:
                sys.exit(f"{command.name} {' '.join(arguments)}: {asked}")


if __name__ == "__main__":
    main()
