#!/usr/bin/env bash
# Adds the lab by pip to an environment as hosted notebooks have it, looks that nothing that was there is another version
# afterwards, and runs README's training example in it. Minutes: TensorFlow is installed, Pyfhel compiled.
set -eu -o pipefail
cd "$(dirname "$0")/.."
python=${CHECK_PYTHON:-python3.12}
there=(tensorflow==2.19.1 keras==3.10.0 numpy==2.0.2)
stop() { echo "make check-install: $*" >&2; exit 1; }
"$python" -c '' >/dev/null 2>&1 || stop "no $python found; install it, or say where it is: CHECK_PYTHON=/path/to/python3.12"

environment=.venv-check build=.venv-check-build wheels=runs/check-install/wheels
rm -rf "$environment" "$build" "$wheels" build
mkdir -p runs/check-install
"$python" -m venv "$environment"
"$python" -m venv "$build"
pip() { "$environment/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install "${there[@]}"
pip freeze --all | sort >runs/check-install/before.txt
# Pyfhel 3.5 says that it needs NumPy 2.1. Pyfhel 3.4 takes what is there, but is built with a module that newer
# setuptools have no more; and without the tool-chain file SEAL, inside it, would clone what it can do without.
"$build/bin/python" -m pip --quiet --disable-pip-version-check install --require-hashes -r requirements/build-tools.txt
PATH="$PWD/$build/bin:$PATH" CMAKE_TOOLCHAIN_FILE="$PWD/requirements/seal.cmake" "$build/bin/python" -m pip --quiet \
    --disable-pip-version-check wheel --no-deps --no-build-isolation 'Pyfhel<3.5' --wheel-dir "$wheels"
rm -rf "$build"
pip install '.[dp,audit,he]' "$wheels"/*.whl
pip freeze --all | sort >runs/check-install/after.txt
moved=$(comm -23 runs/check-install/before.txt runs/check-install/after.txt)
[ -z "$moved" ] || stop "these are another version than they were: $(echo "$moved" | tr '\n' ' ')"

awk '/^```python$/ { on = 1; next } /^```$/ { if (on) exit } on' README.md >runs/check-install/example.py
(cd runs/check-install && "../../$environment/bin/python" example.py)
(cd runs/check-install && "../../$environment/bin/python" -c '
import tfprivacy_lab
from tfprivacy_lab import audit, he
assert "site-packages" in tfprivacy_lab.__file__, tfprivacy_lab.__file__
client = he.Client.generate("bfv-sanitized")
query = client.encrypt([[0.5, -0.25]], feature_range=1.0)
print("decrypted", client.decrypt(he.Server([[1.0, 2.0], [0.0, 4.0]], [0.0, 1.0]).evaluate(query), query))
')
echo "make check-install: ${there[*]} stayed as they were beside $(wc -l <runs/check-install/after.txt) packages in all"
