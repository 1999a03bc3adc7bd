#!/bin/sh
# The Docker engine for the scenes in containers.
#   scripts/docker_engine.sh find    prints the address of an engine that answers; 1 if there is none
#   scripts/docker_engine.sh start   the same; where there is none, installs it (Debian, Ubuntu; as
#                                    root) and starts one of this checkout's own
#   scripts/docker_engine.sh stop    stops what `start` started, and no other
# What is asked for is taken first: DOCKER_HOST, or else the machine's own engine.
set -eu
cd "$(dirname "$0")/.."

home=$PWD/.servers/docker
# A socket's path may have 108 characters, and containerd puts several under this one.
run=/run/resilient-io-docker/$(printf %s "$PWD" | cksum | cut -d ' ' -f 1)
own=unix://$run/engine.sock

answers() {
    command -v docker >/dev/null && docker -H "$1" version >/dev/null 2>&1
}

find_engine() {
    for address in "${DOCKER_HOST:-}" unix:///var/run/docker.sock "$own"; do
        if [ -n "$address" ] && answers "$address"; then
            echo "$address"
            return
        fi
    done
    return 1
}

install_packages() {
    command -v dockerd >/dev/null && command -v docker >/dev/null &&
        command -v debootstrap >/dev/null && command -v iptables >/dev/null && return
    command -v apt-get >/dev/null || {
        echo "Install a Docker engine; only Debian's and Ubuntu's apt-get is known here." >&2
        exit 1
    }
    # Debian starts a service as soon as it is installed, unless this policy says no.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 1' HUP INT TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get update -qq >&2
    packages="docker.io debootstrap iptables"
    # Newer releases have the command in a package of its own.
    if apt-cache policy docker-cli | grep -q 'Candidate: [0-9]'; then
        packages="$packages docker-cli"
    fi
    # shellcheck disable=SC2086
    apt-get install -qq -y --no-install-recommends $packages >/dev/null
}

start() {
    find_engine && return
    if [ "$(id -u)" -ne 0 ]; then
        echo "No Docker engine answers, and starting one takes root. Start yours, or name it in" \
            "DOCKER_HOST." >&2
        exit 1
    fi
    install_packages
    mkdir -p "$home" "$run"
    # No default bridge: the tests create their own networks, and a bridge would be shared.
    # 9>&-: the engine must not inherit a lock that the caller holds.
    setsid dockerd --data-root "$home/data" --exec-root "$run/exec" --pidfile "$run/pid" \
        -H "$own" --bridge none --log-level warn >"$home/log" 2>&1 </dev/null 9>&- &
    waited=0
    until answers "$own"; do
        if [ "$waited" -ge 300 ] || ! kill -0 "$!" 2>/dev/null; then
            echo "The Docker engine does not answer. Its last words:" >&2
            tail -n 20 "$home/log" >&2
            exit 1
        fi
        sleep 0.2
        waited=$((waited + 1))
    done
    echo "$own"
}

stop() {
    [ -s "$run/pid" ] || return 0
    pid=$(cat "$run/pid")
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
        docker -H "$own" ps -aq | xargs -r docker -H "$own" rm -f >/dev/null
        kill "$pid"
        waited=0
        while kill -0 "$pid" 2>/dev/null; do
            [ "$waited" -lt 300 ] || exit 1
            sleep 0.2
            waited=$((waited + 1))
        done
    fi
    rm -rf "$run"
}

case ${1:-} in
find) find_engine ;;
start) start ;;
stop) stop ;;
*)
    sed -n 's/^#   //p' "$0" >&2
    exit 2
    ;;
esac
