"""Where a number comes from: commit, versions and machine, for every metrics.json."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

# x86's, then ARM's; kernels of TensorFlow and NumPy are chosen by them when a program starts.
_INSTRUCTIONS = ("avx", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")
_PACKAGES = ("tensorflow", "keras", "tensorflow-privacy", "dp-accounting", "tensorflow-datasets", "Pyfhel", "numpy")


def provenance() -> dict:
    """``commit``, ``versions``, ``hardware`` and ``instructions`` as metrics.json records them."""
    return {"commit": commit(), "versions": versions(), "hardware": hardware(), "instructions": instructions()}


def commit() -> str | None:
    """The checked-out commit, with ``+`` if files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Python and the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def place(found: dict) -> str:
    """Where figures are of, in one line under a table: hardware and TensorFlow, of what :func:`provenance` recorded."""
    return f"{found['hardware']}; TensorFlow {found['versions']['tensorflow']}"


def hardware() -> str:
    """Processor, cores that this process may use, and memory, in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"


def instructions() -> str:
    """Vector instructions of the processor, which decide how sums are ordered and rounded, and so every last digit."""
    has = _cpuinfo("flags", "Features").split()
    return ", ".join(name for name in _INSTRUCTIONS if name in has) or "unknown"


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or "unknown processor"


def _cpuinfo(*names: str) -> str:
    """The first line of one of these names in what Linux says of the processor, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(names)), "")


def _git(root, *arguments) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
