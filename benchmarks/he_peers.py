"""Other libraries on the jobs of ``make bench-he``, in an environment of their own: TenSEAL, DESILO, OpenFHE.

``.venv-he`` is made on first use from hashed wheels. A library that cannot be installed or imported gets a row that
says why. Each job reads JSON from standard input and prints its rows, answers checked by whoever asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"
OPENFHE = "import openfhe"


def head_rows(kernel, bias, features) -> list[dict]:
    """One sample and a dense head: TenSEAL's ``mm``, rows and rotations in DESILO, and OpenFHE if it imports."""
    given = {"features": features.tolist(), "kernel": kernel.tolist(), "bias": bias.tolist()}
    common = {"case": f"head {kernel.shape[0]}-{kernel.shape[1]}", "scheme": "ckks", "sanitized": False, "samples": 1}
    rows = _rows("TenSEAL", "tenseal_head.py", {**common, "packing": "mm"}, given)
    rows += _rows("DESILO", "desilo_head.py", {**common, "packing": "naive"}, given)
    return rows + _importable("OpenFHE", {**common, "packing": "none"})


def network_rows(case: str, network, images, labels) -> list[dict]:
    """TenSEAL's tutorial on a convolutional network, image by image.

    Args:
        case: Name of the network.
        network: Convolution, square, dense, square, dense; 4 kernels of 7x7, stride 3.
        images: (n, 28, 28, 1).
        labels: (n,).
    """
    convolution, first, second = network.layers
    channels = convolution.kernel.shape[1]
    # Keras flattens position by position, TenSEAL packs channel by channel.
    order = np.arange(first.inputs).reshape(-1, channels).T.ravel()
    given = {
        "images": images[..., 0].tolist(),
        "kernels": convolution.kernel.T.reshape(channels, 7, 7).tolist(),
        "convolution_bias": convolution.bias.tolist(),
        "layers": [
            [first.kernel[order].tolist(), first.bias.tolist()],
            [second.kernel.tolist(), second.bias.tolist()],
        ],
    }
    common = {"case": case, "packing": "im2col and mm", "scheme": "ckks", "samples": 1, "images": len(images)}
    rows = _rows("TenSEAL", "tenseal_network.py", common, given)
    plain = network.evaluate(images)
    for row in rows:
        if "logits" in row:
            logits = np.array(row.pop("logits"))
            row["largest_error"] = float(np.abs(logits - plain).max())
            row["agreement"] = float(np.mean(logits.argmax(1) == plain.argmax(1)))
            row["accuracy_encrypted"] = float(np.mean(logits.argmax(1) == labels))
            row["accuracy_plain"] = float(np.mean(plain.argmax(1) == labels))
    return rows


def _rows(peer: str, script: str, common: dict, given: dict) -> list[dict]:
    """A script's rows, or one that says why there are none."""
    try:
        done = subprocess.run(
            [environment(), PEERS / script], input=json.dumps(given), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return [{**common, "peer": peer, "note": f"not measured: {_last_line(error)}"}]
    return [{**common, **row, "peer": peer} for row in json.loads(done.stdout)]


def _importable(peer: str, common: dict) -> list[dict]:
    """No row where a library imports, which then wants a job of its own; else one that says what was tried."""
    try:
        subprocess.run([environment(), "-c", OPENFHE], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return [{**common, "peer": peer, "note": f"not measured: its wheel does not import here: {_last_line(error)}"}]
    return [{**common, "peer": peer, "note": "not measured: it imports, and has no job yet"}]


def _last_line(error) -> str:
    told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return told[-1] if told else str(error)


def environment() -> Path:
    """The Python of ``.venv-he``, made and filled on first use."""
    python = ROOT / ".venv-he" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", ROOT / ".venv-he"], check=True, capture_output=True, text=True)
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r"]
    subprocess.run([*install, PEERS / "he_requirements.txt"], check=True, capture_output=True, text=True)
    numpy = [python, "-m", "pip", "install", "-q", f"numpy=={np.__version__}"]
    subprocess.run(numpy, check=True, capture_output=True, text=True)
    return python
