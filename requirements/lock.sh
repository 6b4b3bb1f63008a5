#!/usr/bin/env bash
# Resolves the extras of setup.cfg under requirements/overrides.txt into requirements/lock.txt, and the
# tools that source packages are built with into requirements/build-tools.txt; both complete and hashed.
set -eu -o pipefail
cd "$(dirname "$0")/.."
[ -x .venv-lock/bin/uv ] || { "${PYTHON:-python3.11}" -m venv .venv-lock && .venv-lock/bin/pip -q install uv==0.13.9; }
compile() {
    .venv-lock/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-annotate "$@"
}
compile --override requirements/overrides.txt --all-extras setup.cfg --output-file requirements/lock.txt
compile requirements/build-tools.in --output-file requirements/build-tools.txt
echo "requirements/lock.txt: $(grep -c '^[a-z0-9].*==' requirements/lock.txt) packages"
