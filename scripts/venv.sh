#!/bin/sh
# Installs a hash lock and this project into a virtual environment: venv.sh FOLDER LOCK
# Says in one line what is missing and how to get it. Needs python3 with venv, nothing else.
set -eu
folder=$1 lock=$2
log=$folder.log

say() { printf '%s\n' "$*" >&2; }
fail() { say "setup: $*"; exit 1; }
recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# A system whose python3 is older than 3.11 gets an interpreter of its own, through uv.
fetched_python() {
    say "python3 here is older than 3.11: fetching an interpreter through uv"
    python3 -m venv .venv-uv >"$log" 2>&1 || no_venv
    .venv-uv/bin/python -m pip install --quiet --require-hashes --no-deps -r requirements/uv.txt >>"$log" 2>&1 ||
        no_network
    .venv-uv/bin/uv venv --quiet --seed --clear --python 3.11 "$folder" >>"$log" 2>&1 ||
        fail "uv could not fetch Python 3.11 (see $log): install python3.11 yourself, or allow the download"
}

no_venv() { fail "python3 cannot make virtual environments (see $log): apt-get install python3-venv"; }
no_network() {
    if grep -q 'No space left' "$log"; then fail "the disk is full: free 500 MB under $PWD"; fi
    if grep -q 'DO NOT MATCH THE HASHES' "$log"; then
        fail "a package differs from its locked hash (see $log): the index or a mirror serves something else"
    fi
    said=$(grep -v '^WARNING' "$log" | tail -n 1)
    fail "a package could not be installed: $said. Is the package index reachable (pip config list)? More in $log"
}

command -v python3 >/dev/null || fail "python3 is missing: apt-get install python3 python3-venv"
say "installing the daemons into $folder"
if ! [ -x "$folder/bin/python" ] || ! recent "$folder/bin/python"; then
    if recent python3; then
        python3 -m venv --clear "$folder" >"$log" 2>&1 || no_venv
    else
        fetched_python
    fi
fi

"$folder/bin/python" -m pip install --quiet --no-deps --require-hashes -r requirements/build.txt >"$log" 2>&1 ||
    no_network
total=$(grep -c '==' "$lock")
{
    "$folder/bin/python" -m pip install --no-deps --require-hashes --no-build-isolation --no-color \
        --progress-bar off -r "$lock" 2>&1
    echo $? >"$folder/.pip-status"
} |
    tee "$log" | awk -v total="$total" -v tty="$([ -t 2 ] && echo 1)" '
        /^(Collecting|Requirement already satisfied:) / {
            n++; split($0, w, /[ :=]+/)
            if (tty) printf "\r\033[Kinstalling the daemons: %d/%d", n, total > "/dev/stderr"
        }
        END { if (tty) printf "\r\033[K" > "/dev/stderr" }'
[ "$(cat "$folder/.pip-status")" = 0 ] || no_network
"$folder/bin/python" -m pip install --quiet --no-deps --no-build-isolation --no-index -e . >>"$log" 2>&1 ||
    no_network
rm -f "$log"
