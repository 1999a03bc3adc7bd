#!/bin/sh
# Installs the servers that the tests use, unless they are installed: redis-server, redis-sentinel,
# redis-cli, Java and Maven, and downloads Apache Kafka. It starts no service, and leaves running
# services alone.
set -eu
here=$(dirname "$0")

missing() {
    for program in redis-server redis-sentinel redis-cli; do
        command -v "$program" >/dev/null || echo "$program"
    done
    [ "$("$here/java_version.sh")" -ge 17 ] || echo "java"
    command -v mvn >/dev/null || [ -n "${RESILIENT_IO_KAFKA_LIBS:-}" ] || echo "mvn"
}

advise() {
    echo "Missing: $lacking" >&2
    echo "$1 Install Redis 7, Java 17 and Maven, or newer, so that these are on the PATH," \
        "then try again." >&2
    echo "(\`make test\` and \`make demo\` work without them: they use servers from wheels.)" >&2
    exit 1
}

has() {
    apt-cache policy "$1" | grep -q 'Candidate: [0-9]'
}

# install_packages: needs root.
install_packages() {
    # Debian starts a service when it is installed, unless this policy denies it.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 1' HUP INT TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get update -qq

    packages=
    new=
    for program in $lacking; do
        case $program in
        redis-cli) packages="$packages redis-tools" ;;
        redis-*) packages="$packages $program" new="$new $program" ;;
        java)
            if has openjdk-17-jre-headless; then
                packages="$packages openjdk-17-jre-headless"
            else
                packages="$packages default-jre-headless"
            fi
            ;;
        mvn) packages="$packages maven" ;;
        esac
    done
    # shellcheck disable=SC2086
    apt-get install -qq -y --no-install-recommends $packages >/dev/null
    for service in $new; do
        # Do not start it at the next boot either.
        update-rc.d "$service" disable
    done
}

lacking=$(missing | tr '\n' ' ')
if [ "${1:-}" = "--packages" ]; then
    install_packages
    exit 0
fi
if [ -n "$lacking" ]; then
    command -v apt-get >/dev/null || advise "This script only supports the apt-get of Debian and Ubuntu."
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || advise "The installation needs root or sudo."
        as_root=sudo
        # Without a terminal sudo must not ask for a password.
        [ -t 0 ] || as_root="$as_root -n"
    fi
    $as_root "$0" --packages
    lacking=$(missing | tr '\n' ' ')
    [ -z "$lacking" ] || advise "apt-get installed the packages, but these are not on the PATH."
fi
redis-server --version
exec "$here/fetch_kafka.sh"
