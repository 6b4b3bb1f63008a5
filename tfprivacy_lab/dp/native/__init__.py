"""Operations compiled for this machine's processor, for what TensorFlow's own are slow at.

They are compiled at their first use, or by ``python -m tfprivacy_lab.dp.native`` (``make setup``), with the system's
C++ compiler against TensorFlow's headers, in seconds, into the Python environment. What they compute, TensorFlow's
operations compute too, to rounding: no guarantee depends on which, and where they are missing DP training is merely
slower.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from pathlib import Path

_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-fPIC", "-shared", "-DNDEBUG"]
SLOWER = "DP training works without them, on TensorFlow's own operations: to the same guarantee, but slower."
# Set to anything, it leaves the compiled operations out.
SWITCH = "TFPRIVACY_LAB_NO_NATIVE"


@functools.cache
def operations():
    """The compiled operations as a module, compiled now if they are not yet; None where they cannot be.

    They are for processors alone: where TensorFlow sees a GPU, its own operations are used. A library that was
    compiled from other sources, for another TensorFlow or on another kind of processor is not loaded.
    """
    import tensorflow as tf

    if os.environ.get(SWITCH) or tf.config.list_physical_devices("GPU"):
        return None
    try:
        return tf.load_op_library(str(compile_operations()))
    except subprocess.CalledProcessError as error:
        lost = f"No operations were compiled: {failure(error)}"
    except (tf.errors.OpError, OSError) as error:
        broken = f"loaded ({error}); remove it." if library().is_file() else f"made ({error})."
        lost = f"{library()} cannot be {broken}"
    warnings.warn(f"{lost} {SLOWER} {SWITCH}=1 leaves them out without a word.", stacklevel=2)
    return None


def failure(error: subprocess.CalledProcessError) -> str:
    """Why the compiler failed, in a line."""
    said = [line for line in (error.stderr or "").splitlines() if "error" in line]
    return f"{error.cmd[0]} ended with {error.returncode}{''.join(f': {line}' for line in said[:1])}."


def library() -> Path:
    """Where the compiled operations are, or would be; sources, TensorFlow and processor are in the name."""
    import tensorflow as tf

    digest = hashlib.sha256("\n".join([tf.version.GIT_VERSION, *_FLAGS, _processor()]).encode())
    for source in _sources("*.h") + _sources("*.cc"):
        digest.update(source.read_bytes())
    return Path(sysconfig.get_path("platlib")) / "tfprivacy_lab_native" / f"operations-{digest.hexdigest()[:20]}.so"


def compile_operations() -> Path:
    """Compile them, unless that is done; returns the library.

    Raises:
        OSError: without a compiler, or where the environment cannot be written.
        subprocess.CalledProcessError: if it fails; ``stderr`` says why.
    """
    import tensorflow as tf

    target = library()
    if target.is_file():
        return target
    sys.stderr.write(f"tfprivacy_lab: compiling operations for this processor, once, into {target.parent}\n")
    target.parent.mkdir(exist_ok=True)
    # TensorFlow's headers are no matter of ours to warn about.
    include = [flag.replace("-I", "-isystem", 1) for flag in tf.sysconfig.get_compile_flags()]
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        command = [os.environ.get("CXX", "c++"), *_FLAGS, *include, *map(str, _sources("*.cc")), "-o", str(built)]
        subprocess.run([*command, *tf.sysconfig.get_link_flags()], check=True, capture_output=True, text=True)
        built.replace(target)
    return target


def _sources(pattern: str) -> list[Path]:
    return sorted(Path(__file__).parent.glob(pattern))


def _processor() -> str:
    """What the compiler may use: a library for more than a processor has would end the process."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    found = {line for line in lines if line.startswith(("flags", "Features"))}
    return "\n".join(sorted(found))
