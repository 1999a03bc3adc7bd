#!/bin/sh
# Fetches Apache Kafka, as tests/kafka-servers/pom.xml names it, into .servers/kafka-VERSION/libs.
# Does nothing when it is there. Takes Java 17 or newer, and Maven.
set -eu
cd "$(dirname "$0")/.."

pom=tests/kafka-servers/pom.xml
version=$(sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' "$pom")
home=.servers/kafka-$version

if [ -n "${RESILIENT_IO_KAFKA_LIBS:-}" ]; then
    echo "Apache Kafka: RESILIENT_IO_KAFKA_LIBS names $RESILIENT_IO_KAFKA_LIBS, nothing is fetched"
    exit 0
fi
# The copy tells for which pom this was fetched.
if ! cmp -s "$pom" "$home/pom.xml"; then
    mkdir -p .servers
    new=$(mktemp -d .servers/fetching.XXXXXX)
    trap 'rm -rf "$new"' EXIT
    trap 'exit 1' HUP INT TERM
    echo "Apache Kafka $version: fetching ..."
    if ! mvn -q -B -f "$pom" dependency:copy-dependencies \
        -DoutputDirectory="$PWD/$new/libs" >"$new/mvn.log" 2>&1; then
        cat "$new/mvn.log" >&2
        exit 1
    fi
    rm "$new/mvn.log"
    cp "$pom" "$new/pom.xml"
    chmod 755 "$new"
    rm -rf "$home"
    mv "$new" "$home"
    python=$(scripts/find_python.sh) && "$python" scripts/warm_kafka.py ||
        echo "It will start a little slower: scripts/warm_kafka.py did not run." >&2
fi
echo "Apache Kafka $version in $home/libs, Java $(scripts/java_version.sh)"
