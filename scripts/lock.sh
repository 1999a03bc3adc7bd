#!/bin/sh
# Updates requirements/*.txt from pyproject.toml and requirements/*.in, for all versions of Python.
# Valid pins are kept; `scripts/lock.sh --upgrade` selects the newest versions.
set -eu
cd "$(dirname "$0")/.."

lock() {
    output=requirements/$1.txt
    shift
    # A lock must not contain an index address, so that everyone can use their own index.
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
        --output-file "$output" "$@"
}

# In this order: each uses the versions of those before it.
lock test pyproject.toml --extra testing --extra all \
    requirements/test.in "$@"
lock runtime pyproject.toml --constraints requirements/test.txt "$@"
lock lint requirements/lint.in "$@"
lock bench requirements/bench.in "$@"
lock docs requirements/docs.in "$@"
lock lock requirements/lock.in "$@"
