#!/bin/sh
# Installs the browser for the tests of the status page, Chromium and its driver, unless they are
# installed.
set -eu

# has NAME...: whether one of these is on the PATH.
has() {
    for name in "$@"; do
        [ -n "$name" ] && command -v "$name" >/dev/null && return
    done
    return 1
}

missing() {
    has "${RESILIENT_IO_CHROMIUM:-}" chromium chromium-browser google-chrome || echo chromium
    has "${RESILIENT_IO_CHROMEDRIVER:-}" chromedriver || echo chromedriver
}

advise() {
    echo "Missing: $lacking" >&2
    echo "$1 Install Chromium or Chrome, and the chromedriver of the same version, so that they" \
        "are on the PATH, then try again." >&2
    echo "(\`make test\` works without them: it skips the tests of the status page.)" >&2
    exit 1
}

# install_packages: needs root.
install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Ubuntu's package of that name only installs a snap, which most containers cannot run.
    apt-cache policy chromium-driver | grep -q 'Candidate: [0-9]' || exit 3
    # A driver rejects a browser of another version.
    apt-get install -qq -y --no-install-recommends chromium chromium-driver >/dev/null
}

lacking=$(missing | tr '\n' ' ')
if [ "${1:-}" = "--packages" ]; then
    install_packages
    exit 0
fi
if [ -n "$lacking" ]; then
    command -v apt-get >/dev/null || advise "This script only supports the apt-get of Debian."
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || advise "The installation needs root or sudo."
        as_root=sudo
        # Without a terminal sudo must not ask for a password.
        [ -t 0 ] || as_root="$as_root -n"
    fi
    $as_root "$0" --packages || advise "apt-get could not install Chromium."
    lacking=$(missing | tr '\n' ' ')
    [ -z "$lacking" ] || advise "apt-get installed the packages, but these are not on the PATH."
fi
chromedriver=${RESILIENT_IO_CHROMEDRIVER:-chromedriver}
"$chromedriver" --version
