"""The streams of a seed: their keys stay what they are, differ from each other, and stand in one table."""

import ast
import itertools
import pathlib

import numpy as np
import pytest

import tfprivacy_lab
from tfprivacy_lab.dp.seed_streams import SeedStream

PACKAGE = pathlib.Path(tfprivacy_lab.__file__).parent
TABLE = PACKAGE / "dp" / "seed_streams.py"


def test_keys_are_those_of_every_result_so_far_and_no_two_are_the_same():
    keys = {name: int(stream) for name, stream in SeedStream.__members__.items()}
    assert keys == {"NOISE": 0, "LAYERS": 1, "SAMPLING": 2, "LAPLACE_NOISE": 3}
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("seed", [0, 2**62 + 1, 2**128 - 1])
def test_a_stream_is_its_key_and_its_place_under_the_seed(seed):
    plain = np.random.SeedSequence(seed, spawn_key=(0,)).generate_state(3, np.uint64)
    assert SeedStream.NOISE.sequence(seed).generate_state(3, np.uint64).tolist() == plain.tolist()
    placed = np.random.SeedSequence(seed, spawn_key=(2, 1, 7)).generate_state(3, np.uint64)
    assert SeedStream.SAMPLING.sequence(seed, 1, 7).generate_state(3, np.uint64).tolist() == placed.tolist()
    firsts = [tuple(stream.sequence(seed).generate_state(2, np.uint64).tolist()) for stream in SeedStream]
    assert all(one != other for one, other in itertools.combinations(firsts, 2))


def spawn_keys(path):
    """Lines of a module that give a spawn key, or spawn children that are numbered by their order."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and any(keyword.arg == "spawn_key" for keyword in node.keywords):
            yield node.lineno
        if isinstance(node, ast.Attribute) and node.attr == "spawn":
            yield node.lineno


def test_no_key_stands_outside_the_table():
    assert len(list(spawn_keys(TABLE))) == 1
    others = [path for path in PACKAGE.rglob("*.py") if path != TABLE]
    assert len(others) > 100
    assert {str(path.relative_to(PACKAGE)): list(spawn_keys(path)) for path in others if list(spawn_keys(path))} == {}
