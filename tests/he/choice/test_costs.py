"""Costs of all packings: what is stated is what is sent and counted, and slots are never cheaper."""

import numpy as np
import pytest

from tfprivacy_lab import he
from tfprivacy_lab.checks import InputError
from tfprivacy_lab.he.plans.slot_head import SlotHead

RNG = np.random.default_rng(0)
KERNEL, BIAS = RNG.normal(size=(128, 10)) * 0.2, RNG.normal(size=10) * 0.1


def by_packing(**options):
    return {(cost.packing, cost.parameters): cost for cost in he.compare_packings(KERNEL, BIAS, **options)}


def test_every_packing_has_a_row_and_those_in_slots_cost_most():
    rows = he.compare_packings(KERNEL, BIAS)
    assert {(cost.packing, cost.parameters) for cost in rows} == {
        *((packing, scheme) for packing in ("coefficient", "batched") for scheme in ("bfv", "ckks")),
        *(("coefficient", f"{scheme}-sanitized") for scheme in ("bfv", "ckks")),
        ("naive", "ckks, slots"),
        ("diagonal", "ckks, slots"),
    }
    assert rows[0].packing == "coefficient"
    assert [row.packing for row in rows[-2:]] in (["diagonal", "naive"], ["naive", "diagonal"])
    assert all(row.key_bytes == row.evaluation_keys == 0 for row in rows[:-2])
    assert all(row.exact == row.parameters.startswith("bfv") for row in rows)


@pytest.mark.parametrize("samples", [1, 16, 2049])
def test_bytes_are_those_of_the_messages(samples, bfv_client):
    rows = by_packing(samples=samples)
    for packing in ("coefficient", "batched")[samples == 2049 :]:
        query = bfv_client.encrypt(np.ones((samples, 128)), 1.0, packing)
        reply = he.Server(KERNEL, BIAS).evaluate(query)
        row = rows[packing, "bfv"]
        assert (row.up_bytes, row.down_bytes) == (len(query), len(reply))
    assert rows["batched", "bfv"].matrix_products == -(-samples // 2048)
    assert rows["coefficient", "bfv"].products == samples
    summary = SlotHead.make(KERNEL, BIAS, "naive").public.summary()
    assert rows["naive", "ckks, slots"].rotations == 70 * samples
    assert rows["naive", "ckks, slots"].up_bytes == summary["up_bytes"] * samples


def test_rows_read_as_sentences():
    rows = by_packing()
    told = str(rows["naive", "ckks, slots"])
    assert "naive (ckks, slots): 10 products, 70 rotations; 7 evaluation keys of 5,505,024 bytes" in told
    assert "1 product; 0 evaluation keys of 0 bytes" in str(rows["coefficient", "bfv"])
    assert "exact integers" in str(rows["batched", "bfv"])


def test_a_packing_is_chosen_by_name():
    assert he.choose(KERNEL, BIAS, samples=1, packing="batched").packing == "batched"
    assert he.choose(KERNEL, BIAS, samples=2048, packing="coefficient").packing == "coefficient"
    with pytest.raises(InputError, match="packing"):
        he.choose(KERNEL, BIAS, packing="rows")
    with pytest.raises(InputError, match="packing=coefficient for sanitised"):
        he.choose(KERNEL, BIAS, packing="batched", sanitized=True)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="kernel"):
        he.compare_packings(np.full((2, 2), np.nan))
    with pytest.raises(InputError, match="feature_range"):
        he.compare_packings(KERNEL, BIAS, feature_range=0.0)
    # A head without room under one set is left out of it alone.
    left = {cost.parameters for cost in he.compare_packings(np.ones((2048, 1)), [3e4])}
    assert "ckks" in left
    assert "bfv-sanitized" not in left
