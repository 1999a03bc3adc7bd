#!/bin/sh
# Prints the major version of Java, such as "17", or 0 if there is none: of the Java in JAVA_HOME,
# or else on the PATH.
java=java
if [ -x "${JAVA_HOME:-}/bin/java" ]; then
    java=$JAVA_HOME/bin/java
fi
version=$("$java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
echo "${version:-0}"
