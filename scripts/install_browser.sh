#!/bin/sh
# Installs the browser that the tests of the status page use: Chromium and its driver. Does nothing
# when they are there.
set -eu

# has NAME...: whether one of these is on the path.
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
        "are on the path, then try again." >&2
    echo "(\`make test\` does without: it skips the tests of the status page.)" >&2
    exit 1
}

# install_packages: the part that needs root.
install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Ubuntu's package of that name only points to a snap, which few containers can run.
    apt-cache policy chromium-driver | grep -q 'Candidate: [0-9]' || exit 3
    # Of one version: a driver refuses a browser that is newer or older.
    apt-get install -qq -y --no-install-recommends chromium chromium-driver >/dev/null
}

lacking=$(missing | tr '\n' ' ')
if [ "${1:-}" = "--packages" ]; then
    install_packages
    exit 0
fi
if [ -n "$lacking" ]; then
    command -v apt-get >/dev/null || advise "Only Debian's apt-get is known here."
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || advise "Installing takes root, and there is no sudo."
        as_root=sudo
        # Without a terminal nobody is there to type a password.
        [ -t 0 ] || as_root="$as_root -n"
    fi
    $as_root "$0" --packages || advise "apt-get has no Chromium here, or could not install it."
    lacking=$(missing | tr '\n' ' ')
    [ -z "$lacking" ] || advise "apt-get installed the packages, yet these are not on the path."
fi
chromedriver=${RESILIENT_IO_CHROMEDRIVER:-chromedriver}
"$chromedriver" --version
