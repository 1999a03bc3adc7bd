#!/bin/sh
# Starts a broker with the settings that the environment names: KAFKA_NODE_ID=1 is node.id=1.
set -eu
settings=/tmp/server.properties
archive=/opt/kafka/kafka.jsa
data=${KAFKA_LOG_DIRS:-/var/lib/kafka/data}

{
    echo "log.dirs=$data"
    env | sed -n 's/^KAFKA_//p' | grep -v -e '^HEAP_OPTS=' -e '^LOG_DIRS=' | while IFS= read -r line; do
        name=$(printf %s "${line%%=*}" | tr 'A-Z_' 'a-z.')
        echo "$name=${line#*=}"
    done
} >"$settings"

if [ ! -e "$data/meta.properties" ]; then
    java -cp '/opt/kafka/libs/*' kafka.tools.StorageTool format \
        -t "${CLUSTER_ID:-5L6g3nShT-eMCtK--X86sw}" -c "$settings" >/dev/null
fi

# shellcheck disable=SC2086
kafka() {
    exec java ${KAFKA_HEAP_OPTS:--Xmx512m} -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.awt.headless=true \
        "$@" -cp '/opt/kafka/libs/*' kafka.Kafka "$settings"
}

if [ "${1:-}" = warm ]; then
    # Java writes down its classes as they lie in memory: each later start saves a second of work.
    (kafka "-XX:ArchiveClassesAtExit=$archive") &
    sleep 8
    # It has ended by itself where it found no network: what it had loaded by then is written down.
    kill "$!" 2>/dev/null || true
    wait "$!" || true
    find "$data" -mindepth 1 -maxdepth 1 ! -name '*.properties' ! -name 'bootstrap.checkpoint' \
        -exec rm -rf {} +
    exit 0
fi
kafka -Xshare:auto "-XX:SharedArchiveFile=$archive"
