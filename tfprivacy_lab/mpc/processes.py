"""Start one process a party on this machine, each with a file of its own, and collect what they learn."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tfprivacy_lab import files
from tfprivacy_lab.mpc.certificates import make_certificates
from tfprivacy_lab.mpc.jobs import Job
from tfprivacy_lab.mpc.links import PartyError
from tfprivacy_lab.mpc.parties import Run, free_port, run_of
from tfprivacy_lab.mpc.ranges import plan


def launch(
    job: Job,
    data: dict[str, dict[str, np.ndarray]],
    *,
    tls: bool = False,
    days: int = 1,
    seconds: float = 600.0,
) -> Run:
    """One process a party on this machine, over loopback, each with a file of its own.

    Args:
        job: What to compute.
        data: Party to its arrays; each party's file (mode 0600) holds its own and is deleted at the end.
        tls: Make certificates and use TLS between the processes.
        days: How long these certificates hold.
        seconds: After which everything is ended.

    Returns:
        What :func:`simulate` returns, from the processes' reports.

    Raises:
        InputError: if the job is refused.
        PartyError: with the first party's line, if one fails.
    """
    chosen, names = plan(job), job.world.parties
    with tempfile.TemporaryDirectory(prefix="tfprivacy_lab_mpc_") as folder:
        root = Path(folder)
        job.save(root / "job.json")
        if tls:
            make_certificates(names, root / "certificates", days=days)
        addresses = ",".join(f"{name}=127.0.0.1:{free_port('127.0.0.1')}" for name in names)
        processes = {}
        for name in names:
            files.write_private_arrays(root / name / "data.npz", **data.get(name, {}))
            command = [sys.executable, "-m", "tfprivacy_lab", "mpc", "party", "--job", root / "job.json", "--me", name]
            command += ["--data", root / name / "data.npz", "--addresses", addresses, "--out", root / name / "out.npz"]
            command += ["--certificates", root / "certificates" / name] if tls else []
            processes[name] = subprocess.Popen(
                [*map(str, command), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        reports = _collect(processes, seconds)
        outcomes = {name: _read_outcome(job, root / name / "out.npz", reports[name]) for name in names}
    from tfprivacy_lab.mpc.engine import Traffic

    return run_of(job, chosen, outcomes, Traffic(0, 0))


def _collect(processes: dict[str, subprocess.Popen], seconds: float) -> dict[str, dict]:
    """Wait for all; if one fails, give the others ten seconds to say so, then end them."""
    deadline, failed = time.monotonic() + seconds, None
    try:
        while any(process.poll() is None for process in processes.values()) and time.monotonic() < deadline:
            if failed is None:
                failed = next((name for name, process in processes.items() if process.poll()), None)
                deadline = deadline if failed is None else min(deadline, time.monotonic() + 10)
            time.sleep(0.02)
    finally:
        for process in processes.values():
            process.kill()
        told = {name: process.communicate() for name, process in processes.items()}
    failed = failed or next((name for name, process in processes.items() if process.returncode), None)
    if failed is not None:
        said = told[failed][1].strip().splitlines()
        code = processes[failed].returncode
        reason = said[-1].partition(": error: ")[2] or said[-1] if said else f"its process ended with code {code}."
        raise PartyError(f"{failed}: {reason}")
    return {name: json.loads(out) for name, (out, _) in told.items()}


def write_outcome(path, outcome) -> None:
    """One party's outcome as a file of mode 0600: what was revealed to it, and its shares."""
    arrays = {f"share.{name}": share for name, share in outcome.shares.items()}
    for number, weight in enumerate(outcome.weights or ()):
        arrays[f"weight.{number}"] = weight
    if outcome.predictions is not None:
        arrays["predictions"] = outcome.predictions
    files.write_private_arrays(path, **arrays)


def _read_outcome(job: Job, path, report: dict):
    from tfprivacy_lab.mpc.engine import Traffic
    from tfprivacy_lab.mpc.execution import Outcome

    with np.load(path, allow_pickle=False) as found:
        names = found.files
        shares = {name.removeprefix("share."): found[name] for name in names if name.startswith("share.")}
        weights = (
            [found[f"weight.{number}"] for number in range(len(job.weight_shapes))] if "weight.0" in names else None
        )
        predictions = found["predictions"] if "predictions" in names else None
    traffic = Traffic(report["bytes_sent"], report["rounds"])
    return Outcome(weights, predictions, shares, report["seconds"], report["step_seconds"], traffic)
