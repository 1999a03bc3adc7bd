#!/bin/sh
# Prints the Python to use: the first of 3.13, 3.12 and 3.11 on the PATH, or else a python3 that is
# new enough. With --all: one of each of 3.11, 3.12 and 3.13, including those of pyenv.
set -eu

# Prints every executable of that name on the PATH: the first may be a shim that fails.
on_path() {
    (
        IFS=:
        for folder in $PATH; do
            if [ -x "$folder/$1" ]; then
                echo "$folder/$1"
            fi
        done
    )
}

of_pyenv() {
    for python in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if [ -x "$python" ]; then
            echo "$python"
        fi
    done
}

# Prints the first Python on standard input that runs and has version $1 (for "any": is new enough).
# A Python that can create virtual environments is preferred to one that cannot, which is used so that
# setup_venv.py can report what is missing.
first_of() {
    lacking=
    while read -r python; do
        found=$("$python" -c '
import importlib.util as find, sys
if sys.argv[1] in ("any" * (sys.version_info >= (3, 11)), "%d.%d" % sys.version_info[:2]):
    print("fits" if find.find_spec("ensurepip") and find.find_spec("venv") else "lacks pip")
' "$1" 2>/dev/null) || continue
        case $found in
            fits)
                echo "$python"
                return
                ;;
            "lacks pip") lacking=${lacking:-$python} ;;
        esac
    done
    echo "$lacking"
}

if [ "${1:-}" = "--all" ]; then
    for version in 3.11 3.12 3.13; do
        python=$({ on_path "python$version"; on_path python3; of_pyenv "$version"; } | first_of "$version")
        if [ -n "$python" ]; then
            echo "$python"
        fi
    done
    exit 0
fi

python=$(for name in python3.13 python3.12 python3.11 python3; do on_path "$name"; done | first_of any)
if [ -z "$python" ]; then
    echo "Python 3.11 or newer is not on the PATH. Install it, or name it: make ... PYTHON=/path/to/python" >&2
    exit 1
fi
echo "$python"
