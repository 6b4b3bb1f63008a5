r"""How far the logits of a reply can be from the float head's, by what the reply says of itself.

The client knows neither kernel nor bias, but the proved limits of :mod:`.limits` hold for any head
that answers: a column's integer weights have :math:`\|W\|_1 \le M`, the integer range over the largest feature. With
:math:`\|w\|_2 \le \|w\|_1` a logit is off by at most

* features' rounding (BFV) or the noise of a polynomial or slot (CKKS), at the weights M,
* the weights' rounding, :math:`d\,2^{feature\_bits} / 2`, and the bias's,

in units of :math:`2^e / s`, both in the reply. It is never below :meth:`QuantizedHead.error_bound
<tfprivacy_lab.he.quantization.heads.QuantizedHead.error_bound>`, which knows the weights.
"""

from __future__ import annotations

import math
import warnings

import numpy as np

from tfprivacy_lab.checks import InputError, PrecisionWarning, check_finite_number
from tfprivacy_lab.he.messages.wire import Header
from tfprivacy_lab.he.quantization import limits


def reply_error_bound(header: Header) -> float:
    """Bound on any logit's error, for whatever head answered under its proved limits.

    Args:
        header: Of a reply.

    Returns:
        The bound, in logits, infinite if that is beyond float64.

    Guarantee: as of :class:`.QuantizedHead`: but for a probability of 2**-64 a reply.

    Not covered: a server that answers otherwise than it says.
    """
    pinned = header.parameters
    if pinned.scheme == "bfv":
        weights = ((pinned.plaintext_modulus - 1) // 2) / pinned.max_feature
        rounding = weights / 2 + 0.5
    else:
        weights = pinned.modulus / 2 / pinned.max_feature
        rounding = pinned.modulus / 2 * 2.0**-40 + 2.0**pinned.bias_shift
        if header.packing == "coefficient":
            together = min(header.columns, pinned.poly_modulus_degree // header.features)
            rounding += limits.noise_of(pinned, weights * together, weights * math.sqrt(together))
            rounding += limits.flooding(pinned, header.features, header.columns)
        else:
            rounding += pinned.slot_noise_bound(weights) + weights * pinned.poly_modulus_degree / 2
    total = (rounding + header.features * pinned.max_feature / 2) / header.weight_scale
    try:
        return math.ldexp(total, header.step_exponent)
    except OverflowError:
        return math.inf


def check_error_bound(bound: float, max_error: float) -> None:
    """Refuse a bound above what is wanted.

    Raises:
        InputError: with the bound, and what makes it smaller.
    """
    if bound > check_finite_number("max_error", max_error, above=0):
        raise InputError(
            f"Expected max_error={max_error:g}, but a logit may be off by {bound:.3g}: encrypt under ckks, with "
            "coefficient packing, or with a feature_range as narrow as each column allows."
        )


def labels_in_doubt(logits: np.ndarray, bound: float) -> int:
    """How many samples' labels the proved bound on a logit's error does not settle.

    A label is settled if the largest logit leads by more than twice the bound; of a single logit, if its sign is.

    Args:
        logits: (samples, classes).
        bound: As :func:`reply_error_bound` gives it.

    Warns:
        PrecisionWarning: if it is more than half of them.
    """
    lead = np.abs(2 * logits[:, 0]) if logits.shape[1] == 1 else np.diff(np.sort(logits, axis=1)[:, -2:])[:, 0]
    doubtful = int(np.count_nonzero(lead <= 2 * bound))
    if 2 * doubtful > len(logits):
        warnings.warn(
            f"{doubtful} of {len(logits)} labels may be wrong, as a logit may be off by {bound:.3g}: encrypt with "
            "feature_range as one bound a column, as narrow as it allows, or under ckks",
            PrecisionWarning,
            stacklevel=2,
        )
    return doubtful
