"""Execute notebooks in place: ``python notebooks/execute.py notebooks/*.ipynb``.

The kernel is this interpreter's own, whatever kernels are installed elsewhere; outputs carry no times,
so that executing again changes only what really changed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient


def execute(path: Path, *, fast: bool = False, timeout: int = 900) -> nbformat.NotebookNode:
    """Run all cells of a notebook and return it with its outputs.

    Args:
        path: The notebook.
        fast: Small sizes, for tests (the notebooks look at ``TFPRIVACY_LAB_FAST``).
        timeout: Seconds a cell may take.
    """
    notebook = nbformat.read(path, as_version=4)
    os.environ["TFPRIVACY_LAB_FAST"] = "1" if fast else ""
    with tempfile.TemporaryDirectory() as folder:
        kernels = KernelSpecManager(kernel_dirs=[folder], ensure_native_kernel=True)
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels)
        client = NotebookClient(
            notebook, km=manager, timeout=timeout, record_timing=False, resources={"metadata": {"path": path.parent}}
        )
        client.execute()
    return notebook


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, flush=True)
        nbformat.write(execute(Path(name)), name)
