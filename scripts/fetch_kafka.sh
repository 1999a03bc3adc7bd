#!/bin/sh
# Downloads Apache Kafka, in the version of tests/kafka-servers/pom.xml, to .servers/kafka-VERSION.
# It needs Java 17 or newer and Maven, but no root. With --if-possible it does nothing where they are
# missing, and a failed download is only a warning: tests that need Kafka are skipped then.
set -eu
cd "$(dirname "$0")/.."

pom=tests/kafka-servers/pom.xml
version=$(sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' "$pom")
home=.servers/kafka-$version
if_possible=
[ "${1:-}" != "--if-possible" ] || if_possible=yes

if [ -n "${RESILIENT_IO_KAFKA_LIBS:-}" ]; then
    [ -n "$if_possible" ] ||
        echo "Apache Kafka: RESILIENT_IO_KAFKA_LIBS is $RESILIENT_IO_KAFKA_LIBS, nothing is downloaded"
    exit 0
fi
if [ -n "$if_possible" ]; then
    # The copy of the pom shows which version was downloaded.
    if cmp -s "$pom" "$home/pom.xml"; then
        exit 0
    fi
    if ! command -v mvn >/dev/null || [ "$(scripts/java_version.sh)" -lt 17 ]; then
        exit 0
    fi
fi

download() {
    mkdir -p .servers
    new=$(mktemp -d .servers/fetching.XXXXXX)
    trap 'rm -rf "$new"' EXIT
    trap 'exit 1' HUP INT TERM
    echo "Apache Kafka $version: downloading ..."
    if ! mvn -q -B -f "$pom" dependency:copy-dependencies \
        -DoutputDirectory="$PWD/$new/libs" >"$new/mvn.log" 2>&1; then
        cat "$new/mvn.log" >&2
        return 1
    fi
    rm "$new/mvn.log"
    cp "$pom" "$new/pom.xml"
    chmod 755 "$new"
    rm -rf "$home"
    mv "$new" "$home"
    python=$(scripts/find_python.sh) && "$python" scripts/warm_kafka.py ||
        echo "Brokers will start a little more slowly: scripts/warm_kafka.py failed." >&2
}

if ! cmp -s "$pom" "$home/pom.xml" && ! download; then
    [ -n "$if_possible" ] || exit 1
    echo "Apache Kafka was not downloaded: tests that need it are skipped." >&2
    exit 0
fi
echo "Apache Kafka $version in $home/libs, Java $(scripts/java_version.sh)"
