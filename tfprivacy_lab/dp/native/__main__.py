"""Compiles the operations; where that fails, says what is lost, and that nothing else is."""

import subprocess
import sys

from tfprivacy_lab.dp.native import SLOWER, compile_operations

try:
    compile_operations()
except subprocess.CalledProcessError as error:
    sys.stderr.write(f"{error.stderr}\nThe C++ compiler failed ({' '.join(error.cmd)}). {SLOWER}\n")
except OSError as error:
    sys.stderr.write(f"No operations were compiled: {error}. {SLOWER}\n")
