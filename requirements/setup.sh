#!/usr/bin/env bash
# Makes .venv from requirements/lock.txt. Interrupted or failed, it is safe to run again.
set -eu -o pipefail
cd "$(dirname "$0")/.."

stop() { echo "make setup: $*" >&2; exit 2; }

PYTHON=${PYTHON:-python3.11}
command -v "$PYTHON" >/dev/null 2>&1 ||
    stop "no $PYTHON found; install Python 3.11 (with venv), or say where it is: make setup PYTHON=/path/to/python3.11"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
    stop "$PYTHON is $("$PYTHON" -V 2>&1); Python 3.11 is needed: make setup PYTHON=/path/to/python3.11"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
    stop "$PYTHON has no venv; install it (Debian: apt-get install python3.11-venv)"
"${CXX:-c++}" --version >/dev/null 2>&1 ||
    stop "no C++ compiler (${CXX:-c++}) found; Pyfhel is built from source: install one (Debian: apt-get install g++)"
header=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
[ -f "$header" ] || stop "no $header found; install Python's headers (Debian: apt-get install python3.11-dev)"
need=5
free=$(df -Pk . | awk 'NR == 2 { printf "%d", $4 / 1048576 }')
if [ ! -d .venv ] && [ "$free" -lt "$need" ]; then
    stop "only $free GiB free in $PWD; the environment needs $need: free some space"
fi

mkdir -p runs
log=runs/setup.log
rm -f .venv/.ready
"$PYTHON" -m venv .venv >"$log" 2>&1 || stop "cannot make .venv: $(tail -n 1 "$log")"

install() {
    .venv/bin/python -m pip --disable-pip-version-check install --no-deps --progress-bar off "$@" >>"$log" 2>&1 && return
    if grep -q 'No space left on device' "$log"; then
        stop "the disk is full: free $need GiB (or set TMPDIR to another disk) and run it again"
    fi
    stop "installing failed: $(grep -E '^ *(ERROR|error)' "$log" | tail -n 1) (all of it: $log)"
}

echo "make setup: installing into .venv; some minutes, Pyfhel is compiled (log: $log)" >&2
# SEAL inside Pyfhel would clone its dependencies from a git host; the tool-chain file turns them off.
export CMAKE_TOOLCHAIN_FILE=$PWD/requirements/seal.cmake
# Pyfhel first and by itself, so that what it is built with is held to versions too.
awk '/^pyfhel==/ { on = 1 } on { print } on && !/\\$/ { exit }' requirements/lock.txt >runs/pyfhel.txt
PIP_CONSTRAINT=$PWD/requirements/build-constraints.txt install --require-hashes -r runs/pyfhel.txt
install --require-hashes -r requirements/lock.txt
install --no-build-isolation -e .
touch .venv/.ready
echo "make setup: done" >&2
