"""Evaluation keys as bytes: all but their residues is known beforehand, and nothing else reaches the library."""

import dataclasses
import struct

import pytest

from tests.he.networks import dense_network
from tfprivacy_lab.he.client.slots import SingleImageClient
from tfprivacy_lab.he.messages.evaluation_keys import check_evaluation_keys
from tfprivacy_lab.he.plans.single_image import SinglePlan
from tfprivacy_lab.he.ring.network_parameters import SINGLE

RESIDUES = 48 + 8 + 8 + 113  # of the first key-switching key of a table whose first entry is not empty


@pytest.fixture(scope="module")
def keys():
    return SingleImageClient(SinglePlan.make(dense_network(3, 20, 8, 3)).public).evaluation_keys()


def check(keys, **changed):
    check_evaluation_keys(dataclasses.replace(keys, **changed), SINGLE, keys.steps, True)


def test_keys_of_another_client_pass(keys):
    check(keys)
    check(keys, steps=tuple(reversed(keys.steps)))


def at(data, place, value):
    return data[:place] + value + data[place + len(value) :]


@pytest.mark.parametrize("place", [0, 1, 8, 16, 40, 48, 56, 64, 64 + 60, RESIDUES - 1])
def test_bytes_that_are_no_residues_are_those_of_any_key(keys, place):
    for name in ("rotation", "relinearisation"):
        data = getattr(keys, name)
        with pytest.raises(ValueError, match=f"the {name} keys are of another layout"):
            check(keys, **{name: at(data, place, bytes([data[place] ^ 1]))})


def test_residues_are_below_their_primes(keys):
    degree = SINGLE.poly_modulus_degree
    for polynomial in range(2):
        for index, prime in enumerate(SINGLE.coeff_modulus):
            place = RESIDUES + 8 * degree * (polynomial * len(SINGLE.coeff_modulus) + index) + 8 * 5
            check(keys, relinearisation=at(keys.relinearisation, place, struct.pack("<Q", prime - 1)))
            for above in (prime, 2**64 - 1):
                with pytest.raises(ValueError, match="a residue of the relinearisation keys is not below its prime"):
                    check(keys, relinearisation=at(keys.relinearisation, place, struct.pack("<Q", above)))


def test_other_lengths_types_and_steps_are_refused(keys):
    for bad in (b"", keys.rotation[:-1], keys.rotation + b"\0", None, bytearray(keys.rotation)):
        with pytest.raises(ValueError, match="the rotation keys are not"):
            check(keys, rotation=bad)
    with pytest.raises(ValueError, match="the rotation keys are not"):
        check_evaluation_keys(keys, SINGLE, keys.steps[:-1], True)
    other = SingleImageClient(SinglePlan.make(dense_network(3, 20, 8, 3)).public)
    steps = [*keys.steps[:-1], 3]
    other._library.rotateKeyGen(rot_steps=steps)
    with pytest.raises(ValueError, match="another layout or other steps"):
        check(keys, rotation=other._library.to_bytes_rotate_key("none"))
