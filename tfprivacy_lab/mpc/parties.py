"""Run a job: as one party among processes, or as threads of a simulation.

- :func:`run_party` is one party: it knows its own data and nobody else's.
- :func:`tfprivacy_lab.mpc.processes.launch` starts one process a party on this machine and collects what they learn.
- :func:`simulate` runs all parties in threads of this process, on the same engine and protocol, for notebooks. All
  data is in one memory: it shows what each party would learn, and protects nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import secrets
import threading
from collections.abc import Mapping

import numpy as np

from tfprivacy_lab.checks import InputError, check_array, check_finite_number, check_positive_int
from tfprivacy_lab.mpc.jobs import row_ids
from tfprivacy_lab.mpc.jobs.job import Job
from tfprivacy_lab.mpc.jobs.ranges import Plan, plan
from tfprivacy_lab.mpc.transport.certificates import Credentials, LoadedCredentials
from tfprivacy_lab.mpc.transport.entrance import is_loopback
from tfprivacy_lab.mpc.transport.links import Control
from tfprivacy_lab.mpc.transport.peers import PartyError
from tfprivacy_lab.mpc.transport.relay import Relay

# Longer than any computation of one party on its own, between two messages.
WAIT_SECONDS = 600.0
_SIMULATING = threading.Lock()
# How the engine says that a message of a rank to another did not come.
_LATE = re.compile(r"Get data timeout, key=\S*:(\d+)->\d+")

# The names of a party's arrays, as the checks of its data call them.
_ARRAY = re.compile(r"\b(x|y|query_ids|query|noise|ids|(kernel|bias)_\d+)\b")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a job brought.

    Attributes:
        outcomes: Party to its Outcome: what it learnt, and its shares.
        plan: Arithmetic, approximations and error bounds.
        bytes_sent: Payload bytes that all parties together sent.
        rounds: Messages that a party waited for, one after the other: an upper bound on rounds.
        seconds: Of the slowest party: sharing, running, opening; neither imports nor compiling.
        step_seconds: Of each training step, at one party.
    """

    outcomes: dict
    plan: Plan
    bytes_sent: int
    rounds: int
    seconds: float
    step_seconds: list[float]


def simulate(job: Job, data: dict[str, dict[str, np.ndarray]]) -> Run:
    """All parties in threads of this process.

    Args:
        job: What to compute.
        data: Party to its arrays, see :func:`tfprivacy_lab.mpc.runtime.execution.check_data`.

    Raises:
        InputError: naming the party and the array.
    """
    chosen = plan(job)
    from tfprivacy_lab.mpc.runtime import engine, execution, programs

    own = checked_of_all(job, data)
    row_ids.compare(job, data)
    compiled = programs.compile_job(job, chosen)
    with _SIMULATING:
        log = engine.ProfileLog.of_process()
        start, description = (
            log.size(),
            _description(job, {name: f"memory:{name}" for name in job.world.parties}, WAIT_SECONDS),
        )
        outcomes, errors, run = {}, [], secrets.token_hex(32)

        def party(name: str) -> None:
            try:
                link = engine.libspu.link.create_mem(description, job.world.rank(name))
                mine = engine.Engine(job.world, name, chosen.arithmetic, link)
                outcomes[name] = execution.execute(job, chosen, compiled, mine, own[name], run)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=party, args=(name,), daemon=True) for name in job.world.parties]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and not errors:
            threads[0].join(0.005)
            for thread in threads[1:]:
                thread.join(0.005)
        if errors:
            raise errors[0]
        spent = log.traffic_since(start, len(job.world.parties))
    return run_of(job, chosen, outcomes, spent)


def run_of(job: Job, chosen: Plan, outcomes: dict, spent) -> Run:
    """What a run gave and cost, of its parties' outcomes and of what their links ``spent`` beside the engine."""
    sent = sum(outcome.traffic.bytes_sent for outcome in outcomes.values())
    rounds = max(outcome.traffic.rounds for outcome in outcomes.values())
    slowest = max(outcomes.values(), key=lambda outcome: outcome.seconds)
    ordered = {name: outcomes[name] for name in job.world.parties}
    total = spent.bytes_sent + sent
    return Run(ordered, chosen, total, spent.rounds + rounds, slowest.seconds, slowest.step_seconds)


def _description(job: Job, engines: dict[str, str], wait_seconds: float):
    """The engine's description of who is where."""
    from tfprivacy_lab.mpc.runtime.library import libspu

    description = libspu.link.Desc()
    for name in job.world.ranks:
        description.add_party(name, engines[name])
    # Parties that are gone are noticed by the control connection; those who are there and send nothing, by this.
    description.recv_timeout_ms = round(1000 * wait_seconds)
    description.connect_retry_times, description.connect_retry_interval_ms = 100, 100
    # One message of a mebibyte may take so long over a slow line.
    description.http_timeout_ms = round(1000 * min(wait_seconds, 120.0))
    # The engine ends the whole process when it cannot send; before it does, this party says why, and leaves.
    description.retry_opts.max_retry = 30
    return description


def run_party(
    job: Job,
    me: str,
    data: dict[str, np.ndarray],
    addresses: dict[str, tuple[str, int]],
    *,
    credentials: Credentials | LoadedCredentials | None = None,
    listen: tuple[str, int] | None = None,
    join_seconds: float = 60.0,
    wait_seconds: float = WAIT_SECONDS,
    on_step=None,
):
    """One party: check, compile, meet the others, compute.

    Args:
        job: What this party agreed to.
        me: Its name.
        data: Its own arrays, see :func:`tfprivacy_lab.mpc.runtime.execution.check_data`.
        addresses: Every party's name to (host, port) at which it is reached, this one's included. It is the only port
            that a party has: the engine's bytes travel through the connections that are made there.
        credentials: For TLS; without, only loopback addresses are accepted.
        listen: (host, port) to bind, if not this party's address: behind a forwarding, or on all interfaces.
        join_seconds: How long to wait for the others to come.
        wait_seconds: How long the engine waits for a message from a party that is there and sends none.
        on_step: Called with the number of each finished training step.

    Returns:
        (Outcome, Plan); the outcome's traffic is all that this party sent.

    Raises:
        InputError: if its own data or arguments do not fit.
        PartyError: within seconds, if another party is gone, silent, unknown, or runs something else.

    Guarantee: this party's data leaves it only as shares; of the ids of its rows a digest under a key of the
    connection, see :mod:`tfprivacy_lab.mpc.jobs.row_ids`. Not covered: see :class:`World`.

    Call it in a process of its own, as ``mpc party`` does: the engine's link stays up until the process ends, and the
    engine ends the process some seconds after another party has left.
    """
    job.world.rank(me)
    check_finite_number("join_seconds", join_seconds, above=0, at_most=1e6)
    check_finite_number("wait_seconds", wait_seconds, above=0, at_most=1e6)
    _check_addresses(job, addresses, listen, credentials)
    if isinstance(credentials, Credentials):
        credentials = credentials.loaded()
    relay = Relay(job.world.ranks, me)
    control = Control(me, job.world.ranks, addresses, credentials, listen=listen, relay=relay)
    agreed = json.loads(job.to_json())
    try:
        chosen, own, compiled, rows = _prepared(job, me, data)
    except InputError as error:
        # What is wrong with its data is for this party alone: others hear which array it is, and no more.
        array = _ARRAY.search(str(error))
        refusal = f"its {array[0] if array else 'data'} does not fit what was agreed"
        with contextlib.suppress(PartyError):
            control.join(agreed, "none", join_seconds, refusal=refusal)
        raise
    control.join(agreed, compiled.digest, join_seconds, rows=rows)
    box = {}

    def work() -> None:
        try:
            description = _description(job, relay.addresses(), wait_seconds)
            run = control.run_id
            outcome, link = _compute(job, me, own, chosen, compiled, description, run, on_step, relay.connected)
            box["outcome"] = outcome
            # A link that goes away while others still acknowledge would end their processes: it goes with this one.
            _keep(link)
        except Exception as error:
            box["error"] = error

    # The engine cannot be interrupted: if another party fails, its thread is left behind.
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    while not box and not control.failed.is_set():
        worker.join(0.02)
    if "outcome" not in box:
        raise _explained(control, box.get("error"), job.world.ranks, wait_seconds)
    control.finish()
    return box["outcome"], chosen


def _keep(link) -> None:
    """Never returns, so that the link is never taken down before the process ends."""
    while link is not None:
        threading.Event().wait()


def _prepared(job: Job, me: str, data):
    """All that needs no other party: the plan, this party's data checked, the programs compiled, its rows' ids."""
    chosen = plan(job)
    from tfprivacy_lab.mpc.runtime import programs

    own, rows = checked_data(job, me, data), row_ids.of_party(job, me, data)
    return chosen, own, programs.compile_job(job, chosen), rows


def checked_data(job: Job, me: str, data) -> dict[str, np.ndarray]:
    """What :func:`tfprivacy_lab.mpc.runtime.execution.check_data` returns of a party's arrays, however they were given.

    Raises:
        InputError: naming the array.
    """
    from tfprivacy_lab.mpc.runtime import execution

    if not isinstance(data, Mapping):
        raise InputError(f"Expected the data of {me} to be a mapping of names to arrays, got {type(data).__name__}.")
    for name, value in data.items():
        check_array(str(name), value)
    return execution.check_data(job, me, data)


def checked_of_all(job: Job, data) -> dict[str, dict[str, np.ndarray]]:
    """Every party's own, as :func:`checked_data` returns it.

    Raises:
        InputError: naming the party and the array.
    """
    row_ids.check_given(job, data)
    own = {}
    for name in job.world.parties:
        try:
            own[name] = checked_data(job, name, data.get(name, {}))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    return own


def _compute(job, me, own, chosen, compiled, description, run, on_step, on_connected):
    """Connect the engine, and run the job on it."""
    from tfprivacy_lab.mpc.runtime import engine, execution

    log = engine.ProfileLog.of_process()
    start, link = log.size(), engine.libspu.link.create_brpc(description, job.world.rank(me))
    on_connected()
    mine = engine.Engine(job.world, me, chosen.arithmetic, link)
    outcome = execution.execute(job, chosen, compiled, mine, own, run, on_step)
    outcome.traffic += log.traffic_since(start)
    return outcome, link


def _explained(control: Control, error: Exception | None, ranks: tuple[str, ...], wait_seconds: float) -> PartyError:
    """Why this party cannot go on: what the control connection heard, or else what the engine said."""
    # A peer's end breaks the engine's connection first, and is understood a moment later.
    if control.failed.wait(0.0 if error is None else 2.0):
        # A third party may not have noticed yet, and must not take this one's end for the cause.
        control.give_up(str(control.failure))
        return control.failure
    lines = str(error).strip().splitlines() or [type(error).__name__]
    late = _LATE.search(str(error))
    told = None
    if late:
        reason = f"{ranks[int(late[1])]} is there and sent nothing within the {wait_seconds:g} s of wait_seconds."
    elif type(error).__name__ == "ShareError":
        reason = lines[0]
    else:
        # What else stopped it may tell of this party's machine or data.
        reason, told = f"the engine stopped: {' '.join(lines[:2])[:200]}", "its engine stopped"
    control.give_up(told or reason)
    return PartyError(reason)


def _check_addresses(job: Job, addresses, listen, credentials) -> None:
    if not isinstance(addresses, Mapping):
        raise InputError(f"Expected addresses to map parties to (host, port), got a {type(addresses).__name__}.")
    missing = [name for name in job.world.parties if name not in addresses]
    if missing:
        raise InputError(f"Expected an address of every party, got none of {missing[0]}.")
    for name, address in [*addresses.items(), *([] if listen is None else [("the port to listen at", listen)])]:
        if not isinstance(address, tuple | list) or len(address) != 2 or not isinstance(address[0], str):
            raise InputError(f"Expected (host, port) as the address of {name}, got {address!r:.80}.")
        host, _ = address[0], check_positive_int(f"the port of {name}", address[1], at_most=65535)
        if credentials is None and not is_loopback(host):
            raise InputError(f"Expected certificates, because {name} at {host} is not on this machine.")
