"""Groups of parties as processes, for tests: each has its own file, port and command line."""

import contextlib
import importlib
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

from tfprivacy_lab import files, mpc
from tfprivacy_lab.mpc.transport.certificates import make_certificates

SEMI2K = mpc.World("semi2k", ("alice", "bob"), "alice")
SECRET = 0.7310585786300049


def free_ports(hosts):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((host, 0))) for host in hosts]
        return [one.getsockname()[1] for one in sockets]


class Group:
    """A job, each party's file, and processes to start."""

    def __init__(self, folder, world=SEMI2K, steps=20, tls=False, rows=4, hosts=None):
        # Without the engine the test is skipped, not the party.
        importlib.import_module("tfprivacy_lab.mpc.runtime.library")
        self.folder, self.world = folder, world
        rng = np.random.default_rng(0)
        x = rng.uniform(0, 0.5, (rows, 2))
        x[0, 0] = SECRET
        self.data = {name: {} for name in world.parties}
        self.data["alice"] = {"x": x[:, :1]}
        self.data["bob"] = {"x": x[:, 1:], "y": (x.sum(1) > 0.5).astype(float)[:, None]}
        self.job = mpc.Job(
            world=world,
            layers=(mpc.Layer(1, "sigmoid"),),
            features={"alice": (rows, 1), "bob": (rows, 1)},
            labels=("bob",),
            weights=[[[0.3], [-0.2]], [0.1]],
            training=mpc.Training("binary_crossentropy", 0.1, steps),
            reveal_weights=("bob",),
        )
        hosts = hosts or ["127.0.0.1"] * len(world.parties)
        self.where = dict(zip(world.parties, zip(hosts, free_ports(hosts), strict=True), strict=True))
        self.addresses = ",".join(f"{name}={host}:{port}" for name, (host, port) in self.where.items())
        if tls:
            make_certificates(world.parties, folder / "certificates")
        self.tls = tls

    def start(self, name, job=None, data=None, certificates=True, prelude="", more=()):
        """The process of one party; ``prelude`` is what a dishonest one does to its own program first."""
        path = self.folder / f"{name}.json"
        (job or self.job).save(path)
        files.write_private_arrays(self.folder / f"{name}.npz", **(self.data[name] if data is None else data))
        code = f"import sys; {prelude}\nfrom tfprivacy_lab.cli.command import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "mpc", "party", "--job", path, "--me", name]
        command += ["--data", self.folder / f"{name}.npz", "--addresses", self.addresses]
        command += ["--out", self.folder / f"{name}.out.npz"]
        if self.tls and certificates:
            command += ["--certificates", self.folder / "certificates" / name]
        command += more
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process, seconds=60):
    """(exit code, stdout, stderr) of a process that must end by itself."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


def one_line(process, naming, seconds=60):
    """A party that was told: exit code 2, one line on stderr besides its progress, nothing written."""
    code, out, err = ended(process, seconds)
    lines = [line for line in err.splitlines() if not line.startswith(("step ", "order of rows"))]
    assert (code, out) == (2, ""), err
    assert len(lines) == 1, err
    assert naming in lines[0]


def listening(process):
    """TCP ports at which a process listens, whatever they are for."""
    own = set()
    for descriptor in os.listdir(f"/proc/{process.pid}/fd"):
        with contextlib.suppress(OSError):
            own.add(os.readlink(f"/proc/{process.pid}/fd/{descriptor}"))
    tables = [pathlib.Path(f"/proc/{process.pid}/net/{kind}").read_text() for kind in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()]
    return [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own]
