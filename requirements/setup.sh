#!/usr/bin/env bash
# Makes .venv from the lock of its Python, or of the first found, requirements/lock-3.X.txt. Interrupted or failed, it is safe to run again.
set -eu -o pipefail
cd "$(dirname "$0")/.."

stop() { echo "make setup: $*" >&2; exit 2; }

# Without PYTHON, that of the .venv that is there.
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$(.venv/bin/python -c 'import os, sys
if os.path.exists("requirements/lock-%d.%d.txt" % sys.version_info[:2]): print(sys._base_executable)' 2>/dev/null || true)
fi
if [ -z "$PYTHON" ]; then
    for version in 3.11 3.12 3.13; do
        PYTHON=python$version
        "$PYTHON" -c '' >/dev/null 2>&1 && break
    done
fi
"$PYTHON" -c '' >/dev/null 2>&1 ||
    stop "no Python 3.11, 3.12 or 3.13 found; install one (with venv), or say where it is: make setup PYTHON=/path/to/python3.12"
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
lock=requirements/lock-$version.txt
[ -f "$lock" ] || stop "$PYTHON is Python $version; 3.11, 3.12 or 3.13 is needed: make setup PYTHON=/path/to/python3.12"
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
    stop "$PYTHON has no venv; install it (Debian: apt-get install python$version-venv)"
"${CXX:-c++}" --version >/dev/null 2>&1 ||
    stop "no C++ compiler (${CXX:-c++}) found; Pyfhel is built from source: install one (Debian: apt-get install g++)"
header=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
[ -f "$header" ] || stop "no $header found; install Python's headers (Debian: apt-get install python$version-dev)"
need=5
space=$(df -Pk . | awk 'NR == 2 { printf "%d", $4 / 1048576 }')
if [ ! -d .venv ] && [ "$space" -lt "$need" ]; then
    stop "only $space GiB free in $PWD; the environment needs $need: free some space"
fi

mkdir -p runs
log=runs/setup.log
build=.venv-build
rm -rf .venv/.installed .venv/.ready "$build"
# The packages of another Python version go.
[ "$(.venv/bin/python -V 2>/dev/null)" = "$("$PYTHON" -V)" ] || rm -rf .venv
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

echo "make setup: Python $version, installing into .venv; some minutes, Pyfhel is compiled (log: $log)" >&2
case $version in
3.11) ;;
3.12) echo "make setup: Python $version leaves out mpc on shares (spu has no wheel above 3.11)" >&2 ;;
*) echo "make setup: Python $version leaves out mpc on shares (spu has no wheel above 3.11) and TF Privacy's attacks" \
    "(they need scikit-learn 1.4, which has no wheel above 3.12; ours run)" >&2 ;;
esac
part() { # part NAMES-REGEX: the lock's lines of these packages
    awk -v names="^($1)==" '$0 ~ names { on = 1 } on { print } on && !/\\$/ { on = 0 }' "$lock"
}
# What has no wheel is built first, by tools that are hashed in the lock too, and with nothing from a git
# host: SEAL inside Pyfhel would clone its dependencies; the tool-chain file turns them off.
part 'pyfhel|promise' >runs/sources.txt
# They say that they need Python below 3.12, and run above it.
free='tensorflow-privacy|tensorflow-empirical-privacy'
part "$free" >runs/any-python.txt
pip "$build" install --progress-bar off --require-hashes -r requirements/build-tools.txt
PATH="$PWD/$build/bin:$PATH" CMAKE_TOOLCHAIN_FILE="$PWD/requirements/seal.cmake" pip "$build" wheel --progress-bar off \
    --no-build-isolation --require-hashes -r runs/sources.txt --wheel-dir "$build/wheels"
pip .venv install "$build"/wheels/*.whl
pip .venv install --progress-bar off --only-binary :all: --require-hashes --ignore-requires-python -r runs/any-python.txt
awk -v names="^($free)==" '$0 ~ names { off = 1 } !off { print } off && !/\\$/ { off = 0 }' "$lock" >runs/lock.txt
pip .venv install --progress-bar off --only-binary :all: --require-hashes -r runs/lock.txt
pip .venv install --no-build-isolation -e .
rm -rf "$build"
touch .venv/.installed
echo "make setup: installed; compiling operations" >&2
