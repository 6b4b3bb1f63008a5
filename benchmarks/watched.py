"""A process that reports by JSON lines, ended when it goes quiet for too long or takes too much memory."""

from __future__ import annotations

import json
import selectors
import subprocess
import time
from pathlib import Path

MEMORY_GB = 16.0
QUIET_SECONDS = 120.0
_POLL = 0.2


def run(
    command: list[str], log: Path, environment: dict, *, memory_gb: float = MEMORY_GB, quiet: float = QUIET_SECONDS
) -> tuple[list[dict], str | None]:
    """Run ``command`` to its end or a limit.

    Args:
        command: Prints one JSON object a line on stdout.
        log: Where its stderr goes.
        environment: Its environment variables.
        memory_gb: Most resident memory, in 10^9 bytes. (A limit on address space would stop TensorFlow at once.)
        quiet: Longest time between two lines, in seconds.

    Returns:
        The objects printed before the end, and why there are no more; None if it ended well.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    events, reason, last, pending = [], None, time.monotonic(), b""
    with (
        open(log, "wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as process,
        selectors.DefaultSelector() as selector,
    ):
        try:
            selector.register(process.stdout, selectors.EVENT_READ)
            while reason is None:
                if selector.select(_POLL):
                    block = process.stdout.read1(65536)
                    if not block:
                        break
                    *lines, pending = (pending + block).split(b"\n")
                    events += [json.loads(line) for line in lines]
                    last = time.monotonic()
                if resident_gb(process.pid) > memory_gb:
                    reason = f"not finished: more than {memory_gb:g} GB of memory"
                elif time.monotonic() - last > quiet:
                    what = "a step" if any(e["event"] == "warm" for e in events) else "tracing and the first step"
                    reason = f"not finished: {what} took more than {quiet:g} s"
        except BaseException:
            process.kill()
            raise
        if reason is not None:
            process.kill()
    if reason is None and process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        reason = f"failed: {lines[-1][:200] if lines else f'exit code {process.returncode}'}"
    return events, reason


def resident_gb(pid: int) -> float:
    """Resident memory of a process in 10^9 bytes; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    sizes = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(sizes[0]) * 1024 / 1e9 if sizes else 0.0
