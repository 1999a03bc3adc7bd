#!/bin/sh
# Installs the real servers that the tests use: redis-server, redis-sentinel and redis-cli.
# Does nothing when they are there. No service is started, and none that runs is touched.
set -eu

missing() {
    for program in redis-server redis-sentinel redis-cli; do
        command -v "$program" >/dev/null || echo "$program"
    done
}

lacking=$(missing | tr '\n' ' ')
if [ -z "$lacking" ]; then
    redis-server --version
    exit 0
fi

advise() {
    echo "Missing: $lacking" >&2
    echo "$1 Install Redis 7 or newer so that these are on the path, then try again." >&2
    echo "(\`make test\` and \`make demo\` do without: they use the Valkey that comes as a wheel.)" >&2
    exit 1
}

command -v apt-get >/dev/null || advise "Only Debian's and Ubuntu's apt-get is known here."
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || advise "Installing takes root, and there is no sudo."
    if [ -t 0 ]; then
        exec sudo "$0"
    fi
    # Nobody is there to type a password.
    exec sudo -n "$0"
fi

# Debian starts a service as soon as it is installed, unless this policy says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1

new=
for service in redis-server redis-sentinel; do
    command -v "$service" >/dev/null || new="$new $service"
done
apt-get update -qq
apt-get install -qq -y --no-install-recommends redis-server redis-sentinel redis-tools >/dev/null
for service in $new; do
    # Nor at the next boot.
    update-rc.d "$service" disable
done

lacking=$(missing | tr '\n' ' ')
[ -z "$lacking" ] || advise "apt-get installed the packages, yet these are not on the path."
redis-server --version
