# shellcheck shell=bash
# Debian packages that are missing: installed when we are root, named with the command to run when we are not. Sourced.
#
#     want kcat command -v kcat       the package, and the check that shows that it is there
#     install_wanted                  one apt-get for all of them; nothing at all when nothing is missing

wanted_packages=()

want() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || wanted_packages+=("$package")
}

install_wanted() {
    if [ ${#wanted_packages[@]} -eq 0 ]; then
        return
    fi
    if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
        echo "Missing on this machine (Debian's names): ${wanted_packages[*]}" >&2
        echo "Install them, for example with: sudo apt-get install ${wanted_packages[*]}" >&2
        return 1
    fi
    echo "Installing ${wanted_packages[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    local apt=(apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -q -y)
    local log
    log=$(mktemp)
    if ! { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "${wanted_packages[@]}"; } >"$log" 2>&1 </dev/null; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        echo "apt-get could not install: ${wanted_packages[*]}" >&2
        return 1
    fi
    rm -f "$log"
    wanted_packages=()
}

# What the workspace's own build needs beside Rust: librdkafka, SQLite and zstd are compiled, and so is OpenSSL, whose
# configuration is a Perl program that needs more of Perl than Debian's smallest set has.
want_build_tools() {
    want build-essential sh -c 'command -v cc && command -v c++ && command -v make'
    want perl perl -MFindBin -MIPC::Cmd -MTime::Piece -e 1
    want pkg-config command -v pkg-config
    want ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
}

# Kafka 4 needs Java 17 or newer.
java_is_new_enough() {
    local major
    major=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
    [ "${major:-0}" -ge 17 ]
}

# Debian keeps the server's programs off the PATH. Prints their folder, of the newest version.
postgres_programs() {
    local initdb
    initdb=$(command -v initdb || find /usr/lib/postgresql/*/bin -name initdb 2>/dev/null | sort -V | tail -n 1)
    [ -n "$initdb" ] && dirname "$(readlink -f "$initdb")"
}
