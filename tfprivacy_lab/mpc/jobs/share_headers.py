"""What a share of a weight says of itself, in a header before the engine's bytes.

A share means something only beside the other parties' shares of the same run, in the same arithmetic, under the same
protocol, at the same place among the parties. The engine checks none of that: with any of it changed, opened values are
wrong, without a word. So the header says it, and a job that uses the share is compared with it; that all parties'
shares are of one run is compared when they meet (:mod:`tfprivacy_lab.mpc.jobs.row_ids`). Nothing in a header is secret.
"""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np

from tfprivacy_lab.checks import InputError, check_array
from tfprivacy_lab.mpc.jobs.fixed_point import FixedPoint
from tfprivacy_lab.mpc.jobs.job import Job

_LENGTH = struct.Struct("<4sI")
_MAGIC, _LONGEST = b"shr1", 1 << 20


@dataclasses.dataclass(frozen=True)
class ShareHeader:
    """A share's account of itself.

    Attributes:
        name: Of the weight: ``kernel_0``, ``bias_0``, …
        party: Whose share it is.
        protocol: By which it is shared.
        ranks: All parties, in the engine's order.
        layers: [units, activation] of each layer.
        columns: [party, columns] of the model's input, in order; one pair without a name if one party had all.
        arithmetic: [field bits, fraction bits].
        weight_range: No weight's magnitude passes this.
        run: Made by all parties together when they met; another in every run.
    """

    name: str
    party: str
    protocol: str
    ranks: list[str]
    layers: list[list]
    columns: list[list]
    arithmetic: list[int]
    weight_range: float
    run: str

    def before(self, share: np.ndarray) -> np.ndarray:
        """Header and share as one array of bytes."""
        text = json.dumps(dataclasses.asdict(self)).encode()
        return np.concatenate([np.frombuffer(_LENGTH.pack(_MAGIC, len(text)) + text, np.uint8), share])


def of_run(job: Job, arithmetic: FixedPoint, me: str, data: dict, weight_range: float, run: str):
    """A function from a weight's name to the header of this party's share of it, after a run of ``job``."""
    columns = job.columns
    if job.initial == "shares":
        # A party that has all columns need not know whose they were; the shares still do.
        columns = parsed("kernel_0", data["kernel_0"])[0].columns
    layers = [[layer.units, layer.activation] for layer in job.layers]
    numbers = [arithmetic.field_bits, arithmetic.fraction_bits]
    world = (job.world.protocol, list(job.world.ranks))
    return lambda name: ShareHeader(name, me, *world, layers, columns, numbers, weight_range, run)


def parsed(name: str, array) -> tuple[ShareHeader, np.ndarray]:
    """(header, the engine's bytes) of a share.

    Raises:
        InputError: if it is no share.
    """
    share = check_array(name, array)
    if share.dtype != np.uint8 or share.ndim != 1:
        raise InputError(f"Expected {name} to be a share as training left it, got {share.dtype} {share.shape}.")
    try:
        magic, length = _LENGTH.unpack_from(share.tobytes()[: _LENGTH.size])
        if magic != _MAGIC or length > _LONGEST:
            raise ValueError("it begins with no header")
        end = _LENGTH.size + length
        header = ShareHeader(**json.loads(share[_LENGTH.size : end].tobytes()))
    except (struct.error, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"Expected {name} to be a share as training left it: it is damaged or older.") from error
    return header, share[end:]


def check(name: str, array, job: Job, me: str) -> None:
    """Refuse a share that does not fit a job.

    Raises:
        InputError: naming what does not fit.
    """
    header, _ = parsed(name, array)
    if header.columns != job.columns and job.columns != _all(header.columns):
        raise InputError(
            f"Expected {name} to be a share of a model of the columns {json.dumps(job.columns)}, in this order, and it "
            "is of another: give the holders, their order and widths as in training."
        )
    wanted = {
        "weight": (header.name, name),
        "party": (header.party, me),
        "protocol": (header.protocol, job.world.protocol),
        "parties, in the engine's order": (header.ranks, list(job.world.ranks)),
        "layers": (header.layers, [[layer.units, layer.activation] for layer in job.layers]),
        "field_bits and fraction_bits": (
            header.arithmetic,
            [job.arithmetic.field_bits, job.arithmetic.fraction_bits],
        ),
    }
    for what, (made_for, asked) in wanted.items():
        if made_for != asked:
            raise InputError(
                f"Expected {name} to be a share made for this job; its {what}: {json.dumps(made_for)[:120]}, the "
                f"job's: {json.dumps(asked)[:120]}. Give the job what the shares were made with."
            )
    if not isinstance(header.weight_range, float) or not header.weight_range <= job.weight_range:
        raise InputError(
            f"Expected weight_range of at least {header.weight_range!r}, that of the shares ({name}), got "
            f"weight_range={job.weight_range:g}: above it values may overflow."
        )


def _all(columns) -> list[list]:
    """The same columns, of one party that has all of them."""
    try:
        return [["", sum(width for _, width in columns)]]
    except (TypeError, ValueError):
        return []
