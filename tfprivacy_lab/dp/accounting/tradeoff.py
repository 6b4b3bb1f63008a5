"""What a run permits an attacker: its whole trade-off curve, and how likely a loss beyond ε is.

One (ε, δ) is one point of a run's privacy curve; every point binds an attacker at once, and together they say more.

No TensorFlow is imported here.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from tfprivacy_lab.checks import InputError, check_finite_number
from tfprivacy_lab.dp.accounting import adjacency, composition, events
from tfprivacy_lab.dp.accounting.privacy_loss.pld import epsilon_of_counts

_GRID = 4_000
_LARGEST_EPSILON = 500.0  # beyond it e^ε times any rate that can be told from 0 is more than 1
# The grid of ε ends where δ is this: what lies beyond binds no rate that can be told from 0.
_SMALLEST_DELTA = 1e-11


def largest_tpr(part, fpr) -> np.ndarray:
    r"""The most members that any attacker finds at a given rate of false accusations.

    :math:`TPR \le \min_{\epsilon \ge 0} \min(e^\epsilon FPR + \delta(\epsilon),\;
    1 - e^{-\epsilon} (1 - \delta(\epsilon) - FPR))`, over the whole curve :math:`\delta(\epsilon)` of the run.

    Args:
        part: A :class:`~tfprivacy_lab.dp.accounting.gaussian.DpSgdRun` or an event.
        fpr: False-positive rate(s) in [0, 1].

    Returns:
        float64 in [0, 1], of the shape of ``fpr``.

    Raises:
        InputError: naming the argument, or if the part cannot be accounted.

    Guarantee: holds for every test of one record's membership, whatever else the attacker knows, under the adjacency
    of the part. Any point of the curve is a proof, so that a finite grid of them errs upwards.

    Source: Wasserman and Zhou 2010; Kairouz et al. 2015, Thm 2.1; Dong, Roth and Su 2022, Prop. 6 (f-DP).
    """
    rates = np.asarray(fpr, np.float64)
    if not np.all((rates >= 0) & (rates <= 1)):
        raise InputError(f"Expected fpr in [0, 1], got fpr={fpr!r}.")
    epsilons, deltas = (values[:, np.newaxis] for values in _privacy_curve(part))
    many = np.exp(epsilons) * rates.ravel() + deltas
    few = 1 - np.exp(-epsilons) * (1 - deltas - rates.ravel())
    return np.minimum(np.minimum(many, few).min(axis=0), 1.0).reshape(rates.shape)


def probability_beyond(part, epsilon: float) -> float:
    r"""At most how likely a result is whose privacy loss L exceeds ε. It is not δ, and usually several times δ.

    :math:`\Pr[L > \epsilon] \le \min_{\epsilon' < \epsilon} \delta(\epsilon') / (1 - e^{\epsilon' - \epsilon})`, as
    :math:`\delta(\epsilon') = E[(1 - e^{\epsilon' - L})_+]` counts each such result with at least that weight.

    Args:
        part: A run or an event.
        epsilon: ε >= 0.

    Returns:
        A probability.

    Raises:
        InputError: as :func:`largest_tpr`.
    """
    check_finite_number("epsilon", epsilon, at_least=0)
    epsilons, deltas = _privacy_curve(part)
    below = epsilons < epsilon
    if not below.any():
        return 1.0
    return float(min(1.0, np.min(deltas[below] / -np.expm1(epsilons[below] - epsilon))))


def largest_belief(prior: float, epsilon: float) -> float:
    r"""The most that a result of privacy loss ε makes of a belief: :math:`p e^\epsilon / (1 - p + p e^\epsilon)`.

    Args:
        prior: Probability p in (0, 1) given to a record's membership before.
        epsilon: ε >= 0. How likely a result of larger loss is, :func:`probability_beyond` says.

    Raises:
        InputError: naming the argument.
    """
    check_finite_number("prior", prior, above=0, below=1)
    check_finite_number("epsilon", epsilon, at_least=0)
    return 1 / (1 + (1 - prior) / prior * math.exp(-epsilon))


def _privacy_curve(part) -> tuple[np.ndarray, np.ndarray]:
    """Some ε from 0 up, and δ(ε) from above at each."""
    return _curve_of_event(events.dumps(adjacency.plain(composition.event_of(part))))


@functools.lru_cache(maxsize=16)
def _curve_of_event(text: str) -> tuple[np.ndarray, np.ndarray]:
    loss = composition.privacy_loss(events.loads(text))
    largest = epsilon_of_counts(loss.counts, _SMALLEST_DELTA)
    epsilons = np.linspace(0, largest if 0 < largest < _LARGEST_EPSILON else _LARGEST_EPSILON, _GRID)
    return epsilons, np.clip(loss.get_delta_for_epsilon(epsilons), 0, 1)
