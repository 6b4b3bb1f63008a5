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
build=.venv-build
rm -rf .venv/.installed .venv/.ready "$build"
{ "$PYTHON" -m venv .venv && "$PYTHON" -m venv "$build"; } >"$log" 2>&1 || stop "cannot make .venv: $(tail -n 1 "$log")"

pip() { # pip ENVIRONMENT ARGUMENT...
    local environment=$1
    shift
    "$environment/bin/python" -m pip --disable-pip-version-check "$@" --no-deps >>"$log" 2>&1 && return
    if grep -q 'No space left on device' "$log"; then
        stop "the disk is full: free $need GiB (or set TMPDIR to another disk) and run it again"
    fi
    stop "installing failed: $(grep -E '^ *(ERROR|error)' "$log" | tail -n 1) (all of it: $log)"
}

echo "make setup: installing into .venv; some minutes, Pyfhel is compiled (log: $log)" >&2
# What has no wheel is built first, by tools that are hashed in the lock too, and with nothing from a git
# host: SEAL inside Pyfhel would clone its dependencies; the tool-chain file turns them off.
awk '/^(pyfhel|promise)==/ { on = 1 } on { print } on && !/\\$/ { on = 0 }' requirements/lock.txt >runs/sources.txt
pip "$build" install --progress-bar off --require-hashes -r requirements/build-tools.txt
PATH="$PWD/$build/bin:$PATH" CMAKE_TOOLCHAIN_FILE="$PWD/requirements/seal.cmake" pip "$build" wheel --progress-bar off \
    --no-build-isolation --require-hashes -r runs/sources.txt --wheel-dir "$build/wheels"
pip .venv install "$build"/wheels/*.whl
pip .venv install --progress-bar off --only-binary :all: --require-hashes -r requirements/lock.txt
pip .venv install --no-build-isolation -e .
rm -rf "$build"
touch .venv/.installed
echo "make setup: installed; compiling operations" >&2
