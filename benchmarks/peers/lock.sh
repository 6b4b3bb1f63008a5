#!/usr/bin/env bash
# Resolves requirements.in, complete and hashed: torch into torch.txt, the CUDA libraries that torch's wheel for Linux
# on x86-64 needs to import into cuda.txt, the rest into requirements.txt. torch-cpu.txt is written by hand.
set -eu -o pipefail
cd "$(dirname "$0")"
uv=../../.venv-lock/bin/uv
[ -x "$uv" ] || { "${PYTHON:-python3}" -m venv ../../.venv-lock && ../../.venv-lock/bin/pip -q install uv==0.13.9; }
"$uv" pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-header \
    --no-annotate requirements.in |
    awk '/^[a-z0-9]/ { out = "requirements.txt" } /^torch==/ { out = "torch.txt" } /^(cuda-|nvidia-|triton)/ { out = "cuda.txt" }
        { print >out }'
for file in requirements.txt torch.txt cuda.txt; do echo "benchmarks/peers/$file: $(grep -c == "$file") packages"; done
