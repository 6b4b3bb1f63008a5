"""The one module that goes beyond dp-accounting's public interface, tried on 0.4.4 to 0.6; another is to be read.

What each private field holds is written here from outside: by what the public interface says beside it.
"""

import importlib.metadata
import pathlib
import re

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution

import tfprivacy_lab
from tfprivacy_lab.dp.accounting import dp_accounting_internals

OLDEST, NEWEST = (0, 4), (0, 6)
FIELDS_OF_A_DISTRIBUTION = ("_pmf_remove", "_pmf_add")
FIELDS_OF_MASSES = ("_probs", "_lower_loss", "_discretization", "_infinity_mass")


def distribution(sampling_probability):
    return privacy_loss_distribution.from_gaussian_mechanism(
        1.1, sampling_prob=sampling_probability, value_discretization_interval=1e-3
    )


def test_the_version_is_one_that_this_module_was_read_against():
    version = importlib.metadata.version("dp-accounting")
    assert OLDEST <= tuple(map(int, version.split(".")[:2])) <= NEWEST, (
        f"read dp_accounting_internals.py against dp-accounting {version}, then move the bound"
    )


def test_the_private_fields_are_where_they_were():
    found, version = distribution(0.3), importlib.metadata.version("dp-accounting")
    gone = [name for name in FIELDS_OF_A_DISTRIBUTION if not hasattr(found, name)]
    assert not gone, f"dp-accounting {version} moved {gone} of PrivacyLossDistribution"
    for name in FIELDS_OF_A_DISTRIBUTION:
        dense = getattr(found, name).to_dense_pmf()
        gone = [field for field in FIELDS_OF_MASSES if not hasattr(dense, field)]
        assert not gone, f"dp-accounting {version} moved {gone} of DensePLDPmf"


def test_masses_give_the_divergence_that_the_distribution_states():
    """δ(ε) of the worse direction, which is public, from the masses of both; either direction alone is the worse once.

    Under Poisson sampling, removing a record costs more at ε > 0, and adding one more at ε < 0.
    """
    found = distribution(0.3)
    directions = dp_accounting_internals.masses_of(found)
    assert len(directions) == 2
    worse = set()
    for epsilon in (-1.0, -0.2, 0.0, 0.2, 1.0, 2.5):
        deltas = []
        for one in directions:
            assert (one.interval, one.masses.sum() + one.infinity_mass) == (1e-3, pytest.approx(1, abs=1e-9))
            losses = (one.lowest + np.arange(len(one.masses))) * one.interval
            deltas.append(one.masses @ np.maximum(-np.expm1(epsilon - losses), 0) + one.infinity_mass)
        assert found.get_delta_for_epsilon(epsilon) == pytest.approx(max(deltas), rel=1e-9)
        worse.add(int(np.argmax(deltas)))
    assert worse == {0, 1}


def test_directions_that_are_one_are_given_once():
    assert len(dp_accounting_internals.masses_of(distribution(1.0))) == 1


def test_no_other_module_reads_the_private_fields_of_dp_accounting():
    names = "|".join((*FIELDS_OF_A_DISTRIBUTION, *FIELDS_OF_MASSES, "_pmf", "_rdp", "_orders"))
    root = pathlib.Path(tfprivacy_lab.__file__).parent
    readers = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if "dp_accounting" in (text := path.read_text()) and re.search(rf"\w\.({names})\b", text)
    }
    assert readers == {"dp/accounting/dp_accounting_internals.py"}
