"""Mechanisms as data: which are equal, how many of them are one, and in which order they are counted."""

import dataclasses

import pytest

from tfprivacy_lab.dp.accounting.privacy_loss.mechanisms import (
    PoissonSampledGaussian,
    PoissonSampledGaussianGroup,
    PoissonSampledLaplace,
    TruncatedPoissonSampledGaussian,
    canonical,
    is_unsampled_gaussian,
)


def test_mechanisms_are_the_same_by_kind_and_numbers():
    gaussian, laplace = PoissonSampledGaussian(0.5, 2.0), PoissonSampledLaplace(0.5, 2.0)
    assert gaussian == PoissonSampledGaussian(sampling_probability=0.5, noise_multiplier=2)
    assert len({gaussian, laplace, PoissonSampledGaussian(0.5, 2)}) == 2
    assert TruncatedPoissonSampledGaussian(10, 0.5, 7, 2.0) != PoissonSampledGaussianGroup(0.5, 7, 2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        gaussian.noise_multiplier = 1.0


def test_only_gaussian_noise_that_every_record_joins_is_unsampled():
    assert is_unsampled_gaussian(PoissonSampledGaussian(1.0, 2.0))
    for other in (
        PoissonSampledGaussian(0.99, 2.0),
        PoissonSampledLaplace(1.0, 2.0),
        PoissonSampledGaussianGroup(1.0, 2, 2.0),
        TruncatedPoissonSampledGaussian(10, 1.0, 7, 2.0),
    ):
        assert not is_unsampled_gaussian(other)


def test_the_order_of_counts_is_that_of_their_names_and_numbers_as_text():
    """It decides the order in which losses are summed, and with it the last digits of figures that are on file."""
    in_order = [
        (PoissonSampledGaussian(0.01, 1.1), 70),
        (PoissonSampledGaussian(0.011, 1.1), 7),
        (PoissonSampledGaussian(0.011, 1.15), 7),
        (PoissonSampledGaussian(1.0, 10.0), 1),
        (PoissonSampledGaussian(1e-05, 1.1), 7),
        (PoissonSampledLaplace(0.1, 2.0), 3),
        (PoissonSampledLaplace(1.0, 12.0), 3),
        (PoissonSampledLaplace(1.0, 7.0), 3),
        (TruncatedPoissonSampledGaussian(1000, 0.05, 70, 1.5), 40),
    ]
    assert canonical(dict(in_order)) == canonical(dict(reversed(in_order))) == tuple(in_order)


def test_gaussians_without_sampling_are_one_by_their_precisions():
    counts = {
        PoissonSampledGaussian(1.0, 3.0): 9,
        PoissonSampledGaussian(1.0, 1.0): 3,
        PoissonSampledLaplace(1.0, 1.0): 2,
    }
    assert canonical(counts) == ((PoissonSampledGaussian(1.0, 0.5), 1), (PoissonSampledLaplace(1.0, 1.0), 2))
