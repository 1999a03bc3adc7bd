#!/bin/sh
# Prints the main version of the Java on the path, as in "17"; 0 if there is none.
version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
echo "${version:-0}"
