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
# The copy tells for which pom this was fetched; it is put there last.
if ! cmp -s "$pom" "$home/pom.xml"; then
    mkdir -p .servers
    new=$(mktemp -d .servers/fetching.XXXXXX)
    trap 'rm -rf "$new"' EXIT
    trap 'exit 1' HUP INT TERM
    echo "Apache Kafka $version: fetching ..."
    mvn -q -B -Dstyle.color=never -f "$pom" dependency:copy-dependencies -DoutputDirectory="$PWD/$new/libs"
    cp "$pom" "$new/pom.xml"
    chmod 755 "$new"
    rm -rf "$home"
    mv "$new" "$home"
fi
echo "Apache Kafka $version in $home/libs, Java $(scripts/java_version.sh)"
