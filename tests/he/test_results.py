"""Every row of encrypted evaluation that was promised was measured, and says what it must."""

import json

import pytest

from benchmarks import bench_he

FOUND = json.loads(bench_he.RESULTS.read_text())
ROWS = FOUND["rows"]


def rows(**wanted):
    return [row for row in ROWS if all(row.get(name) == value for name, value in wanted.items())]


@pytest.mark.parametrize(
    "wanted",
    [
        *({"case": "head 128-10", "samples": count, "peer": "ours"} for count in (1, 16, 2048)),
        *({"case": "head 128-10", "samples": 1, "packing": name, "peer": "ours"} for name in ("naive", "diagonal")),
        *({"case": "head 128-10", "samples": count, "peer": "Keras, not encrypted"} for count in (1, 16, 2048)),
        *({"case": "square_mlp", "samples": count, "peer": "ours"} for count in (1, 4096, 10_000)),
        *({"case": "square_mlp", "samples": count, "peer": "Keras, not encrypted"} for count in (1, 4096)),
        *({"case": "cryptonet", "samples": count, "peer": "ours"} for count in (1, 10_000)),
        *({"case": "tutorial_conv", "samples": count, "peer": "ours"} for count in (1, 10_000)),
        {"case": "tutorial_conv", "peer": "TenSEAL"},
        {"case": "head 128-10", "packing": "mm", "peer": "TenSEAL"},
        {"case": "head 128-10", "peer": "DESILO"},
    ],
    ids=lambda wanted: " ".join(map(str, wanted.values())),
)
def test_every_case_was_measured_with_times_bytes_and_keys(wanted):
    found = rows(**wanted)
    assert found
    for row in found:
        for name in ("server_ms", "client_ms", "up_bytes", "down_bytes", "key_bytes"):
            assert row[name] >= 0, row
    assert all(row["key_bytes"] == 0 for row in found if row["packing"] in ("coefficient", "batched"))


def test_encrypted_accuracy_is_that_in_the_clear():
    networks = [row for row in rows(peer="ours") if "accuracy_encrypted" in row]
    assert {row["case"] for row in networks} >= {"square_mlp", "cryptonet"}
    for row in networks:
        assert abs(row["accuracy_encrypted"] - row["accuracy_plain"]) <= 0.001
    for case, least in (("square_mlp", 0.975), ("cryptonet", 0.985)):
        assert all(row["accuracy_plain"] >= least for row in rows(case=case, samples=10_000))


def test_libraries_that_were_tried_in_vain_say_why():
    notes = [row for row in ROWS if "server_ms" not in row]
    assert all(row["note"].startswith("not measured: ") for row in notes)
    assert {row["peer"] for row in ROWS} >= {"TenSEAL", "DESILO", "OpenFHE"}


def test_published_figures_have_their_hardware():
    assert len(FOUND["published"]) >= 4
    assert all(one["source"] and one["figure"] and one["hardware"] for one in FOUND["published"])
