#!/usr/bin/env bash
# Adds the lab by pip to an environment as hosted notebooks have it, looks that nothing that was there is another version
# afterwards, and runs README's training example in it. Minutes: TensorFlow is installed, Pyfhel compiled.
set -eu -o pipefail
cd "$(dirname "$0")/.."
python=${CHECK_PYTHON:-python3.12}
there=(tensorflow==2.19.1 keras==3.10.0 numpy==2.0.2)
stop() { echo "make check-install: $*" >&2; exit 1; }
"$python" -c '' >/dev/null 2>&1 || stop "no $python found; install it, or say where it is: CHECK_PYTHON=/path/to/python3.12"

environment=.venv-check
rm -rf "$environment"
mkdir -p runs/check-install
"$python" -m venv "$environment"
pip() { "$environment/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install "${there[@]}"
pip freeze --all | sort >runs/check-install/before.txt
# Without the tool-chain file SEAL, inside Pyfhel, would clone what it can do without.
CMAKE_TOOLCHAIN_FILE="$PWD/requirements/seal.cmake" pip install '.[dp,audit,he]'
pip freeze --all | sort >runs/check-install/after.txt
moved=$(comm -23 runs/check-install/before.txt runs/check-install/after.txt)
[ -z "$moved" ] || stop "these are another version than they were: $(echo "$moved" | tr '\n' ' ')"

awk '/^```python$/ { on = 1; next } /^```$/ { if (on) exit } on' README.md >runs/check-install/example.py
(cd runs/check-install && "../../$environment/bin/python" example.py)
(cd runs/check-install && "../../$environment/bin/python" -c '
import tfprivacy_lab, sys
from tfprivacy_lab import audit, he
assert "site-packages" in tfprivacy_lab.__file__, tfprivacy_lab.__file__
client = he.Client.generate("bfv-sanitized")
query = client.encrypt([[0.5, -0.25]], feature_range=1.0)
print("decrypted", client.decrypt(he.Server([[1.0, 2.0], [0.0, 4.0]], [0.0, 1.0]).evaluate(query), query))
')
echo "make check-install: ${there[*]} stayed as they were beside $(wc -l <runs/check-install/after.txt) packages in all"
