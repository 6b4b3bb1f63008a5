#!/usr/bin/env bash
# Resolves the extras of setup.cfg under requirements/overrides.txt into requirements/lock.txt.
set -eu -o pipefail
cd "$(dirname "$0")/.."
[ -x .venv-lock/bin/uv ] || { "${PYTHON:-python3.11}" -m venv .venv-lock && .venv-lock/bin/pip -q install uv; }
.venv-lock/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --override requirements/overrides.txt --all-extras setup.cfg --output-file requirements/lock.txt
echo "requirements/lock.txt: $(grep -c '^[a-z0-9].*==' requirements/lock.txt) packages"
