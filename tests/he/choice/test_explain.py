"""``he explain``: what is told is what is proved, for heads and for networks; what cannot be is refused in one line."""

import json

import keras
import numpy as np
import pytest

from tests.he.networks import dense_network
from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.cli.command import main
from tfprivacy_lab.he.plans.network import BatchedPlan
from tfprivacy_lab.he.plans.single_image import SinglePlan
from tfprivacy_lab.models import architectures


@pytest.fixture
def explain(capsys):
    """Run the command; returns (exit code, object on stdout or None, stderr)."""

    def run(*arguments):
        code = main(["he", "explain", *map(str, arguments), "--json"])
        shown = capsys.readouterr()
        return code, json.loads(shown.out) if shown.out else None, shown.err

    return run


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("explain") / "head.npz"
    np.savez(path, kernel=rng.normal(size=(128, 10)) * 0.2, bias=np.zeros(10))
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    keras.utils.set_random_seed(1)
    path = tmp_path_factory.mktemp("explain") / "model.keras"
    architectures.square_mlp(16).save(path)
    return path


def test_a_head(explain, head):
    code, told, lines = explain("--head", head, "--samples", 3, "--scheme", "bfv", "--max-error", 1)
    assert code == 0
    choice = he.choose(**dict(np.load(head)), samples=3, scheme="bfv", max_error=1.0)
    assert told["reasons"] == choice.explain()
    assert told["error_bound"] == choice.error_bound <= 1
    assert {row["packing"] for row in told["packings"]} == {"coefficient", "batched", "naive", "diagonal"}
    assert "the 2024 table allows 53" in lines
    assert "compared: naive (ckks, slots): 30 products, 210 rotations; 7 evaluation keys" in lines
    assert explain("--head", head, "--packing", "batched")[1]["packing"] == "batched"


def test_a_network(explain, network):
    code, one, lines = explain("--network", network)
    assert (code, one["packing"], one["samples"]) == (0, "single", 1)
    assert "the 2024 table allows 214" in lines
    code, many, lines = explain("--network", network, "--samples", 2048)
    assert (code, many["packing"], many["evaluation_keys"]) == (0, "batched", 0)
    assert "the 2024 table allows 106" in lines
    assert "no rotation and no key" in lines
    wider = explain("--network", network, "--samples", 2048, "--input-range", -2, 2)[1]
    assert wider["error_bound"] > many["error_bound"]
    assert explain("--network", network, "--scheme", "bfv")[1]["scheme"] == "bfv"


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        (["--head", "HEAD", "--max-error", "1e-9"], "the least that is proved"),
        (["--network", "NETWORK", "--max-error", "1e-9"], "the least that is proved"),
        (["--network", "NETWORK", "--input-range", "1", "0"], "input_range"),
        (["--network", "NETWORK", "--input-range", "0", "1e30"], "could overflow"),
        (["--network", "NETWORK", "--samples", "0"], "samples"),
        (["--network", "HEAD"], "head.npz"),
        (["--network", "NETWORK", "--max-error", "1e-9", "--likely"], "the least likely bound is"),
        (["--network", "NETWORK", "--likely"], "give both"),
        (["--head", "HEAD", "--max-error", "1", "--likely"], "give both"),
        (["--network", "nothing.keras"], "nothing.keras"),
        (["--head", "nothing.npz"], "nothing.npz"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(explain, head, network, arguments, naming):
    names = {"HEAD": head, "NETWORK": network}
    code, told, lines = explain(*(names.get(argument, argument) for argument in arguments))
    assert (code, told, lines.count("\n")) == (2, None, 1)
    assert naming in lines


def test_the_plan_of_fewest_bytes_is_chosen():
    network = dense_network(3, 40, 12, 3)
    batched, single = BatchedPlan.make(network).public, SinglePlan.make(network).public.summary()
    for samples in (1, 20, 60, 500):
        choice = he.choose_network(network, samples=samples, scheme="ckks")
        together = batched.summary(samples)
        costs = {
            "batched": together["up_bytes"] + together["down_bytes"],
            "single": samples * (single["up_bytes"] + single["down_bytes"]) + single["key_bytes"],
        }
        assert choice.summary["packing"] == min(costs, key=costs.get)
        assert choice.bytes == min(costs.values())
        assert choice.summary["coeff_modulus_bits"] <= 214
    # Keys and bytes are not the only reasons: the batch's proof of so small an error would not hold.
    finest = he.choose_network(network, samples=500, max_error=2 * single["error_bound"])
    assert finest.summary["error_bound"] <= 2 * single["error_bound"]


def test_networks_that_no_plan_has_room_for():
    with pytest.raises(InputError, match="one square for bfv"):
        he.choose_network(dense_network(1, 5, 4, 3, 2), scheme="bfv")
    assert he.choose_network(dense_network(1, 5, 4, 3, 2)).summary["levels"] == 2
    with pytest.raises(InputError, match="scheme"):
        he.choose_network(dense_network(1, 5, 4, 3), scheme="bgv")
