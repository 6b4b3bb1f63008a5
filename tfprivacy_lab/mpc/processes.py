"""Start one process a party on this machine, hand each what is its own, and collect what they learn.

What a party gets and what it returns passes through pipes and through files that have no name: if this process, or any
of them, is killed, nothing of anybody's data is left in a folder, and the parties end when their starter has gone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from tfprivacy_lab import files
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc.jobs import row_ids
from tfprivacy_lab.mpc.jobs.job import Job
from tfprivacy_lab.mpc.jobs.ranges import plan
from tfprivacy_lab.mpc.parties import Run, checked_of_all, run_of, run_party
from tfprivacy_lab.mpc.transport import relay
from tfprivacy_lab.mpc.transport.certificates import Credentials, LoadedCredentials, make_pems
from tfprivacy_lab.mpc.transport.peers import PartyError

_LENGTH = struct.Struct("<Q")


def launch(
    job: Job,
    data: dict[str, dict[str, np.ndarray]],
    *,
    tls: bool = False,
    seconds: float = 600.0,
) -> Run:
    """One process a party on this machine, over loopback, each with its own data.

    Args:
        job: What to compute.
        data: Party to its arrays; each process is given its own, and nobody else's.
        tls: Make certificates and use TLS between the processes.
        seconds: After which everything is ended.

    Returns:
        What :func:`simulate` returns, from the processes' reports.

    Raises:
        InputError: if the job is refused, or naming the party and the array.
        PartyError: with the first party's line, if one fails.
    """
    chosen, names = plan(job), job.world.parties
    checked = checked_of_all(job, data)
    row_ids.compare(job, data)
    own = {name: _asked_for(data.get(name, {}), checked[name]) for name in names}
    keys = make_pems(names, days=1) if tls else {name: {} for name in names}
    addresses = {name: ("127.0.0.1", free_port("127.0.0.1")) for name in names}
    processes, said = {}, {}
    try:
        for name in names:
            said[name] = (tempfile.TemporaryFile(), tempfile.TemporaryFile())  # noqa: SIM115 closed below
            processes[name] = subprocess.Popen(
                [sys.executable, "-m", "tfprivacy_lab.mpc.processes"],
                stdin=subprocess.PIPE,
                stdout=said[name][0],
                stderr=said[name][1],
            )
        for name, process in processes.items():
            asked = {"job": job.to_json(), "me": name, "addresses": json.dumps(addresses)}
            asked |= {pem: text.decode() for pem, text in keys[name].items()}
            _ask(process, _packed({**own[name], **{key: np.array(value) for key, value in asked.items()}}))
        order = _wait(processes, seconds)
        outcomes = {name: _outcome(job, name, processes[name], *said[name]) for name in order}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
            # What a child has not read is written once more here.
            with contextlib.suppress(OSError):
                process.stdin.close()
        for stream in (stream for both in said.values() for stream in both):
            stream.close()
    from tfprivacy_lab.mpc.runtime.engine import Traffic

    return run_of(job, chosen, outcomes, Traffic(0, 0))


def free_port(host: str) -> int:
    """A port that nobody listens at just now."""
    with socket.create_server((host, 0)) as probe:
        return probe.getsockname()[1]


def outcome_arrays(outcome) -> dict[str, np.ndarray]:
    """One party's outcome as named arrays: what was revealed to it, and its shares."""
    arrays = {f"share.{name}": share for name, share in outcome.shares.items()}
    for number, weight in enumerate(outcome.weights or ()):
        arrays[f"weight.{number}"] = weight
    if outcome.predictions is not None:
        arrays["predictions"] = outcome.predictions
    return arrays


def write_outcome(path, outcome) -> None:
    """One party's outcome as a file of mode 0600."""
    files.write_private_arrays(path, **outcome_arrays(outcome))


def _loaded(asked: dict[str, np.ndarray]) -> LoadedCredentials | None:
    """Credentials from texts."""
    if "certificate" not in asked:
        return None
    pems = ("certificate", "private_key", "authority")
    with Credentials.of_pems({pem: str(asked[pem]).encode() for pem in pems}) as paths:
        return paths.loaded()


def _asked_for(data, checked: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of a party's data what the job needs: nothing else is sent to its process."""
    needed = [key for key in data if key in checked or key in ("ids", "query_ids")]
    return {f"data.{key}": np.asarray(data[key]) for key in needed}


def _packed(arrays: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def _unpacked(packed: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(packed), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def _ask(process: subprocess.Popen, packed: bytes) -> None:
    try:
        process.stdin.write(_LENGTH.pack(len(packed)) + packed)
        process.stdin.flush()
    except BrokenPipeError:
        return  # It has ended; why is in what it said.


def _wait(processes: dict[str, subprocess.Popen], seconds: float) -> list[str]:
    """Wait for all; if one fails, give the others ten seconds to say so. Names, the first to fail first."""
    deadline, failed = time.monotonic() + seconds, []
    while any(process.poll() is None for process in processes.values()) and time.monotonic() < deadline:
        now = [name for name, process in processes.items() if name not in failed and process.poll()]
        if now and not failed:
            deadline = min(deadline, time.monotonic() + 10)
        failed += now
        time.sleep(0.02)
    failed += [name for name, process in processes.items() if name not in failed and process.poll() != 0]
    return failed + [name for name in processes if name not in failed]


def _outcome(job: Job, name: str, process: subprocess.Popen, out, err):
    """What a party returned.

    Raises:
        PartyError: with the party's line, if it failed.
    """
    from tfprivacy_lab.mpc.runtime.engine import Traffic
    from tfprivacy_lab.mpc.runtime.execution import Outcome

    if process.poll() != 0:
        code, (_, lines) = process.poll(), (err.seek(0), err.read().decode(errors="replace").strip().splitlines())
        ended = "its process did not end in time" if code is None else f"its process ended with code {code}"
        raise PartyError(f"{name}: {lines[-1] if lines else ended + '.'}")
    out.seek(0)
    found = _unpacked(out.read())
    report = json.loads(str(found["report"]))
    shares = {key.removeprefix("share."): value for key, value in found.items() if key.startswith("share.")}
    weights = [found[f"weight.{number}"] for number in range(len(job.weight_shapes))] if "weight.0" in found else None
    traffic = Traffic(report["bytes_sent"], report["rounds"])
    return Outcome(weights, found.get("predictions"), shares, report["seconds"], report["step_seconds"], traffic)


def _party() -> int:
    """One party: asked on standard input, answers on standard output; ends if the input does."""
    stream, answer = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints is no answer.
    header = stream.read(_LENGTH.size)
    packed = stream.read(_LENGTH.unpack(header)[0]) if len(header) == _LENGTH.size else b""
    if not packed:
        return 3
    threading.Thread(target=_end_with_starter, daemon=True).start()
    asked = _unpacked(packed)
    own = {key.removeprefix("data."): value for key, value in asked.items() if key.startswith("data.")}
    addresses = {name: tuple(address) for name, address in json.loads(str(asked["addresses"])).items()}
    job = Job.from_dict(json.loads(str(asked["job"])))
    try:
        outcome, _ = run_party(job, str(asked["me"]), own, addresses, credentials=_loaded(asked))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    report = {"bytes_sent": outcome.traffic.bytes_sent, "rounds": outcome.traffic.rounds}
    report |= {"seconds": outcome.seconds, "step_seconds": outcome.step_seconds}
    with answer:
        answer.write(_packed({**outcome_arrays(outcome), "report": np.array(json.dumps(report))}))
    return 0


def _end_with_starter() -> None:
    # Not through the stream's lock, which would be held when the interpreter ends.
    while os.read(0, 1 << 16):
        pass
    _end(3)


def _end(code: int) -> None:
    """End this process at once: the engine's threads do not survive the interpreter, so nothing of it is taken down."""
    relay.remove_folders()
    # TensorFlow leaves the functions that it rewrote to the interpreter's end.
    files_of_modules = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    for path in files_of_modules:
        if os.path.basename(path).startswith("__autograph_generated_file"):
            with contextlib.suppress(OSError):
                os.unlink(path)
    os._exit(code)


if __name__ == "__main__":
    code = _party()
    sys.stderr.flush()
    _end(code)
