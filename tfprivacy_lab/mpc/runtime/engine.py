"""One party's end of the engine: share a value, run a program, open a result to whom it is due. Traffic is counted.

A value's owner makes the shares (additive or replicated, by the protocol; the engine's generator is seeded by
the operating system) and sends each party its own. A result is opened by the others sending their shares of it to
those who may know it, and to nobody else.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import struct
import tempfile
import threading

import numpy as np

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.mpc.jobs.fixed_point import FixedPoint
from tfprivacy_lab.mpc.jobs.protocols import World
from tfprivacy_lab.mpc.runtime.library import libspu, spu

_SECRET, _PUBLIC = libspu.Visibility.VIS_SECRET, libspu.Visibility.VIS_PUBLIC
_LINK = re.compile(r"Link details: total send bytes (\d+), recv bytes (\d+), send actions (\d+), recv actions (\d+)")
# Ring elements that a party holds of one number: its own, and under aby3 its neighbour's.
_ELEMENTS = {"semi2k": 1, "aby3": 2, "cheetah": 1}


class ShareError(RuntimeError):
    """What another party sent is not what was agreed; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What was sent: payload bytes as the engine counts them, without framing and encryption of the transport.

    Attributes:
        bytes_sent: Payload bytes.
        rounds: Times that a party waited for a message: an upper bound on rounds of communication.
    """

    bytes_sent: int = 0
    rounds: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.bytes_sent + other.bytes_sent, self.rounds + other.rounds)


class ProfileLog:
    """The engine's own log of this process, which is the only place where it tells what it sent.

    It holds operations, durations and sizes, no values. It has no name: the file is open, and deleted from its folder.
    """

    _shared: ProfileLog | None = None
    _lock = threading.Lock()

    def __init__(self):
        folder = tempfile.mkdtemp(prefix="tfprivacy_lab_mpc_")
        path = os.path.join(folder, "engine.log")
        options = libspu.logging.LogOptions()
        options.enable_console_logger = False
        options.system_log_path = path
        libspu.logging.setup_logging(options)
        self._stream = open(path, "rb")  # noqa: SIM115 as long as the process
        shutil.rmtree(folder, ignore_errors=True)

    @classmethod
    def of_process(cls) -> ProfileLog:
        """The one of this process."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    def size(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._stream.fileno()).st_size

    def traffic_since(self, start: int, parties: int = 1) -> Traffic:
        """What the runs logged after byte ``start`` sent, all of this process; rounds are of one of ``parties``."""
        text = os.pread(self._stream.fileno(), self.size() - start, start).decode(errors="replace")
        found = [tuple(map(int, match.groups())) for match in _LINK.finditer(text)]
        rounds = sum(received for *_, received in found)
        return Traffic(sum(sent for sent, *_ in found), -(-rounds // parties))


def runtime_config(world: World, arithmetic: FixedPoint) -> libspu.RuntimeConfig:
    """The engine's settings for a world."""
    kind = libspu.ProtocolKind.__members__[world.protocol.upper()]
    field = libspu.FieldType.__members__[f"FM{arithmetic.field_bits}"]
    config = libspu.RuntimeConfig(protocol=kind, field=field, fxp_fraction_bits=arithmetic.fraction_bits)
    config.enable_pphlo_profile = True
    return config


class Engine:
    """One party's end.

    Args:
        world: Who computes.
        me: Which party this is.
        arithmetic: Field and fraction bits.
        link: The engine's connection to the other parties.
    """

    def __init__(self, world: World, me: str, arithmetic: FixedPoint, link):
        self.world, self.me, self.rank = world, me, world.rank(me)
        self._link, config = link, runtime_config(world, arithmetic)
        self._io = spu.Io(len(world.parties), config)
        self._runtime = spu.Runtime(link, config)
        self._storage_type = f"{world.protocol}.AShr<FM{arithmetic.field_bits}>"
        self._bytes_of_number = _ELEMENTS[world.protocol] * arithmetic.field_bits // 8
        self.shared = Traffic(0, 0)

    def share(self, name: str, owner: str, value: np.ndarray | None, shape: tuple[int, ...]) -> None:
        """Put a value of ``owner`` on shares, under ``name``.

        Args:
            name: What programs call it.
            owner: The party who has ``value``.
            value: float64 of that shape at its owner, None elsewhere.
            shape: As agreed.

        Raises:
            ShareError: if what the owner sent has another shape, type or size.
        """
        source = self.world.rank(owner)
        if self.rank == source:
            shares = self._io.make_shares(np.ascontiguousarray(value, np.float64), _SECRET)
            for rank, share in enumerate(shares):
                if rank != self.rank:
                    self._send(rank, share)
            self._runtime.set_var(name, shares[self.rank])
            return
        self._runtime.set_var(name, self._receive(source, shape, name))

    def put_public(self, name: str, value) -> None:
        """A value that everyone knows already."""
        shares = self._io.make_shares(np.asarray(value, np.float64), _PUBLIC)
        self._runtime.set_var(name, shares[self.rank])

    def put_share(self, name: str, packed: np.ndarray, shape: tuple[int, ...]) -> None:
        """This party's share of an earlier result, as :meth:`keep_share` returned it.

        Raises:
            InputError: if it is no share of that shape under this protocol.
        """
        try:
            share = _unpack(packed.tobytes())
            self._check(share, shape, name, self.me)
        except (ShareError, ValueError) as error:
            raise InputError(f"Cannot use the share of {name}: {error}") from error
        self._runtime.set_var(name, share)

    def keep_share(self, name: str) -> np.ndarray:
        """This party's share of ``name``, as bytes; it tells nothing without the others'."""
        return np.frombuffer(_pack(self._runtime.get_var(name)), np.uint8)

    def run(self, executable) -> None:
        """Run a program on the named values."""
        self._runtime.run(executable)

    def open(self, name: str, to: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray | None:
        """Open a value to the parties ``to``; returns it there, and None elsewhere."""
        mine = self._runtime.get_var(name)
        for party in to:
            if party != self.me:
                self._send(self.world.rank(party), mine)
        if self.me not in to:
            return None
        others = range(len(self.world.parties))
        shares = [mine if rank == self.rank else self._receive(rank, shape, name) for rank in others]
        return np.asarray(self._io.reconstruct(shares), np.float64).reshape(shape)

    def _send(self, rank: int, share) -> None:
        packed = _pack(share)
        self._link.send(rank, packed)
        self.shared += Traffic(len(packed), 0)

    def _receive(self, rank: int, shape: tuple[int, ...], name: str):
        packed, sender = self._link.recv(rank), self.world.ranks[rank]
        self.shared += Traffic(0, 1)
        try:
            share = _unpack(packed)
        except ValueError as error:
            raise ShareError(f"{sender} sent no share for {name}: {error}") from error
        self._check(share, shape, name, sender)
        return share

    def _check(self, share, shape, name: str, sender: str) -> None:
        """A share's own account of itself must be what was agreed: the engine would trust it."""
        meta = libspu.ValueMeta()
        if not meta.ParseFromString(share.meta):
            raise ShareError(f"{sender} sent no share for {name}.")
        dims = tuple(meta.shape.dims)
        if dims != tuple(shape):
            raise ShareError(f"{sender} sent shape {dims} for {name}, agreed was {tuple(shape)}.")
        wanted = math.prod(shape) * self._bytes_of_number
        content = sum(_content_bytes(chunk) for chunk in share.share_chunks)
        if meta.storage_type != self._storage_type or meta.visibility != _SECRET or content != wanted:
            raise ShareError(f"{sender} sent a share of another protocol or size for {name}.")


def _content_bytes(chunk: bytes) -> int:
    parsed = libspu.ValueChunk()
    return len(parsed.content) if parsed.ParseFromString(chunk) and parsed.chunk_offset == 0 else -1


def _pack(share) -> bytes:
    """A share as one message: the lengths of its parts, then the parts."""
    parts = [share.meta, *share.share_chunks]
    return struct.pack(f"<I{len(parts)}Q", len(parts), *map(len, parts)) + b"".join(parts)


def _unpack(packed: bytes):
    """The share in a message.

    Raises:
        ValueError: if the lengths do not add up.
    """
    try:
        (count,) = struct.unpack_from("<I", packed)
        lengths = struct.unpack_from(f"<{count}Q", packed, 4) if count <= len(packed) else ()
    except struct.error as error:
        raise ValueError("the message is cut off") from error
    start = 4 + 8 * count
    if count < 2 or start + sum(lengths) != len(packed):
        raise ValueError("the message is damaged")
    parts = []
    for length in lengths:
        parts.append(packed[start : start + length])
        start += length
    share = libspu.Share()
    share.meta, share.share_chunks = parts[0], parts[1:]
    return share
