# shellcheck shell=bash disable=SC2034
# What the tests run against, and where the downloads are kept. Sourced.
# The cache lies outside the checkout: a fresh clone must not download 200 MB again, and no jar belongs in Git.

cache="${MILLRACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/millrace}"

kafka_version=4.1.0
registry_version=2.6.13.Final # the last line of Apicurio that is published as a runnable archive
dependency_plugin=org.apache.maven.plugins:maven-dependency-plugin:3.8.1

kafka_libs="$cache/kafka-$kafka_version"
registry_home="$cache/apicurio-registry-$registry_version"
