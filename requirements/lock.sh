#!/usr/bin/env bash
# Resolves the extras of setup.cfg under requirements/overrides.txt and constraints.txt into one lock a Python version,
# requirements/lock-3.X.txt, and the tools that source packages are built with into requirements/build-tools.txt; all
# complete and hashed, and nothing in them younger than CUTOFF.
set -eu -o pipefail
cd "$(dirname "$0")/.."
CUTOFF=${CUTOFF:-2026-11-01}
[ -x .venv-lock/bin/uv ] || { "${PYTHON:-python3}" -m venv .venv-lock && .venv-lock/bin/pip -q install uv==0.13.9; }
compile() {
    .venv-lock/bin/uv pip compile --quiet --exclude-newer "$CUTOFF" --generate-hashes --no-header --no-annotate "$@"
}
for version in 3.11 3.12 3.13; do
    lock=requirements/lock-$version.txt
    compile --python-version "$version" --override requirements/overrides.txt --constraint requirements/constraints.txt \
        --all-extras setup.cfg requirements/attacks.in --output-file "$lock"
    echo "$lock: $(grep -c '^[a-z0-9].*==' "$lock") packages"
done
compile --python-version 3.11 requirements/build-tools.in --output-file requirements/build-tools.txt
