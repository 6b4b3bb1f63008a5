"""What several mechanisms cost together: phases, runs and data sets composed into one ε.

Events of different noise, sampling and kind are composed by privacy loss distributions, which multiply (as
Fourier transforms), so that nothing is lost but the rounding, which is upwards. RDP stands beside it: a second
analysis, by other code, that must come out near and usually above.

No TensorFlow is imported here.
"""

from __future__ import annotations

import collections
import dataclasses
import math

import dp_accounting
import numpy as np
from dp_accounting import rdp

from tfprivacy_lab.checks import InputError, check_finite_number
from tfprivacy_lab.dp.accounting import adjacency, events, gaussian
from tfprivacy_lab.dp.accounting.adjacency import ZERO_OUT
from tfprivacy_lab.dp.accounting.adjacency import named as adjacency_named
from tfprivacy_lab.dp.accounting.privacy_loss.loss_grid import moments
from tfprivacy_lab.dp.accounting.privacy_loss.mechanisms import Counts, Mechanism, PoissonSampledLaplace, canonical
from tfprivacy_lab.dp.accounting.privacy_loss.pld import deltas_of_counts, epsilon_of_counts

SEQUENTIAL = "one record may be in the data of every part"
PARALLEL = "one record is in the data of one part only, by a rule fixed before looking at the data"

# Expected privacy loss from which on a grid that fits into memory is coarse.
LARGEST_LOSS = 2000.0


def compose(*parts, delta: float) -> dict:
    r"""ε of several runs or events on data that may share a record: phases, recipes, data sets.

    :math:`\delta(\epsilon) = \max_\pm E[(1 - e^{\epsilon - L_1 - \dots - L_k})_+]`, with :math:`L_i` the independent
    privacy losses of the parts.

    Args:
        parts: :class:`.DpSgdRun` or events of dp_accounting, at least one, in any order,
            all of one adjacency (:mod:`tfprivacy_lab.dp.accounting.adjacency`).
        delta: Target δ in (0, 1), for all of it.

    Returns:
        A JSON-ready dict: ``epsilon`` (PLD), ``epsilon_rdp`` (RDP; None where RDP knows no bound for a part),
        ``epsilon_pure`` (the ε at δ = 0 if all noise is Laplace's, else None), ``accountant``, ``adjacency``,
        ``assumption``, ``delta``, and ``events`` as :func:`tfprivacy_lab.dp.accounting.events.to_json` writes them.

    Raises:
        InputError: for δ, a part that cannot be accounted, or parts of different adjacency.

    Guarantee: neighbours as ``adjacency`` says; all outputs of all parts are released, and a later part may look at the
    outputs of the former. Not covered: noise or sampling of a later part chosen by looking at outputs of the former
    (fully adaptive composition; Rogers et al. 2016): fix the plan of the runs first.

    Source: Koskela et al. 2020; Doroshenko et al. 2022; RDP: Mironov 2017, Prop. 1.
    """
    logged = [event_of(part) for part in parts]
    if not logged:
        raise InputError("Expected at least one run or event to compose, got none.")
    neighbours, logged = adjacency.common(logged), [adjacency.plain(event) for event in logged]
    return {
        "epsilon": epsilon_of_all(logged, delta),
        "epsilon_rdp": _epsilon_by_rdp(logged, delta),
        "epsilon_pure": _total_pure(logged),
        "accountant": gaussian.accountant_name(),
        "adjacency": neighbours,
        "assumption": SEQUENTIAL,
        "delta": float(delta),
        "events": [events.to_json(event) for event in logged],
    }


def compose_parallel(*parts, delta: float) -> dict:
    """ε of runs or events on disjoint parts of the data: the dearest part, not the sum.

    Args:
        parts: As for :func:`compose`; each one looked at its own part of the data, and at no other.
        delta: Target δ in (0, 1).

    Returns:
        As :func:`compose`, with the largest of the parts' figures, and the assumption that makes it true.

    Raises:
        InputError: as :func:`compose`.

    Guarantee: adding or removing one record changes one part only (McSherry 2009, Thm 4), so its cost is the
    largest, at the same δ. Not covered: a division that depends on the other records (sorting, balancing, equal
    shares of a shuffled list: one record more moves the others across); one person with records in several parts;
    replacing a record, which may take it from one part to another and costs both.
    """
    each = [compose(part, delta=delta) for part in parts]
    if not each:
        raise InputError("Expected at least one run or event, got none.")

    adjacency.common(map(event_of, parts))

    def largest(name):
        figures = [part[name] for part in each]
        return None if None in figures else max(figures)

    dearest = {name: largest(name) for name in ("epsilon", "epsilon_rdp", "epsilon_pure")}
    logged = [event for part in each for event in part["events"]]
    return {**each[0], **dearest, "assumption": PARALLEL, "events": logged}


def epsilon_of(event, delta: float) -> float:
    """ε by PLD of one event, whatever it is composed of.

    Raises:
        InputError: as :func:`compose`, or if no finite ε can be computed at δ.
    """
    return epsilon_of_all([event], delta)


def epsilon_of_all(logged, delta: float) -> float:
    """ε by PLD of runs or events together, however many: what counts is how often each mechanism is used.

    The caller sees to it that they are of one adjacency.

    Raises:
        InputError: as :func:`compose`, or if no finite ε can be computed at δ.
    """
    return epsilon_of_mechanisms(sum_of_mechanisms(map(mechanisms_of, logged)), delta)


def epsilon_of_mechanisms(counts: dict[Mechanism, int], delta: float) -> float:
    """ε by PLD of a multiset of mechanisms, see :func:`tfprivacy_lab.dp.accounting.events.mechanisms`.

    Raises:
        InputError: as :func:`epsilon_of_all`.
    """
    gaussian.check_delta(delta)
    return gaussian.finite(epsilon_of_counts(_counted(counts), float(delta)), delta)


def delta_of(event, epsilon: float) -> float:
    """δ by PLD of one event at ε >= 0.

    Raises:
        InputError: as :func:`compose`.
    """
    check_finite_number("epsilon", epsilon, at_least=0)
    return float(privacy_loss(event).get_delta_for_epsilon(epsilon))


@dataclasses.dataclass(frozen=True)
class PrivacyCurve:
    """δ as a function of ε, of a multiset of mechanisms; an upper bound at each ε, however small δ is."""

    counts: Counts

    def get_delta_for_epsilon(self, epsilon):
        """δ at ε >= 0, a number or an array; named as dp_accounting names it."""
        return deltas_of_counts(self.counts, np.asarray(epsilon))[()]


def privacy_loss(event) -> PrivacyCurve:
    """The privacy curve of a run or an event, of the worse direction of add-or-remove, rounded upwards."""
    return PrivacyCurve(_counted(mechanisms_of(event)))


def mechanisms_of(part) -> dict[Mechanism, int]:
    """The multiset of mechanisms of a run or an event, of either adjacency."""
    return events.mechanisms(adjacency.plain(event_of(part)))


def sum_of_mechanisms(multisets) -> dict[Mechanism, int]:
    """The multiset of several: counts add up.

    Raises:
        InputError: if one mechanism is used more often than can be computed.
    """
    total: dict[Mechanism, int] = {}
    for counts in multisets:
        for mechanism, count in counts.items():
            total[mechanism] = events.check_count(total.get(mechanism, 0) + count)
    return total


def pure_epsilon(event) -> float | None:
    r"""ε at δ = 0: :math:`\sum_i k_i \log(1 + q_i (e^{1/b_i} - 1))` if all noise is Laplace's, else None.

    Source: Dwork et al. 2006; amplification by sampling, Balle, Barthe and Gaboardi 2018, Thm 8.
    """
    return _total_pure([event])


def _total_pure(logged) -> float | None:
    total = 0.0
    for mechanism, count in sum_of_mechanisms(map(mechanisms_of, logged)).items():
        if not isinstance(mechanism, PoissonSampledLaplace):
            return None
        total += count * math.log1p(mechanism.sampling_probability * math.expm1(1 / mechanism.noise_multiplier))
    return total


def epsilon_shuffled(
    run: gaussian.DpSgdRun, delta: float, *, adjacency: str = "zero_out", drop_remainder: bool = False
) -> float:
    r"""ε that the same noise supports if batches of fixed size are cut from a shuffled order, as ``fit`` does.

    Every example is in one batch a pass. Given the order, one pass is one Gaussian mechanism on the batch that holds
    the example, and :math:`E` passes are one of :math:`\sigma / \sqrt{E}`; averaging over orders cannot cost more
    (the hockey-stick divergence is jointly convex). So this holds for any order, random or not, and no credit is
    taken for randomness: none is proven that comes near the Poisson figure, and for small noise Chua et al. 2024
    show that shuffling truly costs more than Poisson sampling.

    Args:
        run: The run, with ``batch_size`` the size of every batch.
        delta: Target δ in (0, 1).
        adjacency: ``zero_out`` (a record's gradient becomes zero while its place in the batch stays: Kairouz et
            al. 2021) or ``replace_one`` (it becomes another record's: twice the sensitivity).
        drop_remainder: True if the last, smaller batch of each pass is left out: passes are then shorter.

    Returns:
        ε, exact for one fixed order (Balle and Wang 2018, Thm 8).

    Raises:
        InputError: naming the argument that is out of range.

    Not covered: add or remove one record. It shifts all later records by one place, so every later batch changes.
    Figures under different adjacencies are not comparable one to one: print the adjacency beside them.
    """
    gaussian.check_delta(delta)
    zeroed = adjacency_named(adjacency) == ZERO_OUT
    if not zeroed and adjacency != "replace_one":
        raise InputError(f"Expected adjacency to be zero_out or replace_one, got adjacency={adjacency!r}.")
    batches = run.examples / run.batch_size
    passes = math.ceil(run.steps / (math.floor(batches) if drop_remainder else math.ceil(batches)))
    sensitivity = 1 if zeroed else 2
    return gaussian.gaussian_epsilon(run.noise_multiplier / (sensitivity * math.sqrt(passes)), delta)


def event_of(part) -> dp_accounting.DpEvent:
    """The event of a run; an event is itself."""
    return part.event() if isinstance(part, gaussian.DpSgdRun) else part


def _epsilon_by_rdp(logged, delta) -> float | None:
    accountant = rdp.RdpAccountant()
    if not all(map(accountant.supports, logged)):
        return None
    # Equal events once, with their number: each takes milliseconds.
    for text, count in collections.Counter(map(events.dumps, logged)).items():
        accountant.compose(events.loads(text), count)
    return float(accountant.get_epsilon(delta))


def expected_loss(mechanisms: dict[Mechanism, int]) -> float:
    """Mean privacy loss of a multiset of mechanisms, or a bound on it: it decides how large a distribution grows."""
    return math.fsum(moments(mechanism)[0] * count for mechanism, count in mechanisms.items())


def _counted(counts: dict[Mechanism, int]) -> Counts:
    """The multiset as the accountant takes it, if it can be computed."""
    for mechanism in counts:
        check_finite_number("noise_multiplier", mechanism.noise_multiplier, at_least=gaussian.SMALLEST_NOISE)
    if expected_loss(counts) > LARGEST_LOSS:
        raise InputError(
            f"The events cost an epsilon near or beyond {LARGEST_LOSS:g}, too much to compute; use more noise or "
            "fewer steps."
        )
    return canonical(counts)
