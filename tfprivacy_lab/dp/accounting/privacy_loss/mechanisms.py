"""The mechanisms whose privacy losses are known: each is one release, and equal ones cost the same.

Every one adds noise to a sum that one record moves by at most its sensitivity, which is the unit of the noise.

No TensorFlow is imported here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class PoissonSampledGaussian:
    """Gaussian noise on the sum of a Poisson sample.

    Attributes:
        sampling_probability: Probability q in (0, 1] with which a record joins; 1: every record does.
        noise_multiplier: Standard deviation σ of the noise over the L2 sensitivity, dimensionless, > 0.
    """

    sampling_probability: float
    noise_multiplier: float


@dataclasses.dataclass(frozen=True)
class PoissonSampledLaplace:
    """Laplace noise on the sum of a Poisson sample.

    Attributes:
        sampling_probability: Probability q in (0, 1] with which a record joins; 1: every record does.
        noise_multiplier: Scale b of the noise over the L1 sensitivity, dimensionless, > 0.
    """

    sampling_probability: float
    noise_multiplier: float


@dataclasses.dataclass(frozen=True)
class PoissonSampledGaussianGroup:
    """Gaussian noise on the sum of a Poisson sample, as a group of records sees it (a mixture of Gaussians).

    Attributes:
        sampling_probability: Probability q in (0, 1] with which each record of the group joins.
        group_size: Number k of records that are there or not together.
        noise_multiplier: Standard deviation σ of the noise over the L2 sensitivity to one record, dimensionless, > 0.

    Source: Choquette-Choo et al. 2024, section 4.
    """

    sampling_probability: float
    group_size: int
    noise_multiplier: float


@dataclasses.dataclass(frozen=True)
class TruncatedPoissonSampledGaussian:
    """Gaussian noise on the sum of a Poisson sample that is cut at a largest size.

    Attributes:
        dataset_size: Number n of records.
        sampling_probability: Probability q in (0, 1] with which a record joins before the cut.
        truncated_batch_size: Most records that are kept.
        noise_multiplier: Standard deviation σ of the noise over the L2 sensitivity, dimensionless, > 0.
    """

    dataset_size: int
    sampling_probability: float
    truncated_batch_size: int
    noise_multiplier: float


Mechanism = (
    PoissonSampledGaussian | PoissonSampledLaplace | PoissonSampledGaussianGroup | TruncatedPoissonSampledGaussian
)


# How often each mechanism is used, in the order of :func:`canonical`.
Counts = tuple[tuple[Mechanism, int], ...]


def is_unsampled_gaussian(mechanism: Mechanism) -> bool:
    """Whether it is Gaussian noise on a sum that every record joins: several of them are one, of less noise."""
    return isinstance(mechanism, PoissonSampledGaussian) and mechanism.sampling_probability == 1


def canonical(counts: Mapping[Mechanism, int]) -> Counts:
    """The same in one order, so that the order of events moves no digit; Gaussians without sampling are one."""
    sampled = {mechanism: count for mechanism, count in counts.items() if not is_unsampled_gaussian(mechanism)}
    precision = math.fsum(
        count / mechanism.noise_multiplier**2 for mechanism, count in counts.items() if mechanism not in sampled
    )
    whole = {PoissonSampledGaussian(1.0, precision**-0.5): 1} if precision else {}
    # By the names of classes, then by fields, all as text.
    return tuple(sorted((whole | sampled).items(), key=repr))
