#!/usr/bin/env bash
# Makes .venv-peers, in which the peers of `make bench-dp` run: PyTorch with Opacus, JAX with JAX-Privacy.
#
# 1.5 GB and a minute where pip finds PyTorch's CPU build (tell it of a folder or an index that has it by
# PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL). The wheel of Linux on x86-64 on the default index is a CUDA build that
# does not import without CUDA's libraries, though nothing here uses a GPU: then they are installed as well, 5.3 GB
# in all and some minutes more. Interrupted or failed, it is safe to run again.
set -eu -o pipefail
cd "$(dirname "$0")/../.."

stop() { echo "benchmarks/peers: $*" >&2; exit 2; }
room() { # room GIB
    local free
    free=$(df -Pk . | awk 'NR == 2 { printf "%d", $4 / 1048576 }')
    [ "$free" -ge "$1" ] || stop "only $free GiB free in $PWD; the peers need $1: free some space"
}
pip() { # pip FILE
    .venv-peers/bin/python -m pip --disable-pip-version-check install --progress-bar off --no-deps \
        --only-binary :all: --require-hashes -r "benchmarks/peers/$1" >>"$log" 2>&1
}
install() { # install FILE
    pip "$1" || stop "installing failed: $(grep -E '^ *(ERROR|error)' "$log" | tail -n 1) (all of it: $log)"
}

ready=.venv-peers/.ready
lock=$(cat benchmarks/peers/*.txt | sha256sum | cut -d' ' -f1)
[ "$(cat "$ready" 2>/dev/null || true)" != "$lock" ] || exit 0
mkdir -p runs
log=runs/peers-setup.log
: >"$log"
rm -f "$ready"
[ -d .venv-peers ] || room 3
python=
for one in "${PYTHON:-}" .venv/bin/python python3.11; do
    if "$one" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then
        python=$one
        break
    fi
done
[ -n "$python" ] || stop "no Python 3.11 found, which the lock of these is for; name one: make bench-dp PYTHON=/path/to/python3.11"
echo "benchmarks/peers: installing into .venv-peers, some minutes (log: $log)" >&2
"$python" -m venv .venv-peers >>"$log" 2>&1 || stop "cannot make .venv-peers: $(tail -n 1 "$log")"
install requirements.txt
if ! pip torch-cpu.txt; then
    room 10
    install torch.txt
    if ! .venv-peers/bin/python -c 'import torch' >>"$log" 2>&1; then
        echo "benchmarks/peers: this torch is a CUDA build; installing the libraries that it needs, 4 GB" >&2
        install cuda.txt
    fi
fi
.venv-peers/bin/python -W ignore -c 'import jax_privacy, opacus' >>"$log" 2>&1 ||
    stop "the peers do not import: $(tail -n 1 "$log") (all of it: $log)"
echo "$lock" >"$ready"
