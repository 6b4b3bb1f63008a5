"""What each packing of a head costs: operations, bytes each way, keys, and the error that is proved, side by side."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.choice.head import SCHEMES, choose
from tfprivacy_lab.he.plans.slot_head import LAYOUTS, SlotHead
from tfprivacy_lab.he.quantization.heads import check_head
from tfprivacy_lab.he.quantization.steps import check_feature_range


@dataclasses.dataclass(frozen=True)
class Cost:
    """One packing of one head for a number of samples.

    Attributes:
        packing: "coefficient", "batched", "diagonal" or "naive".
        parameters: Name of the parameter set, or "ckks, slots".
        products: Products of ciphertexts with plaintexts, of all samples.
        matrix_products: Products of the weights with a matrix of residues, of all blocks of samples.
        rotations: Rotations, of all samples.
        evaluation_keys: Keys that the server needs.
        key_bytes: Their bytes, once a client.
        up_bytes: Of the query.
        down_bytes: Of the reply.
        error_bound: Bound on any logit's error, over the whole range of features.
        exact: Whether the integer result is exact, so that the error is that of rounding before.
    """

    packing: str
    parameters: str
    products: int
    matrix_products: int
    rotations: int
    evaluation_keys: int
    key_bytes: int
    up_bytes: int
    down_bytes: int
    error_bound: float
    exact: bool

    def __str__(self) -> str:
        done = {"product": self.products, "matrix product": self.matrix_products, "rotation": self.rotations}
        told = ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in done.items() if count)
        exact = "exact integers, " if self.exact else ""
        return (
            f"{self.packing} ({self.parameters}): {told}; {self.evaluation_keys} evaluation keys of {self.key_bytes:,} "
            f"bytes; {self.up_bytes:,} bytes up, {self.down_bytes:,} down; {exact}error at most {self.error_bound:.3g}"
        )


def compare_packings(kernel, bias=None, *, samples: int = 1, feature_range=1.0) -> list[Cost]:
    """Every packing that can evaluate the head, cheapest in bytes first.

    Args:
        kernel: Finite, shape (d, c), d <= 2048, c <= 1000.
        bias: Finite, shape (c,), or None.
        samples: Samples of a query, >= 1.
        feature_range: Public bound on the features' magnitudes, > 0, or one a column.

    Returns:
        A cost for every packing and set without, and every set with, sanitised replies, in which the head has room.

    Raises:
        InputError: naming the argument, or if there is none.
    """
    kernel, bias = check_head(kernel, bias)
    # In slots there is one range: columns are brought to it, and their weights with them.
    bounds = check_feature_range(feature_range, len(kernel))
    largest = float(bounds.max())
    scaled = kernel * (bounds / largest)[:, np.newaxis]
    found, reasons = [], []
    for scheme in SCHEMES:
        for packing, sanitized in (("coefficient", False), ("batched", False), ("coefficient", True)):
            asked = {"samples": samples, "scheme": scheme, "packing": packing, "sanitized": sanitized}
            try:
                found.append(_of_messages(choose(kernel, bias, **asked, feature_range=feature_range), samples))
            except InputError as error:
                reasons.append(error)
    for packing in LAYOUTS:
        try:
            plan = SlotHead.make(scaled, bias, packing, (-largest, largest))
            found.append(_of_slots(packing, plan.public.summary(), samples))
        except InputError as error:
            reasons.append(error)
    if not found:
        raise reasons[0]
    return sorted(found, key=lambda cost: cost.up_bytes + cost.down_bytes + cost.key_bytes)


def _of_messages(choice, samples: int) -> Cost:
    """What is sent as one message each way."""
    batched, pinned = choice.packing == "batched", choice.parameters
    blocks = -(-samples // pinned.samples_per_block)
    return Cost(
        choice.packing,
        pinned.name,
        0 if batched else choice.products * samples,
        blocks if batched else 0,
        0,
        0,
        0,
        choice.query_bytes,
        choice.reply_bytes,
        choice.error_bound,
        pinned.scheme == "bfv",
    )


def _of_slots(packing: str, summary: dict, samples: int) -> Cost:
    """Sample by sample, keys once."""
    return Cost(
        packing,
        "ckks, slots",
        summary["products"] * samples,
        0,
        summary["rotations"] * samples,
        summary["evaluation_keys"],
        summary["key_bytes"],
        summary["up_bytes"] * samples,
        summary["down_bytes"] * samples,
        summary["error_bound"],
        False,
    )
