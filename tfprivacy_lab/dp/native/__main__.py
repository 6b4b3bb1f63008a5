"""Compiles the operations, and says where to."""

import subprocess
import sys

from tfprivacy_lab.dp.native import compile_operations

try:
    print(compile_operations())
except subprocess.CalledProcessError as error:
    sys.exit(f"the C++ compiler failed: {' '.join(error.cmd)}\n{error.stderr}")
except OSError as error:
    sys.exit(f"cannot compile: {error}")
